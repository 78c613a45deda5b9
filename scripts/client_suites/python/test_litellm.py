"""LiteLLM as aider uses it: the openai/ prefix, streams put together again, tools, schemas, embeddings, its errors."""

import json

import litellm
import pytest
from pydantic import BaseModel

PERSON = "Give me JSON: Ada is 36 years old and lives in London."
WEATHER = "What is the weather in Paris?"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Person(BaseModel):
    """Who somebody is."""

    name: str
    age: int
    city: str


@pytest.fixture
def model(chat) -> str:
    """The chat model as LiteLLM names it."""
    return f"openai/{chat}"


def asked(text: str) -> list[dict[str, str]]:
    """One question after a system message, as editors ask it."""
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def test_completion(model):
    answer = litellm.completion(
        model=model, messages=asked("How do I pull a model?"), temperature=0, num_retries=0
    )
    assert answer.choices[0].message.content and answer.usage.total_tokens > 0


def test_a_stream_is_put_together(model):
    messages = asked("How do I pull a model?")
    whole = litellm.completion(model=model, messages=messages, temperature=0)
    chunks = list(litellm.completion(model=model, messages=messages, temperature=0, stream=True))
    again = litellm.stream_chunk_builder(chunks, messages=messages)
    assert again.choices[0].message.content == whole.choices[0].message.content
    assert again.choices[0].finish_reason == "stop"


async def test_async_stream(model):
    stream = await litellm.acompletion(model=model, messages=asked("Hello!"), stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_tool(model, stream):
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = litellm.completion(
        model=model, messages=asked(WEATHER), tools=[TOOL], tool_choice=choice, temperature=0, stream=stream
    )
    if stream:
        answer = litellm.stream_chunk_builder(list(answer))
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and isinstance(
        json.loads(call.function.arguments)["city"], str
    )


def test_a_function_as_editors_ask_for_edits(model):
    function = {"name": "replace_lines", "parameters": Person.model_json_schema()}
    answer = litellm.completion(
        model=model,
        messages=asked(PERSON),
        functions=[function],
        function_call={"name": "replace_lines"},
        temperature=0,
    )
    assert Person.model_validate_json(answer.choices[0].message.function_call.arguments)


def test_a_schema(model):
    schema = {
        "name": "person",
        "schema": Person.model_json_schema() | {"additionalProperties": False},
        "strict": True,
    }
    answer = litellm.completion(
        model=model,
        messages=asked(PERSON),
        response_format={"type": "json_schema", "json_schema": schema},
        temperature=0,
    )
    assert Person.model_validate_json(answer.choices[0].message.content)


def test_embeddings(embedder):
    answer = litellm.embedding(model=f"openai/{embedder}", input=["one", "two"])
    assert [item["index"] for item in answer.data] == [0, 1]


def test_errors_are_its_own(model):
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/no-such-model", messages=asked("Hello!"), num_retries=0)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(model=model, messages=asked("word " * 300_000), num_retries=0)
