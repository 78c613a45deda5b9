"""Structured output over HTTP: what OpenAI's SDK parses, what is refused, and that nobody else notices."""

import re
import time
from collections.abc import Iterator
from enum import Enum

import jsonschema
import msgspec
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field

from tests.conftest import RunningServer
from tests.random_server import random_server

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Anything."}]


class Mood(Enum):
    GLAD = "glad"
    SAD = "trübe"


class Part(BaseModel):
    name: str = Field(max_length=8)
    weight: float = Field(ge=0, le=10)


class Robot(BaseModel):
    mood: Mood
    parts: list[Part] = Field(min_length=1, max_length=2)
    twin: "Robot | None"


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with random_server(tmp_path_factory.mktemp("structured")) as running:
        yield running


@pytest.fixture(scope="module")
def client(nonsense: RunningServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=nonsense.base_url, api_key="any", max_retries=0) as made:
        yield made


def refused(client: OpenAI, model: str, **fields: object) -> openai.BadRequestError:
    begun = time.monotonic()
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=ASKED, max_tokens=8, extra_body=fields)
    assert time.monotonic() - begun < 5  # a second's deadline, on a machine that may be busy
    return caught.value


def test_the_sdk_parses_into_a_pydantic_model(client: OpenAI, nonsense: RunningServer) -> None:
    for seed in range(8):
        try:
            answer = client.chat.completions.parse(
                model=nonsense.model, messages=ASKED, response_format=Robot, max_tokens=600, seed=seed
            )
        except openai.LengthFinishReasonError:  # a robot may have twins without end
            continue
        robot = answer.choices[0].message.parsed
        assert isinstance(robot, Robot) and 1 <= len(robot.parts) <= 2
        assert answer.choices[0].finish_reason == "stop"
        return
    raise AssertionError("no answer came to its end")


def test_a_stream_with_choices_and_logprobs(client: OpenAI, nonsense: RunningServer) -> None:
    schema = {"type": "array", "items": {"enum": ["eins", "zwei", 3]}, "maxItems": 3}
    texts, reasons, tokens = {0: "", 1: "", 2: ""}, set(), 0
    with client.chat.completions.create(
        model=nonsense.model,
        messages=ASKED,
        n=3,
        seed=5,
        stream=True,
        logprobs=True,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "list", "strict": True, "schema": schema},
        },
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                reasons |= {choice.finish_reason} - {None}
                tokens += len(choice.logprobs.content or ()) if choice.logprobs else 0
    for text in texts.values():
        jsonschema.validate(msgspec.json.decode(text), schema)
    assert reasons == {"stop"} and tokens > 3


def test_an_answer_that_is_cut_says_length(client: OpenAI, nonsense: RunningServer) -> None:
    answer = client.chat.completions.create(
        model=nonsense.model, messages=ASKED, max_tokens=2, extra_body={"guided_regex": "a{40}"}
    )
    assert answer.choices[0].finish_reason == "length"
    assert re.fullmatch("a+", answer.choices[0].message.content or "")


def test_the_extensions_in_completions_too(client: OpenAI, nonsense: RunningServer) -> None:
    for fields, pattern in (
        ({"guided_regex": "[0-9]{3}-[a-f]{2}"}, "[0-9]{3}-[a-f]{2}"),
        ({"guided_choice": ["ja", "nein"]}, "ja|nein"),
        ({"guided_grammar": 'root ::= "<" ("a" | "b")+ ">"'}, "<[ab]+>"),
    ):
        answer = client.completions.create(
            model=nonsense.model, prompt="Well:", max_tokens=300, seed=1, extra_body=fields
        )
        assert answer.choices[0].finish_reason == "stop"
        assert re.fullmatch(pattern, answer.choices[0].text)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"guided_json": {"type": "string", "pattern": "(?=a)b"}}, "guided_json", "look-ahead"),
        ({"guided_json": {"oneOf": [{"type": "string"}, {"maxLength": 3}]}}, "guided_json", "oneOf"),
        ({"guided_json": {"type": "integer", "minimum": 3, "maximum": 2}}, "guided_json", "minimum"),
        ({"guided_json": {"type": "object", "uniqueItems": True}}, "guided_json.uniqueItems", "uniqueItems"),
        ({"guided_json": {"type": "blob"}}, "guided_json", "blob"),
        ({"guided_regex": "("}, "guided_regex", "regex"),
        ({"guided_grammar": "start: start"}, "guided_grammar", "no text"),
        ({"guided_grammar": "root ::= nothing"}, "guided_grammar", "nothing"),
    ],
)
def test_what_cannot_be_enforced_is_a_400_that_says_why(
    client: OpenAI, nonsense: RunningServer, fields: dict[str, object], param: str, words: str
) -> None:
    error = refused(client, nonsense.model, **fields)
    assert error.param == param and words in error.message
    if error.param == next(iter(fields)):  # found by the worker, after the request had its row
        assert nonsense.rows()[-1]["status"] == "refunded"


PAINT: dict[str, object] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


def test_beside_tools_the_answer_is_a_call_or_keeps_to_the_schema(
    client: OpenAI, nonsense: RunningServer
) -> None:
    """A model of random weights writes whatever it may: over some seeds it does both."""
    schema = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 2}
    called = spoke = 0
    for seed in range(12):
        answer = client.chat.completions.create(
            model=nonsense.model,
            messages=ASKED,
            seed=seed,
            max_tokens=300,
            tools=[{"type": "function", "function": {"name": "paint", "parameters": PAINT, "strict": True}}],
            parallel_tool_calls=False,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "list", "strict": True, "schema": schema},
            },
        )
        (choice,) = answer.choices
        if choice.message.tool_calls:
            (call,) = choice.message.tool_calls
            assert call.type == "function" and call.function.name == "paint"
            jsonschema.validate(msgspec.json.decode(call.function.arguments), PAINT)
            assert choice.finish_reason == "tool_calls" and choice.message.content is None
            called += 1
        else:
            assert choice.finish_reason == "stop" and choice.message.content is not None
            jsonschema.validate(msgspec.json.decode(choice.message.content), schema)
            spoke += 1
    assert called and spoke
