"""Is an exchange well formed? Bodies are held against OpenAI's own shapes, and a stream against the rules of streams.

The shapes are the judges of the test suite (tests/openai_description.py): OpenAI's description where it is here, and
the types of its Python SDK, read strictly. The rules of a stream are those that clients put answers together by.
"""

import base64
import json
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from client_suites.wire import Exchange
from tests.openai_description import judge, judge_completion_chunk

Object = Mapping[str, object]

WHOLE = {
    "/v1/chat/completions": "CreateChatCompletionResponse",
    "/v1/completions": "CreateCompletionResponse",
    "/v1/embeddings": "CreateEmbeddingResponse",
}


def faults(exchange: Exchange) -> list[str]:
    """What is wrong with an answer, in a line each; empty when it is well formed. The request is the client's own."""
    try:
        return list(_faults(exchange))
    except Exception as error:  # whatever a judge or a reader of malformed bytes says
        return [f"{type(error).__name__}: {str(error)[:400]}"]


def _faults(exchange: Exchange) -> Iterator[str]:
    streamed = exchange.content_type.startswith("text/event-stream")
    if exchange.status >= 400:
        judge("ErrorResponse", json.loads(exchange.answered))
    elif streamed:
        yield from _stream_faults(exchange)
    elif not exchange.whole:
        return
    elif exchange.path in WHOLE:
        body = json.loads(exchange.answered)
        judge(WHOLE[exchange.path], _in_floats(body) if exchange.path == "/v1/embeddings" else body)
        if exchange.path == "/v1/chat/completions":
            for choice in body["choices"]:
                yield from _calls_faults(choice["message"].get("tool_calls"), choice["finish_reason"])
    elif exchange.path.startswith("/v1/models/"):
        judge("Model", json.loads(exchange.answered))


def _in_floats(body: Object) -> Object:
    """An answer with base64 vectors as floats: OpenAI describes only those, though its SDKs ask for the others."""
    data = body["data"]
    assert isinstance(data, list)
    plain = [
        {**item, "embedding": _floats(item["embedding"])} if isinstance(item["embedding"], str) else item
        for item in data
    ]
    return {**body, "data": plain}


def _floats(packed: str) -> list[float]:
    return list(array("f", base64.b64decode(packed, validate=True)))


def _stream_faults(exchange: Exchange) -> Iterator[str]:
    text = exchange.answered.decode()
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    if not exchange.whole:
        blocks = blocks[:-1]  # it may be cut
    elif not blocks or blocks.pop() != "data: [DONE]" or not text.endswith("\n\n"):
        yield "the stream does not end with [DONE]"
    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks]
    if exchange.path == "/v1/completions":
        for chunk in chunks:
            judge_completion_chunk(chunk)
    else:
        yield from _chat_faults(exchange, chunks)


def _chat_faults(exchange: Exchange, chunks: list[dict[str, Any]]) -> Iterator[str]:
    """Rules for the chunks of a chat as a whole; they are JSON of any shape until they have been judged."""
    for chunk in chunks:
        judge("CreateChatCompletionStreamResponse", chunk)
    if len({chunk["id"] for chunk in chunks}) > 1:
        yield "chunks of one stream have several ids"
    wanted = json.loads(exchange.asked).get("stream_options") or {}
    if exchange.whole and wanted.get("include_usage"):
        if not chunks or chunks[-1]["choices"] or not chunks[-1].get("usage"):
            yield "usage was asked for, and the last chunk does not bring it"
    deltas: dict[int, list[Object]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        if choice["index"] > len(deltas):
            yield "a choice begins before one with a lower index"
        deltas.setdefault(choice["index"], []).append(choice)
    for choices in deltas.values():
        yield from _choice_faults(choices, whole=exchange.whole)


def _choice_faults(choices: list[Object], *, whole: bool) -> Iterator[str]:
    """Rules for one choice of a stream: a role first, a reason last, every call named before its arguments."""
    reasons = [choice["finish_reason"] for choice in choices]
    if any(reasons[:-1]):
        yield "something follows a finish_reason"
    if whole and not reasons[-1]:
        yield "a choice ends without a finish_reason"
    calls: dict[int, dict[str, object]] = {}
    for place, choice in enumerate(choices):
        delta = choice["delta"]
        assert isinstance(delta, dict)
        if ("role" in delta) != (place == 0):
            yield "the role is in the first chunk of a choice, and there only"
        for call in delta.get("tool_calls") or ():
            index, function = call["index"], call["function"]
            if index not in calls:
                if index != len(calls) or not call.get("id") or not function.get("name"):
                    yield "a call does not begin with the next index, an id and a name"
                calls[index] = {
                    "id": call.get("id"),
                    "function": {"name": function.get("name"), "arguments": ""},
                }
            held = calls[index]["function"]
            assert isinstance(held, dict)
            held["arguments"] += function.get("arguments") or ""
    if whole:
        yield from _calls_faults(list(calls.values()) or None, reasons[-1])


def _calls_faults(calls: list[Object] | None, reason: object) -> Iterator[str]:
    """Rules for the calls of a finished choice. Those that max_tokens cut may be incomplete."""
    if reason == "tool_calls" and not calls:
        yield "finish_reason tool_calls without a call"
    if not calls:
        return
    if reason not in ("tool_calls", "length", "stop"):
        yield f"calls end with finish_reason {reason}"
    if len({call["id"] for call in calls}) < len(calls):
        yield "two calls have the same id"
    for call in calls if reason == "tool_calls" else ():
        function = call["function"]
        assert isinstance(function, dict)
        if not isinstance(json.loads(str(function["arguments"])), dict):
            yield "the arguments of a call are no object"
