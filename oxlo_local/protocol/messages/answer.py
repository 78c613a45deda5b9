"""The answers of /v1/messages: a call's events as content blocks, in the order in which the model wrote them.

A block is open until something of another kind comes. A call that turns out to be none is text; what a stream has said
of it by then cannot be taken back, so that its input stays incomplete there. A call that was cut off has, in a whole
answer, those members of its input that are surely whole.

Anthropic counts a prompt in two parts: `input_tokens` had to be computed, `cache_read_input_tokens` did not.
"""

from dataclasses import dataclass, field

import msgspec

from oxlo_local.calls import (
    CallArguments,
    CallBegun,
    CallBroken,
    Done,
    Event,
    Finished,
    Reasoning,
    Started,
    Text,
    Usage,
)
from oxlo_local.protocol.dialect import ANTHROPIC
from oxlo_local.protocol.dialect import event as sse
from oxlo_local.protocol.messages.request import MessagesRequest
from oxlo_local.protocol.messages.thinking import signature_of

_encode = msgspec.json.encode
SIGN_OF_LIFE = 32  # pieces of a thought that is not shown between two pings


def renderer(request: MessagesRequest, id: str, model: str, tier: str = "standard") -> "Stream | Whole":
    """What turns the events of `request` into the bytes that its client asked for. `tier` is the one it ran in."""
    frame = Frame(
        id,
        model,
        request.max_tokens,
        tier,
        shows_thoughts=request.shows_thoughts,
        diagnosed=bool(request.diagnostics),
    )
    return Stream(frame) if request.stream else Whole(frame)


def count_answer(tokens: int) -> bytes:
    """The body of count_tokens."""
    return _encode({"input_tokens": tokens})


@dataclass(frozen=True)
class Frame:
    """What an answer is besides its content."""

    id: str
    model: str
    max_tokens: int
    tier: str
    shows_thoughts: bool = True
    diagnosed: bool = False

    def message(self, content: list[dict[str, object]], ending: "Ending", usage: Usage) -> dict[str, object]:
        """The message object."""
        diagnosis: dict[str, object] = {"cache_miss_reason": {"type": "unavailable"}}
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            **ending.object,
            "usage": {
                **usage_object(usage),
                "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
                "service_tier": self.tier,
            },
            **({"diagnostics": diagnosis} if self.diagnosed else {}),
        }

    def ending(self, finished: Finished, usage: Usage) -> "Ending":
        """Why the answer ended."""
        if finished.reason == "tool_calls":
            return Ending("tool_use")
        if finished.reason == "length":
            cut = usage.completion_tokens >= self.max_tokens
            return Ending("max_tokens" if cut else "model_context_window_exceeded")
        return Ending("end_turn") if finished.stop is None else Ending("stop_sequence", finished.stop)


@dataclass(frozen=True)
class Ending:
    """`stop_reason` and `stop_sequence`; both None while it goes on."""

    reason: str | None = None
    sequence: str | None = None

    @property
    def object(self) -> dict[str, object]:
        """As members of a message or of its last delta."""
        return {"stop_reason": self.reason, "stop_sequence": self.sequence, "stop_details": None}


