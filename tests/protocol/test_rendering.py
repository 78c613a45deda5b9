"""Answers with reasoning and calls, streamed and whole, by OpenAI's own description."""

import json

import pytest

from oxlo_local.calls import CallArguments, CallBegun, CallBroken, Event, Finished, Reasoning, Text
from oxlo_local.protocol import chat
from tests.openai_description import events_of, judge
from tests.protocol.events import DONE, HEAD, rendered
from tests.protocol.test_chat import HELLO, request

FUNCTION = {"name": "find", "parameters": {"type": "object"}}
EMPTY = {"name": "find", "arguments": ""}
TOOL = {"type": "function", "function": FUNCTION}
EVENTS: list[Event] = [
    Reasoning("c", 0, "Where ", 2),
    Reasoning("c", 0, "is it?", 2),
    Text("c", 0, "I look.", 3),
    CallBegun("c", 0, 0, "call_1", "find", 4),
    CallArguments("c", 0, 0, '{"place": ', 1),
    CallArguments("c", 0, 0, '"Oslo"}', 1),
    CallBegun("c", 0, 1, "call_2", "find", 4),
    CallArguments("c", 0, 1, "{}", 1),
    Finished("c", 0, "tool_calls"),
    DONE,
]
ONE = [*EVENTS[:6], *EVENTS[8:]]


def streamed(events: list[Event], **fields: object) -> list[dict[str, object]]:
    asked = request(HELLO, stream=True, **fields)
    chunks = events_of(rendered(chat.renderer(asked, HEAD), events))
    for chunk in chunks:
        judge("CreateChatCompletionStreamResponse", chunk)
    return [chunk["choices"][0] for chunk in chunks]  # type: ignore[index]


def whole(events: list[Event], **fields: object) -> dict[str, object]:
    body = json.loads(rendered(chat.renderer(request(HELLO, **fields), HEAD), events))
    judge("CreateChatCompletionResponse", body)
    (choice,) = body["choices"]
    return choice  # type: ignore[no-any-return]


def test_a_stream_brings_reasoning_content_and_arguments_as_they_come() -> None:
    choices = streamed(EVENTS, tools=[TOOL])
    deltas = [choice["delta"] for choice in choices]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert deltas[1:-1] == [
        {"reasoning_content": "Where "},
        {"reasoning_content": "is it?"},
        {"content": "I look."},
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": EMPTY}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"place": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]},
        {"tool_calls": [{"index": 1, "id": "call_2", "type": "function", "function": EMPTY}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
    ]  # fmt: skip
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_a_whole_answer_has_them_put_together() -> None:
    choice = whole(EVENTS, tools=[TOOL])
    assert choice["message"] == {
        "role": "assistant",
        "content": "I look.",
        "refusal": None,
        "reasoning_content": "Where is it?",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "find", "arguments": '{"place": "Oslo"}'},
            },
            {"id": "call_2", "type": "function", "function": {"name": "find", "arguments": "{}"}},
        ],
    }
    assert choice["finish_reason"] == "tool_calls"


def test_the_old_form_has_one_call() -> None:
    choice = whole(ONE, functions=[FUNCTION])
    assert choice["message"]["function_call"] == {"name": "find", "arguments": '{"place": "Oslo"}'}  # type: ignore[index]
    assert choice["finish_reason"] == "function_call"
    choices = streamed(ONE, functions=[FUNCTION])
    calls = [c["delta"]["function_call"] for c in choices if "function_call" in c["delta"]]  # type: ignore[index, operator]
    assert calls == [{"name": "find", "arguments": ""}, {"arguments": '{"place": '}, {"arguments": '"Oslo"}'}]
    assert choices[-1]["finish_reason"] == "function_call"


def test_an_answer_that_only_calls_has_no_content() -> None:
    assert whole(EVENTS[3:], tools=[TOOL])["message"]["content"] is None  # type: ignore[index]


@pytest.mark.parametrize("index", [None, 0])
def test_a_call_that_is_none_is_content(index: int | None) -> None:
    begun: list[Event] = [] if index is None else [CallBegun("c", 0, 0, "call_1", "find", 1)]
    events = [*begun, CallBroken("c", 0, index, "<tool_call>no", 1), Finished("c", 0, "stop"), DONE]
    message = whole(events, tools=[TOOL])["message"]
    assert message == {"role": "assistant", "content": "<tool_call>no", "refusal": None}
    assert streamed(events, tools=[TOOL])[-2]["delta"] == {"content": "<tool_call>no"}


def test_choices_begin_in_order_whichever_speaks_first() -> None:
    """OpenAI's SDK puts a choice that is new to it at the end of its list, whatever its index says."""
    events: list[Event] = [
        Text("c", 1, "second", 1),
        Text("c", 0, "first", 1),
        *(Finished("c", choice, "stop") for choice in (2, 1, 0)),
        DONE,
    ]
    choices = streamed(events, n=3)
    assert [choice["index"] for choice in choices] == [0, 1, 1, 0, 2, 2, 1, 0]
    firsts = [{"role": "assistant", "content": "", "refusal": None}] * 2
    assert [choice["delta"] for choice in choices][:4] == [
        *firsts,
        {"content": "second"},
        {"content": "first"},
    ]
