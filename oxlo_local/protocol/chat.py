"""/v1/chat/completions on the wire: request types, request to call, events to chunks or to the one answer.

A stream repeats everything but the text in each chunk. `Chunks` therefore encodes a chunk's head and tail once for each
choice, and per token only the text.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from oxlo_local.calls import Done, Event, Failed, Finished, Message, Started, Text, TextCall, TokenLogprob
from oxlo_local.errors import BadRequest, UnsupportedValue
from oxlo_local.protocol import parts
from oxlo_local.protocol.constraints import constraint_of, unknown_members
from oxlo_local.protocol.fields import CHAT, refuse_unhonoured

_KNOWN = frozenset(field.name for field in CHAT)
_LATER_ROLES = ("tool", "function")
_PART_FIELDS = frozenset({"type", "text", "refusal", "prompt_cache_breakpoint"})


# -- requests ---------------------------------------------------------------------------------------------------------


class Part(Struct, frozen=True):
    """One part of a message's content; only text parts (and an assistant's refusal) are honoured."""

    type: str
    text: str | None = None
    refusal: str | None = None


class ChatMessage(Struct, frozen=True):
    """One turn as the client sent it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Meta(min_length=1)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    refusal: str | None = None
    tool_calls: list[object] | None = None
    function_call: dict[str, object] | None = None
    audio: dict[str, object] | None = None
    tool_call_id: str | None = None


_MESSAGE_FIELDS = frozenset(field.name for field in msgspec.structs.fields(ChatMessage))
_STREAM_FIELDS = frozenset(field.name for field in msgspec.structs.fields(parts.StreamOptions))


