"""Conversations in, prompt text out: the model's own chat template, and what it cannot take by itself.

A template is a jinja program by the model's vendor, written for transformers: the environment here gives it the same
filters and functions, and leaves every optional variable (`tools`, `enable_thinking`, `date_string`, ...) undefined,
because templates ask `is defined` and take None for a value.

**What a template cannot take** is found out once, at load, by rendering conversations of marker words and looking
which of them come out. A template that raises on a system message, or drops it without a word, gets it at the head of
the next user turn; one that wants alternating roles gets neighbours of one role joined; one that reads content as a
list of parts gets such a list; and `developer` is `system` to all that do not know it. No word of a client is lost.

**Continuing.** A conversation that ends in an assistant turn is one to be continued, as llama-server has it. Where the
template closes a turn is its own affair, so the turn is rendered with a mark at its end, and the prompt is cut there.

**Bounds.** The sandbox keeps a template from the machine. Time is bounded too: some templates look at all messages for
each message, and a hostile client can send a great many. The sandbox sees each call and attribute access of the
running template, and that is where the clock is looked at, beside every piece of output.
"""

import json
import secrets
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import groupby
from typing import NoReturn, TypeVar

from jinja2 import TemplateError, Undefined, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from msgspec.structs import replace

from oxlo_local import errors
from oxlo_local.calls import Message

T = TypeVar("T")

RENDER_SECONDS = 5.0  # of CPU time; a thousand turns take most templates 0.02 s, a quadratic one 1.5 s
RENDER_GROWTH = 4  # output may have this many times the messages' characters, ...
RENDER_ALLOWANCE = 1 << 20  # ... and this many more, ...
TURN_ALLOWANCE = 1 << 10  # ... and this many for each turn's markers
CLOCK_EVERY = 1024  # attribute accesses between two looks at the clock

ROLES = {"S": "system", "T": "system", "U": "user", "V": "user", "A": "assistant"}
MARKERS = {letter: f"{letter}marker{letter}" for letter in ROLES}  # words that no template contains


