"""Tools and thinking through the stock SDK, on the embedded model: what it has to do is forced, not hoped for."""

import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

from tests.conftest import ROOT, RunningServer

FIND: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paint the wall.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "blue"]}, "coats": {"enum": [1, 2]}},
            "required": ["colour", "coats"],
            "additionalProperties": False,
        },
    },
}
REST: ChatCompletionFunctionToolParam = {"type": "function", "function": {"name": "rest"}}
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Paint the wall red, twice."}]


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[OpenAI]:
    if not (ROOT / "oxlo_local" / "embedded" / "oxlo-demo.gguf").is_file():
        pytest.skip("oxlo-demo.gguf has not been built: no model here has a chat template")
    with OpenAI(base_url=server.base_url, api_key="any", max_retries=0) as made:
        yield made


def check(arguments: str) -> None:
    value = json.loads(arguments)
    assert value.keys() == {"colour", "coats"}
    assert value["colour"] in ("red", "blue") and value["coats"] in (1, 2)


def test_a_named_function_is_called_with_valid_arguments_and_answered(
    client: OpenAI, server: RunningServer
) -> None:
    answer = client.chat.completions.create(
        model=server.model,
        messages=ASK,
        tools=[REST, FIND],
        tool_choice={"type": "function", "function": {"name": "paint"}},
        seed=1,
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "paint"
    check(call.function.arguments)
    result: ChatCompletionMessageParam = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    said: ChatCompletionMessageParam = choice.message.to_dict()  # type: ignore[assignment]
    after = client.chat.completions.create(
        model=server.model, messages=[*ASK, said, result], tools=[FIND], tool_choice="none", max_tokens=16
    )  # fmt: skip
    assert after.choices[0].message.content and not after.choices[0].message.tool_calls


def test_a_required_call_is_streamed_in_pieces(client: OpenAI, server: RunningServer) -> None:
    stream = client.chat.completions.create(
        model=server.model,
        messages=ASK,
        tools=[FIND],
        tool_choice="required",
        parallel_tool_calls=False,
        stream=True,
        temperature=1.5,
    )
    deltas = [choice.delta for chunk in stream for choice in chunk.choices]
    pieces = [call for delta in deltas for call in delta.tool_calls or ()]
    assert pieces[0].id and pieces[0].function and pieces[0].function.name == "paint"
    assert len(pieces) > 3
    check("".join(piece.function.arguments or "" for piece in pieces if piece.function))


def test_functions_as_they_were_called_first(client: OpenAI, server: RunningServer) -> None:
    answer = client.chat.completions.create(
        model=server.model,
        messages=ASK,
        functions=[FIND["function"]],
        function_call={"name": "paint"},
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "function_call" and choice.message.function_call is not None
    check(choice.message.function_call.arguments)


def test_an_answer_with_strict_tools_is_text_or_a_valid_call(client: OpenAI, server: RunningServer) -> None:
    answer = client.chat.completions.create(
        model=server.model, messages=ASK, tools=[FIND], n=4, temperature=1.3, max_tokens=200, seed=3
    )
    for choice in answer.choices:
        for call in choice.message.tool_calls or () if choice.finish_reason == "tool_calls" else ():
            assert call.type == "function"
            check(call.function.arguments)


def test_beside_tools_a_schema_holds_for_whatever_is_no_call(client: OpenAI, server: RunningServer) -> None:
    """Streamed: pieces of content are pieces of valid JSON, or there are none and a call."""
    stream = client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": "Bob is 3 and lives in Rome. Answer as JSON."}],
        tools=[FIND, REST],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": FIND["function"]["parameters"]},
        },
        n=4,
        temperature=1.2,
        max_tokens=120,
        seed=11,
        stream=True,
    )
    texts, called, ended = [""] * 4, [""] * 4, [""] * 4
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                called[choice.index] += (call.function and call.function.name) or ""
            ended[choice.index] = choice.finish_reason or ended[choice.index]
    for text, name, reason in zip(texts, called, ended, strict=True):
        assert bool(text.strip()) != bool(name)
        if text.strip() and reason == "stop":
            check(text)
    assert "stop" in ended or "tool_calls" in ended


def test_a_last_assistant_message_is_continued_unless_a_new_turn_is_asked_for(server: RunningServer) -> None:
    talk = [*ASK, {"role": "assistant", "content": "The wall is "}]

    def prompt(**fields: object) -> str:
        body = {"model": server.model, "messages": talk, **fields}
        answer = httpx.post(f"{server.url}/apply-template", json=body).raise_for_status()
        return str(answer.json()["prompt"])

    assert prompt().endswith("The wall is ") and prompt(continue_final_message=True) == prompt()
    after = prompt(continue_final_message=False)
    assert after.startswith(prompt().rstrip()) and len(after) > len(prompt()) + 10
    assert prompt(add_generation_prompt=True) == after
    body = {"model": server.model, "messages": ASK, "continue_final_message": True}
    refused = httpx.post(f"{server.base_url}/chat/completions", json=body)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "continue_final_message"


def test_a_model_that_does_not_think_refuses_to_be_told_how(client: OpenAI, server: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=server.model, messages=ASK, reasoning_effort="high")
    assert (caught.value.code, caught.value.param) == ("unsupported_value", "reasoning_effort")
    without = client.chat.completions.create(
        model=server.model, messages=ASK, reasoning_effort="none", max_tokens=4
    )
    assert without.usage is not None and without.usage.completion_tokens_details is not None
    assert without.usage.completion_tokens_details.reasoning_tokens == 0


def test_the_metrics_count_what_was_no_call(server: RunningServer) -> None:
    text = httpx.get(server.base_url.removesuffix("/v1") + "/metrics").text
    assert f'oxlo_broken_tool_calls_total{{model="{server.model}"}}' in text
    assert 'kind="reasoning"' in text
