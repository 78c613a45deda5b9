"""Conversations put into the form that a template takes: turns joined, folded, told as text, dropped.

Templates differ in how they want a tool call (arguments as an object or as text, content empty or none, ids of nine
characters), and some know no calls or no results; `Style` is what was found out about one, by rendering the probe.
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby, product

from msgspec.structs import replace

from oxlo_local.calls import Message, Tool, ToolCall
from oxlo_local.engines.text.toolcalls.format import Format
from oxlo_local.engines.text.toolcalls.generic import result

SHORT = 9  # characters of an id, where a template counts them
ARGUMENT, SECOND, RESULT = "Xmarker", "Ymarker", "Rmarker"  # words that no template contains
TOOL = Tool(
    "findplace", '{"type":"object","properties":{"place":{"type":"string"}},"required":["place"]}', "Finds."
)
PROBE = Message("user", "Umarker")
THOUGHTS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Style:
    """How a template takes calls and their results; without `calls` or `results` they are told as text."""

    calls: bool = True
    results: bool = True
    object_arguments: bool = True
    blank: str | None = ""  # the content of a turn that only calls
    short_ids: bool = False
    single: bool = False  # one call a turn at most
    thought: str | None = None  # the field that it reads thoughts of earlier turns from


STYLES = tuple(
    Style(object_arguments=arguments, blank=blank, short_ids=short)
    for short, arguments, blank in product((False, True), (True, False), ("", None))
)


def probe(*more: str) -> list[Message]:
    """A conversation with a call and its result; `more` are arguments of further calls."""
    words = {ARGUMENT: RESULT, **{word: f"R{word}" for word in more}}
    calls = [
        ToolCall(f"call_{place:017}", TOOL.name, f'{{"place": "{word}"}}') for place, word in enumerate(words)
    ]
    answers = [
        Message("tool", answer, TOOL.name, tool_call_id=call.id)
        for call, answer in zip(calls, words.values(), strict=True)
    ]
    return [PROBE, Message("assistant", "", tool_calls=calls), *answers]


def thought_of(source: str) -> str | None:
    """The field of a message in which a template looks for its thoughts."""
    return next((name for name in THOUGHTS if f".{name}" in source or f"'{name}'" in source), None)


def tool_object(tool: Tool) -> dict[str, object]:
    """A tool as templates see it: as OpenAI has it."""
    function: dict[str, object] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = json.loads(tool.parameters)
    return {"type": "function", "function": function}


def weight(turn: Message) -> int:
    """Characters of a turn."""
    calls = sum(len(call.name) + len(call.arguments) for call in turn.tool_calls)
    return len(turn.content) + len(turn.reasoning or "") + calls


def fields(turn: Message, *, parts: bool, style: Style) -> dict[str, object]:
    """A message as templates see it: what is not there is undefined."""
    content: object = [{"type": "text", "text": turn.content}] if parts else turn.content
    seen: dict[str, object] = {"role": turn.role, "content": content}
    if turn.name is not None:
        seen["name"] = turn.name
    if turn.tool_calls:
        if not turn.content:
            seen["content"] = style.blank
        seen["tool_calls"] = [call_object(call, style) for call in turn.tool_calls]
    if turn.tool_call_id is not None:
        seen["tool_call_id"] = short(turn.tool_call_id) if style.short_ids else turn.tool_call_id
    if (
        turn.reasoning
        and style.thought
        and not (style.thought == "thinking" and turn.content and turn.tool_calls)
    ):
        seen[style.thought] = turn.reasoning  # harmony's template refuses all three in one turn
    return seen


def call_object(call: ToolCall, style: Style) -> dict[str, object]:
    """A call as templates see it."""
    arguments: object = json.loads(call.arguments) if style.object_arguments else call.arguments
    return {
        "id": short(call.id) if style.short_ids else call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def short(id: str) -> str:
    """An id of nine letters and digits that stands for `id`: itself where it is one."""
    return id if len(id) == SHORT and id.isalnum() else sha256(id.encode()).hexdigest()[:SHORT]


def as_text(messages: Sequence[Message], style: Style, format: Format) -> list[Message]:
    """The conversation with results in the order of their calls, and what the template cannot take told as text."""
    turns = []
    for turn in ordered(messages):
        if turn.tool_calls and not style.calls:
            written = format.writing.text([(call.name, call.arguments) for call in turn.tool_calls])
            content = f"{turn.content}\n{written}" if turn.content else written
            turn = replace(turn, content=content, tool_calls=[])
        elif turn.role == "tool" and not style.results:
            turn = Message("user", result(turn.name, turn.content))
        turns.append(turn)
    if style.single:
        turns = one_call_each(turns)
    told = not style.results and any(turn.role == "tool" for turn in messages)
    return joined(turns, ("user",)) if told else turns


def one_call_each(turns: Sequence[Message]) -> list[Message]:
    """Each turn of several calls made one turn for each call, with its result behind it."""
    result: list[Message] = []
    place = 0
    while place < len(turns):
        turn = turns[place]
        place += 1
        if len(turn.tool_calls) < 2:
            result.append(turn)
            continue
        answers = []
        while place < len(turns) and turns[place].role == "tool":
            answers.append(turns[place])
            place += 1
        for number, call in enumerate(turn.tool_calls):
            said = {"content": "", "reasoning": None} if number else {}
            result.append(replace(turn, tool_calls=[call], **said))
            result.extend(answer for answer in answers if answer.tool_call_id == call.id)
    return result


def ordered(messages: Sequence[Message]) -> Iterator[Message]:
    """Results put in the order of the calls that they answer, and named after them."""
    calls: list[ToolCall] = []
    for role, run in groupby(messages, key=lambda turn: turn.role):
        turns = list(run)
        if role == "tool":
            places = {call.id: place for place, call in enumerate(calls)}
            names = {call.id: call.name for call in calls}
            turns.sort(key=lambda turn: places.get(turn.tool_call_id or "", len(places)))
            turns = [replace(turn, name=turn.name or names.get(turn.tool_call_id or "")) for turn in turns]
        calls = turns[-1].tool_calls or calls
        yield from turns


def leading_systems(messages: Sequence[Message]) -> int:
    """How many messages at the head are the system's."""
    others = (i for i, message in enumerate(messages) if message.role not in ("system", "developer"))
    return next(others, len(messages))