class ChatTemplate:
    """A compiled chat template and what is known about it.

    `folds_system`: it takes no system message, so that one goes into a user turn. Raises ServerError, with jinja's own
    words, where the source does not compile.
    """

    def __init__(
        self, source: str, *, bos_token: str, eos_token: str, clock: Callable[[], datetime] = datetime.now
    ) -> None:
        self._clock = clock
        self._environment = TemplateEnvironment(clock)
        self._tokens: dict[str, object] = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = self._environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            place = f" (line {line})" if line else ""
            raise errors.ServerError(f"the model's chat template does not compile: {error}{place}") from None
        self._parts = False
        self._parts = not self._keeps("U") and self._keeps("U", parts=True)
        self._knows_developer = "developer" in source
        readable = self._keeps("UAV")  # else nothing can be told from what does not come out
        self.folds_system = readable and not self._keeps("SU")
        self._folds_later_system = readable and not self._keeps("SUATV")
        self._joins_systems = readable and not self._keeps("STU")
        self._joins_turns = readable and not self._keeps("UV")

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation, ready for the assistant's next words.

        With `add_generation_prompt` a last assistant turn is continued; without it every turn is a closed one. Raises
        BadRequest (param "messages"), in the template's own words, where it refuses the conversation.
        """
        turns = self._adapt(messages)
        if not turns:
            raise errors.BadRequest("messages is empty: send at least one message", param="messages")
        if add_generation_prompt and turns[-1].role == "assistant":
            return self._continue(turns)
        return self._run(turns, add_generation_prompt=add_generation_prompt, parts=self._parts)

    def _continue(self, turns: list[Message]) -> str:
        mark = secrets.token_hex(16)  # nobody can have written it
        turns[-1] = replace(turns[-1], content=turns[-1].content + mark)
        text, found, _ = self._run(turns, add_generation_prompt=False, parts=self._parts).rpartition(mark)
        if not found:
            message = (
                "this model's chat template cannot continue an assistant message: end with a user message"
            )
            raise errors.BadRequest(message, param="messages")
        return text

    def _adapt(self, messages: Sequence[Message]) -> list[Message]:
        """The same words, in a conversation that the template takes."""
        turns = list(messages)
        if not self._knows_developer:
            turns = [replace(turn, role="system") if turn.role == "developer" else turn for turn in turns]
        if self._joins_systems or self.folds_system:
            turns = joined(turns, ("system",))
        if self._folds_later_system:
            head = 0 if self.folds_system else leading_systems(turns)
            turns = turns[:head] + folded(turns[head:])
        if self._joins_turns:
            turns = joined(turns, ("user", "assistant"))
        return turns

    def _run(self, turns: Sequence[Message], *, add_generation_prompt: bool, parts: bool) -> str:
        limit = RENDER_GROWTH * sum(len(turn.content) for turn in turns)
        limit += RENDER_ALLOWANCE + TURN_ALLOWANCE * len(turns)
        variables = self._tokens | {
            "messages": [fields(turn, parts=parts) for turn in turns],
            "add_generation_prompt": add_generation_prompt,
            # FireFunction's template wants it. The day only: a time in the prompt would defeat prefix reuse.
            "datetime": self._clock().strftime("%b %d %Y"),
        }
        pieces: list[str] = []
        self._environment.start_clock()
        try:
            for piece in self._template.generate(variables):
                self._environment.look_at_clock()
                limit -= len(piece)
                if limit < 0:
                    raise TemplateError("it writes far more text than the conversation has")
                pieces.append(piece)
        # A template is a program, and a conversation that it was not written for can make it fail in any way.
        except Exception as error:
            words = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            message = f"the model's chat template refuses this conversation: {words}"
            raise errors.BadRequest(message, param="messages") from None
        return "".join(pieces)

    def _keeps(self, letters: str, *, parts: bool = False) -> bool:
        """Whether a conversation of markers comes out whole."""
        turns = [Message(role=ROLES[letter], content=MARKERS[letter]) for letter in letters]
        try:
            text = self._run(turns, add_generation_prompt=True, parts=parts or self._parts)
        except errors.BadRequest:
            return False
        return all(MARKERS[letter] in text for letter in letters)


# -- conversations ----------------------------------------------------------------------------------------------------


def fields(turn: Message, *, parts: bool) -> dict[str, object]:
    """A message as templates see it: what is not there is undefined."""
    content: object = [{"type": "text", "text": turn.content}] if parts else turn.content
    seen: dict[str, object] = {"role": turn.role, "content": content}
    if turn.name is not None:
        seen["name"] = turn.name
    return seen


def leading_systems(messages: Sequence[Message]) -> int:
    """How many messages at the head are the system's."""
    others = (i for i, message in enumerate(messages) if message.role not in ("system", "developer"))
    return next(others, len(messages))


def joined(turns: Sequence[Message], roles: Sequence[str]) -> list[Message]:
    """Neighbours of one of these roles made one turn, a blank line between them."""
    result: list[Message] = []
    for role, run in groupby(turns, key=lambda turn: turn.role):
        same = list(run)
        if role in roles and len(same) > 1:
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


# -- jinja ------------------------------------------------------------------------------------------------------------


class GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; to a prompt it means nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class BlankUndefined(Undefined):
    """Nothing, also in `+`, as it is in `~`: some templates add text that only comes with tools."""

    def __add__(self, other: T) -> T:
        return other

    def __radd__(self, other: T) -> T:
        return other


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """What transformers offers to a template, with a clock on its running time."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=BlankUndefined,
            extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
        )
        self.filters["tojson"] = to_json
        self.globals["raise_exception"] = raise_exception
        self.globals["strftime_now"] = lambda form: clock().strftime(form)
        self._deadline = 0.0
        self._accesses = 0

    def start_clock(self) -> None:
        self._deadline = time.thread_time() + RENDER_SECONDS

    def look_at_clock(self) -> None:
        """Raise TemplateError when the time is up."""
        if time.thread_time() > self._deadline:
            raise TemplateError(f"it needs more than {RENDER_SECONDS:g} s: send fewer messages")

    def getattr(self, obj: object, attribute: str) -> object:
        self._count()
        return super().getattr(obj, attribute)

    def getitem(self, obj: object, argument: object) -> object:
        self._count()
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: object, *args: object, **kwargs: object) -> object:
        __self.look_at_clock()
        return super().call(__context, __obj, *args, **kwargs)

    def _count(self) -> None:
        self._accesses += 1
        if not self._accesses % CLOCK_EVERY:
            self.look_at_clock()


def raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; jinja's own filter escapes it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
