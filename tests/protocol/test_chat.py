import json
from typing import Literal

import pytest
from msgspec.structs import replace

from oxlo_local.calls import (
    Event,
    Message,
    ModelFacts,
    Sampling,
    Text,
    TextCall,
    TextOptions,
    TokenLogprob,
)
from oxlo_local.errors import BadRequest, UnknownParameter, UnsupportedValue
from oxlo_local.protocol import chat
from tests.openai_description import events_of, judge
from tests.protocol.events import DONE, HEAD, rendered, spoken, token

HELLO = {"role": "user", "content": "hello"}


def body(*messages: object, **fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": messages or [HELLO], **fields}).encode()


def request(*messages: object, **fields: object) -> chat.ChatRequest:
    return chat.decode(body(*messages, **fields), strict=True)[0]


def call(*messages: object, **fields: object) -> TextCall:
    return chat.to_call(request(*messages, **fields), {}, "chatcmpl-1")


def test_a_bare_request_is_a_bare_call() -> None:
    assert call() == TextCall(id="chatcmpl-1", messages=[Message("user", "hello")])


def test_every_field_reaches_the_call() -> None:
    made = call(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, typical_p=0.95, repeat_penalty=1.1, repeat_last_n=-1,
        frequency_penalty=0.1, presence_penalty=0.2, mirostat_mode=2, mirostat_tau=4, mirostat_eta=0.2, seed=42,
        logit_bias={"7": 5}, stop=["a", "b"], n=3, max_completion_tokens=9, logprobs=True, top_logprobs=4,
        truncation="auto",
    )  # fmt: skip
    assert made.sampling == Sampling(0.5, 0.9, 40, 0.05, 0.95, 1.1, -1, 0.1, 0.2, 2, 4.0, 0.2, 42, {7: 5.0})
    assert (made.stop, made.n, made.max_tokens, made.logprobs, made.truncate) == (["a", "b"], 3, 9, 4, True)


def test_logprobs_without_candidates_are_still_asked_for() -> None:
    assert call(logprobs=True).logprobs == 0
    assert call(logprobs=False).logprobs is None


def test_roles_and_text_parts() -> None:
    made = call(
        {"role": "developer", "content": "be brief"},
        {"role": "system", "content": "be kind", "name": "house"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "never"}], "tool_calls": []},
        {"role": "user", "content": ""},
    )
    assert made.messages == [
        Message("system", "be brief"),
        Message("system", "be kind", "house"),
        Message("user", "one\ntwo"),
        Message("assistant", "no"),
        Message("assistant", "never"),
        Message("user", ""),
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[0].audio"),
        (
            {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_audio"}]},
            "messages[0].content[1].type",
        ),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "b\u00e4r\n"}]}, "messages[0].content[0].type"),
    ],
)
def test_what_later_work_brings_is_refused_until_then(message: object, param: str) -> None:
    with pytest.raises(UnsupportedValue) as caught:
        request(message)
    assert caught.value.param == param
    assert caught.value.message.isascii()


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (({"role": "user"},), "messages[0].content"),
        ((HELLO, {"role": "assistant", "content": None}), "messages[1].content"),
        (({"role": "user", "content": []},), "messages[0].content"),
        (({"role": "user", "content": [{"type": "text"}]},), "messages[0].content[0].text"),
        (({"role": "user", "content": "x", "refusal": "no"},), "messages[0].refusal"),
        (("hello",), "messages[0]"),
        (({**HELLO, "name": "n" * 257},), "messages[0].name"),
    ],
)
def test_a_wrong_message_is_named(messages: tuple[object, ...], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        request(*messages)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"safety_identifier": "x" * 65}, "safety_identifier"),
        ({"prompt_cache_key": 5}, "prompt_cache_key"),
    ],
)
def test_a_wrong_field_of_chat_is_named(fields: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        request(**fields)
    assert caught.value.param == param


def test_a_candidate_count_of_none_asks_for_nothing() -> None:
    assert call(top_logprobs=0).logprobs is None


@pytest.mark.parametrize(
    ("asked", "tier"),
    [
        (None, None),
        ("auto", None),
        ("priority", "priority"),
        ("default", "standard"),
        ("flex", "batch"),
    ],
)
def test_a_tier_is_said_in_the_keys_words(asked: str | None, tier: chat.Tier | None) -> None:
    assert request(service_tier=asked).tier == tier
    assert tier is None or chat.tier_name(tier) == asked


@pytest.mark.parametrize("content", ["x", [{"type": "text", "text": "x"}]])
def test_a_prediction_is_part_of_the_call(content: object) -> None:
    sent = body(prediction={"type": "content", "content": content})
    for strict in (False, True):
        asked, warnings = chat.decode(sent, strict=strict)
        assert not warnings
        assert chat.to_call(asked, {}, "chatcmpl-1") == replace(call(), prediction="x")


@pytest.mark.parametrize(("speculation", "heard"), [("none", False), ("lookup", True), (None, True)])
def test_a_prediction_is_not_ignored_in_silence(
    speculation: Literal["none", "lookup"] | None, heard: bool
) -> None:
    asked = request(prediction={"type": "content", "content": "x"})
    facts = ModelFacts("llama", 512, 4, options=TextOptions(speculation=speculation))
    assert ["prediction" in warning for warning in chat.in_vain(asked, facts)] == ([] if heard else [True])
    assert chat.in_vain(request(), facts) == []


ASSISTANT = {"role": "assistant", "content": "It is"}


@pytest.mark.parametrize(
    ("messages", "fields", "new_turn"),
    [
        ((HELLO, ASSISTANT), {}, False),
        ((HELLO, ASSISTANT), {"continue_final_message": True}, False),
        ((HELLO, ASSISTANT), {"continue_final_message": True, "add_generation_prompt": False}, False),
        ((HELLO, ASSISTANT), {"continue_final_message": False}, True),
        ((HELLO, ASSISTANT), {"add_generation_prompt": True}, True),
        ((HELLO,), {"continue_final_message": False}, False),
    ],
)
def test_a_last_assistant_message_is_continued_or_answered(
    messages: tuple[object, ...], fields: dict[str, object], new_turn: bool
) -> None:
    assert call(*messages, **fields).new_turn is new_turn


@pytest.mark.parametrize("fields", [{"continue_final_message": True}, {"add_generation_prompt": False}])
def test_what_a_user_says_cannot_be_continued(fields: dict[str, object]) -> None:
    with pytest.raises(BadRequest) as caught:
        request(**fields)
    assert caught.value.param in fields


def test_unknown_fields_are_named_wherever_they_are() -> None:
    sent = body(
        {**HELLO, "mood": 1},
        {"role": "user", "content": [{"type": "text", "text": "x", "detail": "high", "prompt_cache_breakpoint": {}}]},
        n_predict=5,
        stream=True,
        stream_options={"include_usage": True, "speed": 1},
    )  # fmt: skip
    _, warnings = chat.decode(sent, strict=False)
    named = ["n_predict", "stream_options.speed", "messages[0].mood", "messages[1].content[0].detail"]
    assert warnings == [f'unknown field "{name}" has no effect' for name in named]
    with pytest.raises(UnknownParameter) as caught:
        chat.decode(sent, strict=True)
    assert caught.value.param == "n_predict"


# -- answers ----------------------------------------------------------------------------------------------------------


def streamed(events: list[Event], **fields: object) -> list[dict[str, object]]:
    renderer = chat.renderer(request(stream=True, **fields), HEAD)
    return events_of(rendered(renderer, events))


def test_a_stream_says_role_text_reason_and_done() -> None:
    chunks = streamed([*spoken("Hel", 'lo "you"\n', "\u20ac"), DONE])
    for chunk in chunks:
        judge("CreateChatCompletionStreamResponse", chunk)
    choices = [chunk["choices"][0] for chunk in chunks]  # type: ignore[index]
    assert choices[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == 'Hello "you"\n\u20ac'
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, None, "stop"]
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        ("x-1", 1_700_000_000, "some model")
    }
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_is_asked_for_and_comes_last() -> None:
    chunks = streamed([*spoken("a"), DONE], stream_options={"include_usage": True})
    for chunk in chunks:
        judge("CreateChatCompletionStreamResponse", chunk)
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None, None, None]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 12  # type: ignore[index]


