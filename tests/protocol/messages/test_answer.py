"""Events as content blocks, streamed and whole: in order, valid by the SDK's types, and the same content both ways."""

import json
from collections.abc import Sequence

import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

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
from oxlo_local.client import EventDecoder
from oxlo_local.protocol.messages.answer import count_answer, input_of, renderer
from oxlo_local.protocol.messages.thinking import SEALED, signature_of
from tests.protocol.messages.asking import asked

STREAMED: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
USAGE = Usage(prompt_tokens=9, completion_tokens=5, cached_tokens=2, reasoning_tokens=1)


def text(words: str) -> Text:
    return Text("c", 0, words, 1)


def thought(words: str) -> Reasoning:
    return Reasoning("c", 0, words, 1)


def call(index: int, *pieces: str) -> list[Event]:
    begun = CallBegun("c", 0, index, f"call_{index}", "find", 1)
    return [begun, *(CallArguments("c", 0, index, piece, 1) for piece in pieces)]


def whole(events: Sequence[Event], usage: Usage = USAGE, /, **fields: object) -> dict[str, object]:
    """The body of an answer, which is valid."""
    answer = renderer(asked(**fields).request, "msg_1", "m")
    *before, last = [answer.add(event) for event in [Started("c", 9, 2), *events, Done("c", usage)]]
    assert not any(before)
    body = json.loads(last)
    Message.model_validate(body, strict=True)
    assert isinstance(body, dict)
    return body


def streamed(events: Sequence[Event], usage: Usage = USAGE, /, **fields: object) -> list[dict[str, object]]:
    """The events of a stream, each of which is valid and named."""
    answer = renderer(asked(stream=True, **fields).request, "msg_1", "m")
    data = b"".join(answer.add(event) for event in [Started("c", 9, 2), *events, Done("c", usage)])
    told = [json.loads(each) for each in EventDecoder().feed(data)]
    names = [line.removeprefix("event: ") for line in data.decode().splitlines() if line.startswith("event")]
    assert names == [each["type"] for each in told]
    for each in told:
        if each["type"] != "ping":
            STREAMED.validate_python(each)
    return told


def put_together(told: Sequence[dict[str, object]]) -> dict[str, object]:
    """The message that a stream tells of, by Anthropic's rules, checked on the way."""
    message: dict[str, object] = {}
    content: list[dict[str, object]] = []
    is_open = False
    for each in [one for one in told if one["type"] != "ping"]:
        match each:
            case {"type": "message_start", "message": dict(begun)}:
                assert not message and begun["content"] == [] and begun["stop_reason"] is None
                message = begun
            case {"type": "content_block_start", "index": int(index), "content_block": dict(block)}:
                assert not is_open and index == len(content)
                is_open = True
                content.append({**block, "pieces": ""})
            case {"type": "content_block_delta", "index": int(index), "delta": dict(delta)}:
                assert is_open and index == len(content) - 1
                grow(content[index], delta)
            case {"type": "content_block_stop", "index": int(index)}:
                assert is_open and index == len(content) - 1
                is_open = False
            case {"type": "message_delta", "delta": dict(delta), "usage": dict(usage)}:
                assert not is_open and isinstance(message["usage"], dict)
                message = {**message, **delta, "usage": {**message["usage"], **usage}}
            case {"type": "message_stop"}:
                assert each is told[-1]
            case _:
                raise AssertionError(each)
    return {**message, "content": [grown(block) for block in content]}


def grow(block: dict[str, object], delta: dict[str, object]) -> None:
    """Add a delta, which is of the block's own kind."""
    kinds = {
        "text": ["text_delta"],
        "thinking": ["thinking_delta", "signature_delta"],
        "tool_use": ["input_json_delta"],
    }
    (member,) = delta.keys() - {"type"}
    assert delta["type"] in kinds[str(block["type"])] and delta["type"] in (
        f"{member}_delta",
        "input_json_delta",
    )
    member = "pieces" if member == "partial_json" else member
    block[member] = f"{block[member]}{delta.get(member, delta.get('partial_json'))}"


def grown(block: dict[str, object]) -> dict[str, object]:
    """A block as it is when nothing more comes."""
    if block["type"] == "tool_use":
        block["input"] = input_of(str(block["pieces"]))
    return {name: value for name, value in block.items() if name != "pieces"}


# What models write: thoughts, words, and calls after each other, each in pieces; a last call may be cut off.
words = st.text("ab {\n🦙", min_size=0, max_size=3)
pieces = st.lists(words, min_size=1, max_size=4)
arguments = st.dictionaries(words, st.one_of(st.integers(), words, st.lists(words)), max_size=3).map(
    json.dumps
)


@st.composite
def written(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = [*map(thought, draw(st.one_of(st.just([]), pieces)))]
    for index in range(draw(st.integers(0, 3))):
        events += map(text, draw(pieces))
        given_text = draw(arguments)
        middle = draw(st.integers(0, len(given_text)))
        events += call(index, given_text[:middle], given_text[middle:])
    events += map(text, draw(st.one_of(st.just([]), pieces)))
    return [*events, Finished("c", 0, draw(st.sampled_from(["stop", "length", "tool_calls"])))]


@given(written(), st.sampled_from([None, "omitted"]))
def test_a_stream_and_a_whole_answer_say_the_same(events: list[Event], display: str | None) -> None:
    fields: dict[str, object] = {"thinking": {"type": "adaptive", "display": display}}
    assert put_together(streamed(events, **fields)) == whole(events, **fields)


def test_blocks_come_in_the_order_in_which_they_were_written() -> None:
    events: list[Event] = [
        thought("h"),
        thought("m"),
        text("Let "),
        text("me"),
        *call(0, '{"a"', ": 1}"),
        *call(1, "{}"),
        text("?"),
    ]
    body = whole([*events, Finished("c", 0, "tool_calls")])
    assert body["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": signature_of("hm", shown=True)},
        {"type": "text", "text": "Let me"},
        {"type": "tool_use", "id": "call_0", "name": "find", "input": {"a": 1}},
        {"type": "tool_use", "id": "call_1", "name": "find", "input": {}},
        {"type": "text", "text": "?"},
    ]  # fmt: skip
    assert body["stop_reason"] == "tool_use"


