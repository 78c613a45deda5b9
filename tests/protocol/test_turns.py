"""Conversations with calls and results: what reaches the engine, and what is refused."""

import pytest

from oxlo_local.calls import Message, ToolCall
from oxlo_local.errors import BadRequest, UnsupportedValue
from tests.protocol.test_chat import call, request

ASK = {"role": "user", "content": "where?"}


def called(*ids: str, **more: object) -> dict[str, object]:
    calls = [{"id": id, "type": "function", "function": {"name": "find", "arguments": "{}"}} for id in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls, **more}


def result(id: str, content: object = "north") -> dict[str, object]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def test_calls_and_results_reach_the_call() -> None:
    made = call(
        ASK,
        called("a", "b", reasoning_content="Hm."),
        result("b"),
        result("a", [{"type": "text", "text": "x"}]),
    )
    assert made.messages == [
        Message("user", "where?"),
        Message(
            "assistant", "", tool_calls=[ToolCall("a", "find", "{}"), ToolCall("b", "find", "{}")], reasoning="Hm."
        ),
        Message("tool", "north", tool_call_id="b"),
        Message("tool", "x", tool_call_id="a"),
    ]  # fmt: skip


def test_the_old_form_of_a_call_and_its_result() -> None:
    old = {"role": "assistant", "content": None, "function_call": {"name": "find", "arguments": ""}}
    made = call(ASK, old, {"role": "function", "name": "find", "content": "north"})
    assert made.messages is not None
    assert made.messages[1:] == [
        Message("assistant", "", tool_calls=[ToolCall("function_1", "find", "{}")]),
        Message("tool", "north", "find", tool_call_id="function_1"),
    ]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([result("a")], "messages[1].tool_call_id"),
        ([called("a"), result("b")], "messages[2].tool_call_id"),
        ([called("a"), result("a"), result("a")], "messages[3].tool_call_id"),
        ([called("a")], "messages[1].tool_calls[0]"),
        ([called("a", "b"), result("a"), ASK], "messages[1].tool_calls[1]"),
        ([called("a", "a"), result("a")], "messages[1].tool_calls"),
        ([{"role": "tool", "content": "x"}], "messages[1].tool_call_id"),
        ([{"role": "function", "name": "f", "content": "x"}], "messages[1].role"),
        ([{**ASK, "tool_call_id": "a"}], "messages[1].tool_call_id"),
        ([{**ASK, "tool_calls": called("a")["tool_calls"]}], "messages[1].tool_calls"),
        ([{**ASK, "reasoning_content": "x"}], "messages[1].reasoning_content"),
        ([called("a", function_call={"name": "f", "arguments": "{}"})], "messages[1].function_call"),
        (
            [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "[1]"}}],
                }
            ],
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            [
                {
                    "role": "assistant",
                    "function_call": {"name": "f", "arguments": '{"a":' + "[" * 400 + "]" * 400 + "}"},
                }
            ],
            "messages[1].function_call.arguments",
        ),
        (
            [{"role": "assistant", "function_call": {"name": "f", "arguments": "no"}}],
            "messages[1].function_call.arguments",
        ),
        ([{"role": "assistant", "tool_calls": [{"id": "a"}]}], "messages[1].tool_calls[0].function"),
        ([{"role": "assistant", "tool_calls": []}], "messages[1].content"),
    ],
)
def test_what_does_not_fit_together_is_named(messages: list[object], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        request(ASK, *messages)
    assert caught.value.param == param


def test_custom_calls_are_refused() -> None:
    with pytest.raises(UnsupportedValue) as caught:
        request(ASK, {"role": "assistant", "tool_calls": [{"id": "a", "type": "custom"}]})
    assert caught.value.param == "messages[1].tool_calls[0].type"
