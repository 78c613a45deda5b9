"""The messages of a chat request: their wire types, their rules, and what the engine is given of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from oxlo_local.calls import Message, ToolCall
from oxlo_local.errors import BadRequest, UnsupportedValue
from oxlo_local.protocol import parts, pictures
from oxlo_local.protocol.schemas import check_size

_PART_FIELDS = frozenset({"type", "text", "refusal", "image_url", "prompt_cache_breakpoint"})
_IMAGE_FIELDS = frozenset(field.name for field in msgspec.structs.fields(pictures.ImageUrl))
Id = Annotated[str, Meta(min_length=1, max_length=256)]


class Part(Struct, frozen=True):
    """One part of a message's content; only text, a user's images and an assistant's refusal are honoured."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: pictures.ImageUrl | None = None


class Function(Struct, frozen=True):
    """What a call calls. `arguments` is JSON text."""

    name: Id
    arguments: str


class Called(Struct, frozen=True):
    """A call that the assistant made in an earlier turn."""

    id: Id
    type: str = "function"
    function: Function | None = None


class ChatMessage(Struct, frozen=True):
    """One turn as the client sent it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Meta(min_length=1)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    refusal: str | None = None
    tool_calls: list[Called] | None = None
    function_call: Function | None = None
    audio: dict[str, object] | None = None
    tool_call_id: Id | None = None
    reasoning_content: str | None = None


_MESSAGE_FIELDS = frozenset(field.name for field in msgspec.structs.fields(ChatMessage))
_CALLED_FIELDS = frozenset(field.name for field in msgspec.structs.fields(Called))
_FUNCTION_FIELDS = frozenset(field.name for field in msgspec.structs.fields(Function))


def unknown_members(messages: Sequence[Mapping[str, object]]) -> list[str]:
    """Paths of unknown members of messages and of their parts and calls. The shapes are known to be right."""
    paths: list[str] = []
    for index, message in enumerate(messages):
        here = f"messages[{index}]."
        if not message.keys() <= _MESSAGE_FIELDS:
            paths += parts.unknown_names(message, _MESSAGE_FIELDS, here)
        content = message.get("content")
        if isinstance(content, list):
            for place, part in enumerate(content):
                paths += parts.unknown_names(part, _PART_FIELDS, f"{here}content[{place}].")
                if isinstance(part.get("image_url"), dict):
                    paths += parts.unknown_names(
                        part["image_url"], _IMAGE_FIELDS, f"{here}content[{place}].image_url."
                    )
        calls = message.get("tool_calls")
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            paths += parts.unknown_names(call, _CALLED_FIELDS, f"{here}tool_calls[{place}].")
            if isinstance(call.get("function"), dict):
                paths += parts.unknown_names(
                    call["function"], _FUNCTION_FIELDS, f"{here}tool_calls[{place}].function."
                )
    return paths


def turns_of(messages: Sequence[ChatMessage], id: str = "") -> list[Message]:
    """The conversation in the engine's words. Raises BadRequest and its kinds, with the path of the field.

    Images become marks that `id` is in; `pictures.pictures_of` gives what they stand for.
    """
    turns: list[Message] = []
    open_ids: dict[str, str] = {}  # calls that have no result yet, with the path of each
    known: set[str] = set()  # of the last turn that called
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        _check(message, path)
        if message.role not in ("tool", "function"):
            _all_answered(open_ids)
        calls = _calls(message, path, index)
        if calls:
            open_ids = {call.id: f"{path}.tool_calls[{place}]" for place, call in enumerate(calls)}
            if len(open_ids) < len(calls):
                raise BadRequest("Two calls have the same id.", param=f"{path}.tool_calls")
            known = set(open_ids)
        answers = _answered(message, path, open_ids, known)
        turns.append(
            Message(
                role={"developer": "system", "function": "tool"}.get(message.role, message.role),
                content=_content(
                    message, path, may_be_empty=bool(calls), mark=partial(pictures.mark, id, index)
                ),
                name=message.name,
                tool_calls=calls,
                tool_call_id=answers,
                reasoning=message.reasoning_content,
            )
        )
    _all_answered(open_ids)
    return turns


def _check(message: ChatMessage, path: str) -> None:
    """Rules about members that only some roles have."""
    if message.audio is not None:
        raise UnsupportedValue("Spoken messages are not supported.", param=f"{path}.audio")
    if message.role != "assistant":
        for name in ("refusal", "tool_calls", "function_call", "reasoning_content"):
            if getattr(message, name):
                raise BadRequest(f"Only an assistant's message has '{name}'.", param=f"{path}.{name}")
    if message.role != "tool" and message.tool_call_id is not None:
        raise BadRequest("Only a tool's message has 'tool_call_id'.", param=f"{path}.tool_call_id")
    if message.tool_calls and message.function_call is not None:
        raise BadRequest(
            "'function_call' is the old name of 'tool_calls'; send one.", param=f"{path}.function_call"
        )


def _calls(message: ChatMessage, path: str, index: int) -> list[ToolCall]:
    if message.function_call is not None:
        function = message.function_call
        arguments = _arguments(function, f"{path}.function_call")
        return [ToolCall(f"function_{index}", function.name, arguments)]
    calls = []
    for place, call in enumerate(message.tool_calls or ()):
        here = f"{path}.tool_calls[{place}]"
        if call.type != "function":
            raise UnsupportedValue("Only calls of type 'function' are supported.", param=f"{here}.type")
        if call.function is None:
            raise BadRequest(f"Missing required parameter: '{here}.function'.", param=f"{here}.function")
        calls.append(ToolCall(call.id, call.function.name, _arguments(call.function, f"{here}.function")))
    return calls


def _arguments(function: Function, path: str) -> str:
    """The arguments of a call, checked: templates take them apart. None at all are an empty object."""
    text = function.arguments.strip() or "{}"
    try:
        value = msgspec.json.decode(text)
        check_size(value, path)
    except (msgspec.DecodeError, UnicodeError, RecursionError, BadRequest):
        value = None
    if not isinstance(value, dict):
        raise BadRequest(
            "The arguments of a call are a JSON object of moderate size, as text.", param=f"{path}.arguments"
        )
    return text


def _answered(message: ChatMessage, path: str, open_ids: dict[str, str], known: set[str]) -> str | None:
    """The call that a message answers; it is taken off those that are open."""
    if message.role == "function":
        id = next(iter(open_ids), None)
        if id is None:
            raise BadRequest("No function call comes before this result.", param=f"{path}.role")
    elif message.role == "tool":
        id = message.tool_call_id
        if id is None:
            raise BadRequest(
                f"Missing required parameter: '{path}.tool_call_id'.", param=f"{path}.tool_call_id"
            )
        if id not in open_ids:
            why = "was answered already" if id in known else "is not the id of a call in the turn before"
            raise BadRequest(f"'tool_call_id' {why}.", param=f"{path}.tool_call_id")
    else:
        return None
    del open_ids[id]
    return id


def _all_answered(open_ids: Mapping[str, str]) -> None:
    for path in open_ids.values():
        raise BadRequest(
            "This call has no result: each one is followed by a 'tool' message with its id.", param=path
        )


def _content(message: ChatMessage, path: str, *, may_be_empty: bool, mark: Callable[[int], str]) -> str:
    """The text of a message. Raises UnsupportedValue for parts that it cannot have, BadRequest for what is missing."""
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        if message.refusal is not None or may_be_empty:
            return message.refusal or ""
        raise BadRequest(f"Missing required parameter: '{path}.content'.", param=f"{path}.content")
    text = ""
    after_text = False
    for place, part in enumerate(message.content):
        is_text = part.type != "image_url"
        if is_text:
            text += "\n" if after_text else ""
            text += _part_text(part, message.role, f"{path}.content[{place}]")
        else:
            pictures.check(part, message.role, f"{path}.content[{place}]")
            text += mark(place)
        after_text = is_text
    return text


def _part_text(part: Part, role: str, path: str) -> str:
    if part.type == "refusal" and role == "assistant":
        text, member = part.refusal, "refusal"
    elif part.type == "text":
        text, member = part.text, "text"
    else:
        kind = part.type[:32].encode("ascii", "backslashreplace").decode()
        raise UnsupportedValue(
            f"Parts of type '{kind}' are not supported; send parts of type 'text' or 'image_url'.",
            param=f"{path}.type",
        )
    if text is None:
        raise BadRequest(f"Missing required parameter: '{path}.{member}'.", param=f"{path}.{member}")
    return text
