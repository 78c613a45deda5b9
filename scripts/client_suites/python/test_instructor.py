"""instructor: each of its modes, streamed partials and lists, answers that are asked again, unions, async."""

from collections.abc import Iterable
from typing import Literal

import instructor
import pytest
from instructor import Mode
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field, field_validator

PERSON = "Give me JSON: Ada is 36 years old and lives in London."
MODES = [Mode.TOOLS, Mode.TOOLS_STRICT, Mode.JSON, Mode.JSON_SCHEMA, Mode.MD_JSON, Mode.PARALLEL_TOOLS]
WHOLE = MODES[:5]  # one object for an answer


class Person(BaseModel):
    """Who somebody is."""

    name: str
    age: int
    city: str


class Order(BaseModel):
    """What somebody wants."""

    item: str
    quantity: int


class Adult(Person):
    """A person whose age is refused once."""

    @field_validator("age")
    @classmethod
    def not_the_first(cls, value: int) -> int:
        """Refuse everything: the retries end with what was tried."""
        raise ValueError(f"{value} is not acceptable; think again")


class Mood(BaseModel):
    """One word of two."""

    label: Literal["happy", "sad"]
    weight: float = Field(ge=0, le=1)


def asked(text: str) -> list[dict[str, str]]:
    """One question."""
    return [{"role": "user", "content": text}]


def wrapped(mode: Mode) -> instructor.Instructor:
    """The SDK with instructor around it."""
    return instructor.from_openai(OpenAI(max_retries=0), mode=mode)


@pytest.mark.parametrize("mode", WHOLE, ids=lambda mode: mode.name)
def test_an_object(chat, mode):
    person = wrapped(mode).chat.completions.create(
        model=chat,
        messages=asked(PERSON),
        response_model=Person,
        temperature=0,
        max_retries=1,
        max_tokens=200,
    )
    assert isinstance(person, Person)


@pytest.mark.parametrize("mode", WHOLE, ids=lambda mode: mode.name)
def test_the_right_object(chat, mode):
    person = wrapped(mode).chat.completions.create(
        model=chat,
        messages=asked(PERSON),
        response_model=Person,
        temperature=0,
        max_retries=1,
        max_tokens=200,
    )
    assert person.model_dump() == {"name": "Ada", "age": 36, "city": "London"}


@pytest.mark.parametrize("mode", WHOLE, ids=lambda mode: mode.name)
def test_partials_are_streamed(chat, mode):
    partials = list(
        wrapped(mode).chat.completions.create_partial(
            model=chat, messages=asked(PERSON), response_model=Person, temperature=0, max_tokens=200
        )
    )
    assert len(partials) > 1
    assert Person.model_validate(partials[-1].model_dump())


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON, Mode.JSON_SCHEMA], ids=lambda mode: mode.name)
def test_a_list_is_streamed(chat, mode):
    orders = wrapped(mode).chat.completions.create_iterable(
        model=chat,
        messages=asked("Give me JSON: three apples and two pears."),
        response_model=Order,
        temperature=0,
        max_tokens=300,
    )
    found = list(orders)
    assert found and all(isinstance(order, Order) for order in found)


@pytest.mark.parametrize("mode", WHOLE, ids=lambda mode: mode.name)
def test_a_refused_answer_is_asked_again(chat, mode):
    with pytest.raises(instructor.core.InstructorRetryException) as caught:
        wrapped(mode).chat.completions.create(
            model=chat,
            messages=asked(PERSON),
            response_model=Adult,
            temperature=0,
            max_retries=2,
            max_tokens=200,
        )
    assert caught.value.n_attempts >= 2
    assert "not acceptable" in str(caught.value)


def test_parallel_tools(chat):
    found = wrapped(Mode.PARALLEL_TOOLS).chat.completions.create(
        model=chat,
        messages=asked(PERSON),
        response_model=Iterable[Person | Order],
        temperature=0,
        max_tokens=200,
    )
    assert all(isinstance(each, Person | Order) for each in found)


@pytest.mark.parametrize("mode", WHOLE, ids=lambda mode: mode.name)
def test_an_enum_and_bounds(chat, mode):
    mood = wrapped(mode).chat.completions.create(
        model=chat,
        messages=asked("I am so happy!"),
        response_model=Mood,
        temperature=0,
        max_retries=1,
        max_tokens=200,
    )
    assert mood.label in ("happy", "sad") and 0 <= mood.weight <= 1


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON_SCHEMA], ids=lambda mode: mode.name)
def test_simple_types(chat, mode):
    client = wrapped(mode)
    yes = client.chat.completions.create(
        model=chat, messages=asked("Is the sky blue?"), response_model=bool, temperature=0, max_retries=1
    )
    assert isinstance(yes, bool)


def test_with_the_completion(chat):
    person, completion = wrapped(Mode.TOOLS).chat.completions.create_with_completion(
        model=chat,
        messages=asked(PERSON),
        response_model=Person,
        temperature=0,
        max_retries=1,
        max_tokens=200,
    )
    assert isinstance(person, Person) and completion.usage.total_tokens > 0


async def test_async(chat):
    async with AsyncOpenAI(max_retries=0) as sdk:
        client = instructor.from_openai(sdk, mode=Mode.JSON_SCHEMA)
        person = await client.chat.completions.create(
            model=chat, messages=asked(PERSON), response_model=Person, temperature=0, max_retries=1
        )
        assert isinstance(person, Person)
        partials = [
            each
            async for each in client.chat.completions.create_partial(
                model=chat, messages=asked(PERSON), response_model=Person, temperature=0
            )
        ]
    assert partials


def test_the_provider_by_name(chat):
    client = instructor.from_provider(f"openai/{chat}", mode=Mode.TOOLS)
    assert isinstance(
        client.chat.completions.create(messages=asked(PERSON), response_model=Person, max_retries=1), Person
    )
