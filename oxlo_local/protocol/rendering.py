"""The answers of /v1/chat/completions: events to chunks, or to the one answer.

A stream repeats everything but the text in each chunk. `Chunks` therefore encodes a chunk's head and tail once, and per
token only what is new. A call that turns out to be none (`CallBroken`) is content; what a stream has said of it by
then cannot be taken back, so that its arguments stay incomplete there.
"""

import msgspec

from oxlo_local.calls import (
    CallArguments,
    CallBegun,
    CallBroken,
    Done,
    Event,
    Finished,
    Reasoning,
    Text,
    TokenLogprob,
)
from oxlo_local.protocol import parts


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


def _reason(event: Finished, *, legacy: bool) -> str:
    return "function_call" if legacy and event.reason == "tool_calls" else event.reason


class _Call:
    """A call as it is put together."""

    def __init__(self, id: str, name: str) -> None:
        self.id = id
        self._name = name
        self.arguments: list[str] = []

    @property
    def function(self) -> dict[str, object]:
        return {"name": self._name, "arguments": "".join(self.arguments)}


class Chunks:
    """A streamed answer. The first chunk of each choice brings the role, the last its finish reason."""

    def __init__(
        self, head: parts.Head, *, logprobs: bool, include_usage: bool, legacy: bool = False
    ) -> None:
        encode = msgspec.json.encode
        self._open = (
            b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"service_tier":%b,'
            b'"system_fingerprint":%b,"choices":['
            % (
                encode(head.id),
                head.created,
                encode(head.model),
                encode(head.tier),
                encode(head.fingerprint),
            )
        )
        self._close = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._plain_close = b'},"logprobs":null,"finish_reason":null}' + self._close
        self._include_usage = include_usage
        self._logprobs = logprobs
        self._legacy = legacy
        self._text_open: dict[int, bytes] = {}  # of the choices that have begun

    def add(self, event: Event) -> bytes:
        """The chunks of one event, as server-sent events."""
        match event:
            case Text():
                return self._begun(event.choice) + self._text(event)
            case CallBroken():
                said = Text(event.id, event.choice, event.text, event.tokens)
                return self._begun(event.choice) + self._text(said)
            case Reasoning():
                said_text = msgspec.json.encode(event.text)
                return self._begun(event.choice) + self._delta(
                    event.choice, b'"reasoning_content":%b' % said_text
                )
            case CallBegun() | CallArguments():
                return self._begun(event.choice) + self._delta(event.choice, self._call(event))
            case Finished():
                return self._begun(event.choice) + self._choice(
                    b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b}'
                    % (event.choice, msgspec.json.encode(_reason(event, legacy=self._legacy)))
                )
            case Done():
                return self._last(event)
            case _:
                return b""

    def _delta(self, choice: int, members: bytes) -> bytes:
        return self._open + b'{"index":%d,"delta":{%b' % (choice, members) + self._plain_close

    def _call(self, event: CallBegun | CallArguments) -> bytes:
        encode = msgspec.json.encode
        if isinstance(event, CallBegun):
            function = b'{"name":%b,"arguments":""}' % encode(event.name)
            head = b'"id":%b,"type":"function",' % encode(event.call_id)
        else:
            function, head = b'{"arguments":%b}' % encode(event.text), b""
        if self._legacy:
            return b'"function_call":' + function
        return b'"tool_calls":[{"index":%d,%b"function":%b}]' % (event.index, head, function)

    def _choice(self, choice: bytes) -> bytes:
        return self._open + choice + self._close

    def _begun(self, choice: int) -> bytes:
        """The first chunk of a choice, and of those before it: clients count the choices as they begin."""
        begun = len(self._text_open)
        return b"".join(map(self._first, range(begun, choice + 1))) if choice >= begun else b""

    def _first(self, choice: int) -> bytes:
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

    def __init__(self, head: parts.Head, *, choices: int, logprobs: bool, legacy: bool = False) -> None:
        self._head = head
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._tokens: list[list[TokenLogprob]] = [[] for _ in range(choices)]
        self._reasons: list[str] = ["stop"] * choices
        self._logprobs = logprobs
        self._legacy = legacy
        self._thoughts: list[list[str]] = [[] for _ in range(choices)]
        self._calls: list[dict[int, _Call]] = [{} for _ in range(choices)]

    def add(self, event: Event) -> bytes:
        """Nothing, until `Done` brings the body."""
        match event:
            case Text():
                self._texts[event.choice].append(event.text)
                self._tokens[event.choice].extend(event.logprobs)
            case Reasoning():
                self._thoughts[event.choice].append(event.text)
            case CallBegun():
                self._calls[event.choice][event.index] = _Call(event.call_id, event.name)
            case CallArguments():
                self._calls[event.choice][event.index].arguments.append(event.text)
            case CallBroken():
                self._texts[event.choice].append(event.text)
                if event.index is not None:
                    del self._calls[event.choice][event.index]
            case Finished():
                self._reasons[event.choice] = _reason(event, legacy=self._legacy)
            case Done():
                return self._body(event)
            case _:
                pass
        return b""

    def _message(self, index: int) -> dict[str, object]:
        text, calls = "".join(self._texts[index]), list(self._calls[index].values())
        message: dict[str, object] = {
            "role": "assistant",
            "content": None if calls and not text.strip() else text,
            "refusal": None,
        }
        if self._thoughts[index]:
            message["reasoning_content"] = "".join(self._thoughts[index])
        if calls and self._legacy:
            message["function_call"] = calls[0].function
        elif calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": call.function} for call in calls
            ]
        return message

    def _body(self, event: Done) -> bytes:
        choices: list[dict[str, object]] = [
            {
                "index": index,
                "message": self._message(index),
                "logprobs": _logprobs_object(self._tokens[index]) if self._logprobs else None,
                "finish_reason": reason,
            }
            for index, reason in enumerate(self._reasons)
        ]
        answer = parts.answer_object(self._head, "chat.completion", choices, event.usage)
        return msgspec.json.encode({**answer, "service_tier": self._head.tier})
