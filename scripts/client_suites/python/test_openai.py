"""OpenAI's Python SDK: what it builds on plain requests: parsing, stream events, tools, raw answers, async."""

import base64
import json
import os
import struct
from typing import Annotated, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field

PERSON = "Give me JSON: Ada is 36 years old and lives in London."


class Person(BaseModel):
    """Who somebody is."""

    name: str
    age: int
    city: str


class get_weather(BaseModel):  # the function's name
    """Get the current weather in a city."""

    city: str


class Step(BaseModel):
    """A step, nested."""

    explanation: str = Field(max_length=20)
    output: str = Field(max_length=20)


class Working(BaseModel):
    """A list of objects, an enum, a union and a bound."""

    steps: list[Step] = Field(max_length=2)
    mood: Literal["good", "bad"]
    remark: Annotated[str, Field(max_length=20)] | None
    count: int = Field(ge=1, le=3)


@pytest.fixture(scope="module")
def client():
    """The SDK as it comes; address and key are in the environment."""
    with OpenAI(max_retries=0) as made:
        yield made


@pytest.fixture
async def aclient():
    """The asynchronous SDK."""
    async with AsyncOpenAI(max_retries=0) as made:
        yield made


def asked(text: str) -> list[ChatCompletionMessageParam]:
    """One question."""
    return [{"role": "user", "content": text}]


def test_create(client, chat):
    answer = client.chat.completions.create(
        model=chat, messages=asked("How do I pull a model?"), temperature=0
    )
    assert answer.choices[0].message.content and answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


def test_parse(client, chat):
    answer = client.chat.completions.parse(
        model=chat, messages=asked(PERSON), response_format=Person, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_parse_understands_the_sentence(client, chat):
    answer = client.chat.completions.parse(
        model=chat, messages=asked(PERSON), response_format=Person, temperature=0
    )
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36, city="London")


def test_parse_of_a_rich_schema(client, chat):
    answer = client.chat.completions.parse(
        model=chat, messages=asked("Solve 1 + 1."), response_format=Working, temperature=0, max_tokens=600
    )
    parsed = answer.choices[0].message.parsed
    assert parsed.mood in ("good", "bad") and 1 <= parsed.count <= 3 and len(parsed.steps) <= 2


def test_parse_of_a_cut_answer_is_an_error(client, chat):
    with pytest.raises(openai.LengthFinishReasonError) as caught:
        client.chat.completions.parse(
            model=chat, messages=asked(PERSON), response_format=Person, max_tokens=3
        )
    assert caught.value.completion.choices[0].finish_reason == "length"


def test_parse_of_tool_arguments(client, chat):
    answer = client.chat.completions.parse(
        model=chat,
        messages=asked("What is the weather in Paris?"),
        tools=[pydantic_function_tool(get_weather)],
        tool_choice="required",
        temperature=0,
    )
    call = answer.choices[0].message.tool_calls[0]
    assert isinstance(call.function.parsed_arguments, get_weather)


def test_a_tool_is_called_by_itself(client, chat):
    answer = client.chat.completions.parse(
        model=chat,
        messages=asked("What is the weather in Paris?"),
        tools=[pydantic_function_tool(get_weather)],
        temperature=0,
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == get_weather(city="Paris")


def test_a_tool_by_name_and_its_result(client, chat):
    messages = asked("What is the weather in Paris?")
    tools = [pydantic_function_tool(get_weather)]
    choice = {"type": "function", "function": {"name": "get_weather"}}
    first = client.chat.completions.create(
        model=chat, messages=messages, tools=tools, tool_choice=choice, temperature=0
    )
    turn = first.choices[0].message
    assert [call.function.name for call in turn.tool_calls] == ["get_weather"]
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"temperature": 21})}
        for call in turn.tool_calls
    ]
    second = client.chat.completions.create(
        model=chat, messages=[*messages, turn, *results], tools=tools, temperature=0
    )
    assert second.choices[0].message.content


def test_stream_events_of_a_text(client, chat):
    with client.chat.completions.stream(
        model=chat,
        messages=asked("How do I pull a model?"),
        temperature=0,
        stream_options={"include_usage": True},
    ) as stream:
        events = list(stream)
        whole = stream.get_final_completion()
    said = "".join(event.delta for event in events if event.type == "content.delta")
    assert said == whole.choices[0].message.content
    assert [event.content for event in events if event.type == "content.done"] == [said]
    assert whole.usage is not None and whole.usage.completion_tokens > 0


def test_stream_events_of_a_schema(client, chat):
    with client.chat.completions.stream(
        model=chat, messages=asked(PERSON), response_format=Person, temperature=0
    ) as stream:
        partial = [event.parsed for event in stream if event.type == "content.delta" and event.parsed]
        whole = stream.get_final_completion()
    assert isinstance(whole.choices[0].message.parsed, Person) and partial