def usage_object(usage: Usage) -> dict[str, object]:
    """Anthropic's usage."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


class Stream:
    """A streamed answer: message_start with the first output, a block after the other, message_delta, message_stop."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._begun = False
        self._prompt = Usage()
        self._index = -1
        self._kind: str | None = None  # of the open block
        self._thought: list[str] = []
        self._finished = Finished(frame.id, 0, "stop")

    def add(self, event: Event) -> bytes:
        """The server-sent events for one event."""
        match event:
            case Started():
                self._prompt = Usage(event.prompt_tokens, cached_tokens=event.cached_tokens)
            case Text() | CallBroken() if event.text:
                return self._in("text", {"text": ""}) + self._delta(b"text", event.text)
            case Reasoning() if event.text:
                return self._in("thinking", {"thinking": "", "signature": ""}) + self._think(event.text)
            case CallBegun():
                block: dict[str, object] = {"id": event.call_id, "name": event.name, "input": {}}
                return self._close() + self._in("tool_use", block)
            case CallArguments():
                return self._delta(b"partial_json", event.text)
            case Finished():
                self._finished = event
            case Done():
                return self._start() + self._close() + self._end(event.usage)
        return b""

    def _start(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return sse({"type": "message_start", "message": self._frame.message([], Ending(), self._prompt)})

    def _in(self, kind: str, block: dict[str, object]) -> bytes:
        """Open a block of this kind unless one is open."""
        if self._kind == kind:
            return b""
        closed = self._start() + self._close()
        self._index += 1
        self._kind = kind
        begun = {
            "type": "content_block_start",
            "index": self._index,
            "content_block": {"type": kind, **block},
        }
        return closed + sse(begun)

    def _think(self, text: str) -> bytes:
        self._thought.append(text)
        if self._frame.shows_thoughts:
            return self._delta(b"thinking", text)
        return b"" if len(self._thought) % SIGN_OF_LIFE else ANTHROPIC.heartbeat

    def _delta(self, member: bytes, text: str) -> bytes:
        name = b"input_json" if member == b"partial_json" else member
        return (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
            b'"delta":{"type":"%b_delta","%b":%b}}\n\n' % (self._index, name, member, _encode(text))
        )

    def _close(self) -> bytes:
        if self._kind is None:
            return b""
        signed = b""
        if self._kind == "thinking":
            signature = signature_of("".join(self._thought), shown=self._frame.shows_thoughts)
            signed = self._delta(b"signature", signature)
            self._thought = []
        self._kind = None
        return signed + sse({"type": "content_block_stop", "index": self._index})

    def _end(self, usage: Usage) -> bytes:
        ending = self._frame.ending(self._finished, usage)
        last = {"type": "message_delta", "delta": ending.object, "usage": usage_object(usage)}
        return sse(last) + sse({"type": "message_stop"})


@dataclass
class _Written:
    """A block as it is put together."""

    kind: str
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)

    def object(self, *, shows_thoughts: bool) -> dict[str, object]:
        text = "".join(self.pieces)
        if self.kind == "text":
            return {"type": "text", "text": text}
        if self.kind == "tool_use":
            return {"type": "tool_use", "id": self.id, "name": self.name, "input": input_of(text)}
        signature = signature_of(text, shown=shows_thoughts)
        return {"type": "thinking", "thinking": text if shows_thoughts else "", "signature": signature}


class Whole:
    """A whole answer: collects the blocks, and renders at `Done`."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._blocks: list[_Written] = []
        self._finished = Finished(frame.id, 0, "stop")

    def add(self, event: Event) -> bytes:
        """Nothing, until `Done` brings the body."""
        match event:
            case Text() if event.text:
                self._in("text").append(event.text)
            case Reasoning() if event.text:
                self._in("thinking").append(event.text)
            case CallBegun():
                self._blocks.append(_Written("tool_use", event.call_id, event.name))
            case CallArguments():
                self._blocks[-1].pieces.append(event.text)
            case CallBroken():
                if event.index is not None:
                    self._blocks.pop()
                if event.text:
                    self._in("text").append(event.text)
            case Finished():
                self._finished = event
            case Done():
                return self._body(event.usage)
        return b""

    def _in(self, kind: str) -> list[str]:
        if not self._blocks or self._blocks[-1].kind != kind:
            self._blocks.append(_Written(kind))
        return self._blocks[-1].pieces

    def _body(self, usage: Usage) -> bytes:
        content = [block.object(shows_thoughts=self._frame.shows_thoughts) for block in self._blocks]
        return _encode(self._frame.message(content, self._frame.ending(self._finished, usage), usage))


def input_of(text: str) -> object:
    """The input of a call; of one that was cut off, the members that are whole."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return msgspec.json.decode(_completed(text))


def _completed(text: str) -> str:
    """The beginning of a JSON object, cut where a value was whole last, and its brackets closed."""
    open_brackets: list[str] = []
    cut, closing = 0, "{}"
    quoted = escaped = False
    for place, character in enumerate(text):
        if quoted:
            quoted, escaped = escaped or character != '"', not escaped and character == "\\"
            continue
        if character in "{[":
            open_brackets.append("}" if character == "{" else "]")
        elif character in "}]":
            open_brackets.pop()
        quoted = character == '"'
        if character in "{}[],":
            cut, closing = place + (character != ","), "".join(reversed(open_brackets))
    return text[:cut] + closing