def test_arguments_are_streamed_as_they_come() -> None:
    told = streamed([*call(0, '{"a"', ": 1}"), Finished("c", 0, "tool_calls")])
    deltas = [each["delta"] for each in told if each["type"] == "content_block_delta"]
    assert deltas == [
        {"type": "input_json_delta", "partial_json": '{"a"'},
        {"type": "input_json_delta", "partial_json": ": 1}"},
    ]


@pytest.mark.parametrize(
    ("finished", "tokens", "reason", "sequence"),
    [
        (Finished("c", 0, "stop"), 5, "end_turn", None),
        (Finished("c", 0, "stop", "###"), 5, "stop_sequence", "###"),
        (Finished("c", 0, "tool_calls"), 5, "tool_use", None),
        (Finished("c", 0, "length"), 10, "max_tokens", None),
        (Finished("c", 0, "length"), 9, "model_context_window_exceeded", None),
    ],
)
def test_why_it_ended(finished: Finished, tokens: int, reason: str, sequence: str | None) -> None:
    body = whole([text("x"), finished], Usage(3, tokens), max_tokens=10)
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, sequence)
    last = streamed([text("x"), finished], Usage(3, tokens), max_tokens=10)[-2]
    assert last["delta"] == {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None}


def test_usage_counts_cached_tokens_apart() -> None:
    usage = whole([text("x"), Finished("c", 0, "stop")])["usage"]
    assert isinstance(usage, dict)
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (7, 2, 5)
    assert usage["output_tokens_details"] == {"thinking_tokens": 1}
    told = streamed([text("x"), Finished("c", 0, "stop")])
    first, last = told[0]["message"], told[-2]["usage"]
    assert isinstance(first, dict) and isinstance(last, dict)
    assert (first["usage"]["input_tokens"], first["usage"]["output_tokens"]) == (7, 0)
    assert last.items() <= usage.items()


def test_an_answer_without_a_word_is_empty() -> None:
    events: list[Event] = [text(""), Finished("c", 0, "length")]
    assert whole(events, max_tokens=0)["content"] == []
    assert [each["type"] for each in streamed(events)] == ["message_start", "message_delta", "message_stop"]


def test_nothing_is_streamed_before_the_first_output() -> None:
    answer = renderer(asked(stream=True).request, "msg_1", "m")
    assert answer.add(Started("c", 1, 0)) == b"" and b"message_start" in answer.add(text("x"))


def test_a_call_that_is_none_is_text() -> None:
    events: list[Event] = [
        text("a"),
        *call(0, '{"a":'),
        CallBroken("c", 0, 0, '<call>{"a": oh', 3),
        Finished("c", 0, "stop"),
    ]
    body = whole(events)
    assert body["content"] == [{"type": "text", "text": 'a<call>{"a": oh'}]
    assert body["stop_reason"] == "end_turn"
    message = put_together(streamed(events))
    content = message["content"]
    assert isinstance(content, list)
    assert [block["type"] for block in content] == ["text", "tool_use", "text"]
    assert content[1]["input"] == {} and message["stop_reason"] == "end_turn"
    never_begun: list[Event] = [CallBroken("c", 0, None, "<call>", 1), Finished("c", 0, "stop")]
    assert put_together(streamed(never_begun)) == whole(never_begun)


def test_a_thought_that_is_not_shown_is_in_the_signature_and_keeps_the_line_alive() -> None:
    thinking = {"type": "adaptive", "display": "omitted"}
    events: list[Event] = [*(thought("h") for _ in range(64)), text("x"), Finished("c", 0, "stop")]
    told = streamed(events, thinking=thinking)
    assert [each["type"] for each in told[:5]] == [
        "message_start",
        "content_block_start",
        "ping",
        "ping",
        "content_block_delta",
    ]
    signature = whole(events, thinking=thinking)["content"][0]["signature"]  # type: ignore[index]
    assert signature.startswith(SEALED)


def test_diagnostics_are_answered_when_asked_for() -> None:
    events: list[Event] = [text("x"), Finished("c", 0, "stop")]
    assert "diagnostics" not in whole(events)
    told = whole(events, diagnostics={"previous_message_id": None})["diagnostics"]
    assert told == {"cache_miss_reason": {"type": "unavailable"}}


@pytest.mark.parametrize(
    ("cut_off", "whole_members"),
    [
        ("", {}),
        ("{", {}),
        ('{"a', {}),
        ('{"a": "b', {}),
        ('{"a": "b}', {}),
        ('{"a": "b", ', {"a": "b"}),
        ('{"a": "\\",{", "b": [1, {"c": 2}, {"d', {"a": '",{', "b": [1, {"c": 2}, {}]}),
        ('{"a": {"b": 1}, "c": "x\\', {"a": {"b": 1}}),
    ],
)
def test_of_an_input_that_was_cut_off_the_whole_members_are_left(cut_off: str, whole_members: object) -> None:
    assert input_of(cut_off) == whole_members


def test_a_count() -> None:
    assert MessageTokensCount.model_validate_json(count_answer(7)).input_tokens == 7