def test_stream_events_of_tool_arguments(client, chat):
    with client.chat.completions.stream(
        model=chat,
        messages=asked("What is the weather in Paris?"),
        tools=[pydantic_function_tool(get_weather)],
        tool_choice="required",
        temperature=0,
    ) as stream:
        events = list(stream)
        whole = stream.get_final_completion()
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    deltas = "".join(event.arguments_delta for event in events if event.type.endswith("arguments.delta"))
    calls = whole.choices[0].message.tool_calls
    assert "".join(call.function.arguments for call in calls) == deltas
    assert [event.parsed_arguments for event in done] == [call.function.parsed_arguments for call in calls]


def test_stream_events_of_logprobs(client, chat):
    with client.chat.completions.stream(
        model=chat, messages=asked("Hello!"), logprobs=True, top_logprobs=2, temperature=0
    ) as stream:
        events = list(stream)
    done = [event for event in events if event.type == "logprobs.content.done"]
    assert done and all(len(token.top_logprobs) == 2 for token in done[0].content)


def test_stream_of_several_choices(client, chat):
    with client.chat.completions.stream(model=chat, messages=asked("Hello!"), n=3, seed=1) as stream:
        whole = stream.get_final_completion()
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert all(choice.message.content and choice.finish_reason for choice in whole.choices)


def test_a_stream_that_is_left(client, chat):
    stream = client.chat.completions.create(model=chat, messages=asked("Tell me a lot."), stream=True)
    next(iter(stream))
    stream.close()
    assert client.models.retrieve(chat).id


async def test_async_stream_events(aclient, chat):
    async with aclient.chat.completions.stream(
        model=chat, messages=asked(PERSON), response_format=Person, temperature=0
    ) as stream:
        kinds = {event.type async for event in stream}
        whole = await stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(whole.choices[0].message.parsed, Person)


async def test_async_parse(aclient, chat):
    answer = await aclient.chat.completions.parse(
        model=chat, messages=asked(PERSON), response_format=Person, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_json_object(client, chat):
    answer = client.chat.completions.create(
        model=chat,
        messages=asked(PERSON),
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=400,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_legacy_functions(client, chat):
    function = {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    answer = client.chat.completions.create(
        model=chat,
        messages=asked("What is the weather in Paris?"),
        functions=[function],
        function_call={"name": "get_weather"},
        temperature=0,
    )
    assert answer.choices[0].message.function_call.name == "get_weather"
    assert answer.choices[0].finish_reason in ("function_call", "stop")


def test_raw_and_streaming_responses(client, chat):
    raw = client.chat.completions.with_raw_response.create(model=chat, messages=asked("Hello!"))
    assert raw.headers["x-request-id"] == raw.request_id and raw.parse().choices
    with client.chat.completions.with_streaming_response.create(
        model=chat, messages=asked("Hello!"), stream=True
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


def test_completions(client, chat):
    whole = client.completions.create(model=chat, prompt="Hello", max_tokens=8, temperature=0, logprobs=1)
    assert whole.choices[0].text and whole.choices[0].logprobs.token_logprobs
    chunks = list(
        client.completions.create(model=chat, prompt="Hello", max_tokens=8, temperature=0, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_models(client, chat, embedder):
    assert {chat, embedder} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(chat).object == "model"


def test_embeddings(client, embedder):
    floats = client.embeddings.create(model=embedder, input=["one", "two"], encoding_format="float")
    plain = client.embeddings.create(model=embedder, input=["one", "two"])  # base64, which the SDK decodes
    for one, other in zip(floats.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-4)
    raw = client.embeddings.with_raw_response.create(model=embedder, input="one", encoding_format="base64")
    packed = json.loads(raw.text)["data"][0]["embedding"]
    assert len(base64.b64decode(packed)) == 4 * len(floats.data[0].embedding)
    assert struct.unpack("<f", base64.b64decode(packed)[:4])[0] == pytest.approx(
        plain.data[0].embedding[0], abs=1e-4
    )


async def test_async_embeddings(aclient, embedder):
    answer = await aclient.embeddings.create(model=embedder, input=["one"] * 40)
    assert [item.index for item in answer.data] == list(range(40))


@pytest.mark.parametrize(
    ("wrong", "kind", "code"),
    [
        ({"model": "no-such-model"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 9}, openai.BadRequestError, None),
        ({"messages": []}, openai.BadRequestError, None),
    ],
    ids=["model", "temperature", "messages"],
)
def test_errors_are_the_sdks_own(client, chat, wrong, kind, code):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": chat, "messages": asked("Hello!"), **wrong})
    assert caught.value.param and (code is None or caught.value.code == code)
    assert caught.value.request_id


def test_an_address_that_is_the_base_url(chat):
    with OpenAI(base_url=os.environ["OPENAI_BASE_URL"] + "/", max_retries=0) as client:
        assert client.models.retrieve(chat).id == chat