class ChatRequest(parts.TextRequest, frozen=True, kw_only=True):
    """A chat request whose fields have the right types and ranges."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    safety_identifier: Annotated[str, Meta(max_length=64)] | None = None
    prompt_cache_key: str | None = None


def decode(body: bytes, *, strict: bool, max_n: int = 128) -> tuple[ChatRequest, list[str]]:
    """The request in `body` and one warning for each unknown field. Raises BadRequest and its kinds."""
    members = parts.read_object(body)
    refuse_unhonoured(members, CHAT)
    request = parts.convert(members, ChatRequest)
    parts.check_text_request(request, max_n=max_n)
    parts.one_of(request.max_tokens, request.max_completion_tokens, "max_tokens", "max_completion_tokens")
    if request.top_logprobs is not None and not request.logprobs:
        raise BadRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    for index, message in enumerate(request.messages):
        _content(message, f"messages[{index}]")
    return request, parts.warn_unknown(_unknown(members), _KNOWN, strict=strict)


def _unknown(members: Mapping[str, object]) -> list[str]:
    """Paths of unknown members, also inside messages, parts and stream options. The shapes are known to be right."""
    paths = parts.unknown_names(members, _KNOWN)
    options = members.get("stream_options")
    if isinstance(options, dict):
        paths += parts.unknown_names(options, _STREAM_FIELDS, "stream_options.")
    paths += unknown_members(members)
    messages = members.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if not message.keys() <= _MESSAGE_FIELDS:
            paths += parts.unknown_names(message, _MESSAGE_FIELDS, f"messages[{index}].")
        if isinstance(message.get("content"), list):
            for place, part in enumerate(message["content"]):
                paths += parts.unknown_names(part, _PART_FIELDS, f"messages[{index}].content[{place}].")
    return paths


def _content(message: ChatMessage, path: str) -> str:
    """The text of a message. Raises UnsupportedValue for what later work brings, BadRequest for what is missing."""
    if message.role in _LATER_ROLES:
        raise UnsupportedValue(
            f"Messages with role '{message.role}' are not supported yet.", param=f"{path}.role"
        )
    if message.tool_calls:
        raise UnsupportedValue("Tool calls are not supported yet.", param=f"{path}.tool_calls")
    if message.function_call is not None:
        raise UnsupportedValue("Function calls are not supported yet.", param=f"{path}.function_call")
    if message.audio is not None:
        raise UnsupportedValue("Spoken messages are not supported.", param=f"{path}.audio")
    if message.tool_call_id is not None:
        raise UnsupportedValue("Tool calls are not supported yet.", param=f"{path}.tool_call_id")
    if message.refusal is not None and message.role != "assistant":
        raise BadRequest("Only an assistant refuses.", param=f"{path}.refusal")
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        if message.refusal is not None:
            return message.refusal
        raise BadRequest(f"Missing required parameter: '{path}.content'.", param=f"{path}.content")
    return "\n".join(
        _part_text(part, message.role, f"{path}.content[{place}]")
        for place, part in enumerate(message.content)
    )


def _part_text(part: Part, role: str, path: str) -> str:
    if part.type == "refusal" and role == "assistant":
        text, member = part.refusal, "refusal"
    elif part.type == "text":
        text, member = part.text, "text"
    else:
        kind = part.type[:32].encode("ascii", "backslashreplace").decode()
        raise UnsupportedValue(
            f"Parts of type '{kind}' are not supported; send parts of type 'text'.", param=f"{path}.type"
        )
    if text is None:
        raise BadRequest(f"Missing required parameter: '{path}.{member}'.", param=f"{path}.{member}")
    return text


def to_call(request: ChatRequest, model_defaults: Mapping[str, float], id: str) -> TextCall:
    """The request in the engine's words. `model_defaults` are the model's own sampling values."""
    messages = [
        Message(
            role="system" if message.role == "developer" else message.role,
            content=_content(message, f"messages[{index}]"),
            name=message.name,
        )
        for index, message in enumerate(request.messages)
    ]
    return TextCall(
        id=id,
        messages=messages,
        sampling=parts.sampling_of(request, model_defaults),
        max_tokens=parts.one_of(
            request.max_tokens, request.max_completion_tokens, "max_tokens", "max_completion_tokens"
        ),
        stop=parts.stop_strings(request),
        n=request.choices_each,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        truncate=request.truncation == "auto",
        constraint=constraint_of(request),
    )


# -- answers ----------------------------------------------------------------------------------------------------------


def renderer(request: ChatRequest, head: parts.Head) -> parts.Renderer:
    """What turns the events of `request` into the bytes that its client asked for."""
    if request.stream:
        return Chunks(head, logprobs=bool(request.logprobs), include_usage=request.include_usage)
    return Answer(head, choices=request.choices_each, logprobs=bool(request.logprobs))


def _token_object(token: TokenLogprob) -> dict[str, object]:
    return {
        "token": token.token,
        "bytes": token.bytes,
        "logprob": parts.finite(token.logprob or 0.0),
        "top_logprobs": [
            {"token": top.token, "bytes": top.bytes, "logprob": parts.finite(top.logprob)}
            for top in token.top
        ],
    }


def _logprobs_object(tokens: list[TokenLogprob]) -> dict[str, object]:
    return {"content": [_token_object(token) for token in tokens], "refusal": None}


class Chunks:
    """A streamed answer. The first chunk of each choice brings the role, the last its finish reason."""

    def __init__(self, head: parts.Head, *, logprobs: bool, include_usage: bool) -> None:
        encode = msgspec.json.encode
        self._open = (
            b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"service_tier":"default",'
            b'"system_fingerprint":%b,"choices":['
            % (encode(head.id), head.created, encode(head.model), encode(head.fingerprint))
        )
        self._close = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._plain_close = b'},"logprobs":null,"finish_reason":null}' + self._close
        self._include_usage = include_usage
        self._logprobs = logprobs
        self._text_open: dict[int, bytes] = {}  # of the choices that have begun

    def add(self, event: Event) -> bytes:
        """The chunks of one event, as server-sent events."""
        match event:
            case Text():
                return self._begun(event.choice) + self._text(event)
            case Finished():
                return self._begun(event.choice) + self._choice(
                    b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b}'
                    % (event.choice, msgspec.json.encode(event.reason))
                )
            case Done():
                return self._last(event)
            case _:
                return b""

    def _choice(self, choice: bytes) -> bytes:
        return self._open + choice + self._close

    def _begun(self, choice: int) -> bytes:
        if choice in self._text_open:
            return b""
        self._text_open[choice] = self._open + b'{"index":%d,"delta":{"content":' % choice
        role = b'"delta":{"role":"assistant","content":"","refusal":null}'
        return self._choice(b'{"index":%d,%b,"logprobs":null,"finish_reason":null}' % (choice, role))

    def _text(self, event: Text) -> bytes:
        if not event.text and not event.logprobs:
            return b""
        opened = self._text_open[event.choice] + msgspec.json.encode(event.text)
        if not self._logprobs:
            return opened + self._plain_close
        logprobs = msgspec.json.encode(_logprobs_object(event.logprobs))
        return opened + b'},"logprobs":' + logprobs + b',"finish_reason":null}' + self._close

    def _last(self, event: Done) -> bytes:
        if not self._include_usage:
            return parts.DONE
        usage = msgspec.json.encode(parts.usage_object(event.usage))
        return self._open + b'],"usage":' + usage + b"}\n\n" + parts.DONE


class Answer:
    """A whole answer: collects the choices, and renders at `Done`."""

    def __init__(self, head: parts.Head, *, choices: int, logprobs: bool) -> None:
        self._head = head
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._tokens: list[list[TokenLogprob]] = [[] for _ in range(choices)]
        self._reasons: list[str] = ["stop"] * choices
        self._logprobs = logprobs

    def add(self, event: Event) -> bytes:
        """Nothing, until `Done` brings the body."""
        match event:
            case Text():
                self._texts[event.choice].append(event.text)
                self._tokens[event.choice].extend(event.logprobs)
            case Finished():
                self._reasons[event.choice] = event.reason
            case Done():
                return self._body(event)
            case Started() | Failed():
                pass
        return b""

    def _body(self, event: Done) -> bytes:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(self._texts[index]), "refusal": None},
                "logprobs": _logprobs_object(self._tokens[index]) if self._logprobs else None,
                "finish_reason": reason,
            }
            for index, reason in enumerate(self._reasons)
        ]
        return msgspec.json.encode(
            {
                "id": self._head.id,
                "object": "chat.completion",
                "created": self._head.created,
                "model": self._head.model,
                "choices": choices,
                "usage": parts.usage_object(event.usage),
                "service_tier": "default",
                "system_fingerprint": self._head.fingerprint,
            }
        )