def test_choices_are_told_apart_in_a_stream() -> None:
    events = [*spoken("a", choice=1), *spoken("b", "c", choice=0), DONE]
    choices = [chunk["choices"][0] for chunk in streamed(events, n=2)]  # type: ignore[index]
    said = {
        index: "".join(c["delta"].get("content", "") for c in choices if c["index"] == index)
        for index in (0, 1)
    }
    assert said == {0: "bc", 1: "a"}
    assert sum("role" in choice["delta"] for choice in choices) == 2


def test_a_choice_that_says_nothing_still_has_a_role_and_an_end() -> None:
    chunks = streamed([*spoken(""), DONE])
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]  # type: ignore[index]


def test_streamed_logprobs_come_with_their_text() -> None:
    chunks = streamed([*spoken("a", "b", logprobs=True), DONE], logprobs=True, top_logprobs=2)
    for chunk in chunks:
        judge("CreateChatCompletionStreamResponse", chunk)
    tables = [chunk["choices"][0]["logprobs"] for chunk in chunks]  # type: ignore[index]
    assert tables[0] is None and tables[-1] is None
    first = tables[1]["content"][0]
    assert (first["token"], first["bytes"], first["logprob"]) == ("a", [97], -0.5)
    assert first["top_logprobs"][1]["logprob"] == -9999.0


def answer(events: list[Event], **fields: object) -> dict[str, object]:
    value = json.loads(rendered(chat.renderer(request(**fields), HEAD), events))
    assert isinstance(value, dict)
    judge("CreateChatCompletionResponse", value)
    return value


def test_a_whole_answer_collects_its_choices() -> None:
    value = answer([*spoken("a", choice=1), *spoken("b", "\u20ac", choice=0), DONE], n=2)
    choices = value["choices"]
    assert isinstance(choices, list)
    assert [choice["message"]["content"] for choice in choices] == ["b\u20ac", "a"]
    assert [choice["index"] for choice in choices] == [0, 1]
    assert value["object"] == "chat.completion" and value["service_tier"] == "default"
    assert value["usage"]["prompt_tokens_details"]["cached_tokens"] == 2  # type: ignore[index]


def test_a_whole_answer_has_logprobs_if_asked() -> None:
    half = TokenLogprob("\ufffd", [0xE2], -1.0, [])
    events = [Text("c", 0, "", 1, [half]), *spoken("\u20ac", logprobs=True), DONE]
    choices = answer(events, logprobs=True)["choices"]
    assert isinstance(choices, list)
    assert [entry["bytes"] for entry in choices[0]["logprobs"]["content"]] == [
        [0xE2],
        list("\u20ac".encode()),
    ]
    assert choices[0]["logprobs"]["refusal"] is None
    assert answer([*spoken("a"), DONE])["choices"][0]["logprobs"] is None  # type: ignore[index]


def test_nothing_is_sent_of_a_whole_answer_before_it_is_whole() -> None:
    renderer = chat.renderer(request(), HEAD)
    assert rendered(renderer, spoken("a", "b")) == b""
    assert token("a").logprob == -0.5