def joined(turns: Sequence[Message], roles: Sequence[str]) -> list[Message]:
    """Neighbours of one of these roles made one turn, a blank line between them."""
    result: list[Message] = []
    for role, run in groupby(turns, key=lambda turn: turn.role):
        same = list(run)
        if role in roles and len(same) > 1 and not any(turn.tool_calls for turn in same):
            names = {turn.name for turn in same}
            content = "\n\n".join(turn.content for turn in same)
            same = [Message(role=role, content=content, name=names.pop() if len(names) == 1 else None)]
        result.extend(same)
    return result


def folded(turns: Sequence[Message]) -> list[Message]:
    """Each system turn put at the head of the user turn behind it, or made a user turn where none follows."""
    result: list[Message] = []
    for turn in turns:
        before = result[-1] if result else None
        if before is not None and before.role == "system":
            result.pop()
            if turn.role == "user":
                turn = replace(turn, content=f"{before.content}\n\n{turn.content}")
            else:
                result.append(replace(before, role="user"))
        result.append(turn)
    if result and result[-1].role == "system":
        result[-1] = replace(result[-1], role="user")
    return result


def truncate(
    messages: Sequence[Message], fits: Callable[[Sequence[Message]], bool]
) -> Sequence[Message] | None:
    """Drop the oldest turns behind the leading system messages until `fits` says yes; None where nothing would help.

    A turn begins with a user message and is dropped with all its answers, so that what is left begins as conversations
    do. The last user message always stays. `fits` is asked a logarithmic number of times: it must not say no to a part
    of what it says yes to.
    """
    head = leading_systems(messages)
    starts = [i for i in range(head + 1, len(messages)) if messages[i].role == "user"]

    def cut(start: int) -> Sequence[Message]:
        return [*messages[:head], *messages[start:]]

    if fits(messages):
        return messages
    if not starts or not fits(cut(starts[-1])):
        return None
    return cut(starts[bisect_left(starts[:-1], True, key=lambda start: fits(cut(start)))])
