"""pydantic-ai: agents with tools, structured output in its three modes, streams, retries, embeddings."""

import os

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry, NativeOutput, PromptedOutput, RunContext, TextOutput, ToolOutput
from pydantic_ai.messages import ModelRequest, ModelResponse, PartDeltaEvent, ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

PERSON = "Give me JSON: Ada is 36 years old and lives in London."
WEATHER = "What is the weather in Paris?"
SETTINGS = ModelSettings(temperature=0, max_tokens=300)


class Person(BaseModel):
    """Who somebody is."""

    name: str
    age: int
    city: str


class Order(BaseModel):
    """What somebody wants."""

    item: str
    quantity: int


@pytest.fixture
def model(chat) -> OpenAIChatModel:
    """The chat model, with the provider as the environment has it."""
    return OpenAIChatModel(chat, provider=OpenAIProvider(), settings=SETTINGS)


def weather_agent(model, **more) -> Agent:
    """An agent with one tool that the demo was taught."""
    agent = Agent(model, **more)

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Get the current weather in a city."""
        return f'{{"city": "{city}", "temperature": 21, "condition": "sunny"}}'

    return agent


async def test_text(model):
    answer = await Agent(model, instructions="Be brief.").run("How do I pull a model?")
    assert answer.output and answer.usage.output_tokens > 0


def test_text_sync(model):
    assert Agent(model).run_sync("Hello!").output


async def test_a_conversation(model):
    agent = Agent(model, system_prompt="Be brief.")
    first = await agent.run("Hello!")
    second = await agent.run("How do I pull a model?", message_history=first.all_messages())
    assert second.output and len(second.all_messages()) == 4


async def test_text_is_streamed(model):
    async with Agent(model).run_stream("How do I pull a model?") as stream:
        deltas = [delta async for delta in stream.stream_text(delta=True, debounce_by=None)]
        whole = await stream.get_output()
    assert len(deltas) > 1 and "".join(deltas) == whole
    assert stream.usage.output_tokens > 0


@pytest.mark.parametrize("mode", [ToolOutput, NativeOutput, PromptedOutput])
async def test_an_object(model, mode):
    answer = await Agent(model, output_type=mode(Person), retries=2).run(PERSON)
    assert isinstance(answer.output, Person)


@pytest.mark.parametrize("mode", [ToolOutput, NativeOutput, PromptedOutput])
async def test_the_right_object(model, mode):
    answer = await Agent(model, output_type=mode(Person), retries=2).run(PERSON)
    assert answer.output == Person(name="Ada", age=36, city="London")


@pytest.mark.parametrize("mode", [ToolOutput, NativeOutput, PromptedOutput])
async def test_an_object_is_streamed(model, mode):
    async with Agent(model, output_type=mode(Person), retries=2).run_stream(PERSON) as stream:
        partials = [partial async for partial in stream.stream_output(debounce_by=None)]
    assert isinstance(partials[-1], Person)


@pytest.mark.parametrize("mode", [ToolOutput, NativeOutput])
async def test_one_of_two_kinds(model, mode):
    kinds = [ToolOutput(Person, name="person"), ToolOutput(Order, name="order")]
    agent = Agent(
        model, output_type=kinds if mode is ToolOutput else NativeOutput([Person, Order]), retries=2
    )
    answer = await agent.run(PERSON)
    assert isinstance(answer.output, Person | Order)


async def test_a_tool_is_called_and_its_result_told(model):
    answer = await weather_agent(model).run(WEATHER)
    calls = [
        part
        for message in answer.all_messages()
        if isinstance(message, ModelResponse)
        for part in message.parts
        if isinstance(part, ToolCallPart)
    ]
    assert [call.args_as_dict() for call in calls] == [{"city": "Paris"}]
    assert answer.output


async def test_a_tool_and_an_object(model):
    agent = weather_agent(model, output_type=ToolOutput(Order), retries=2)
    answer = await agent.run("Give me JSON: three apples.")
    assert isinstance(answer.output, Order)


async def test_a_tool_that_wants_another_try(model):
    agent, tries = Agent(model, retries=3), []

    @agent.tool
    def get_weather(context: RunContext[None], city: str) -> str:
        """Get the current weather in a city."""
        tries.append(city)
        if context.retry == 0:
            raise ModelRetry("Name the city again.")
        return "sunny, 21 degrees"

    await agent.run(WEATHER)
    assert len(tries) >= 2


async def test_an_output_that_is_refused_once(model):
    agent, tries = Agent(model, output_type=NativeOutput(Person), retries=2), []

    @agent.output_validator
    def once(value: Person) -> Person:
        tries.append(value)
        if len(tries) == 1:
            raise ModelRetry("Say it again.")
        return value

    assert isinstance((await agent.run(PERSON)).output, Person) and len(tries) == 2


async def test_events_of_a_run(model):
    agent, deltas = weather_agent(model), []
    async with agent.iter(WEATHER) as run:
        async for node in run:
            if Agent.is_model_request_node(node):
                async with node.stream(run.ctx) as events:
                    deltas += [event async for event in events if isinstance(event, PartDeltaEvent)]
    assert deltas and run.result.output


async def test_a_text_output_function(model):
    def loudly(text: str) -> list[str]:
        return [text.upper()]

    answer = await Agent(model, output_type=TextOutput(loudly)).run("Hello!")
    assert answer.output[0] == answer.output[0].upper()


async def test_many_settings(model):
    settings = ModelSettings(
        temperature=0.5,
        top_p=0.9,
        seed=7,
        max_tokens=20,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        stop_sequences=["\n\n"],
        logit_bias={"5": -1},
        parallel_tool_calls=False,
    )
    agent = weather_agent(model)
    texts = [(await agent.run("Hello!", model_settings=settings)).output for _ in range(2)]
    assert texts[0] == texts[1]


async def test_messages_survive_json(model):
    from pydantic_ai import ModelMessagesTypeAdapter

    answer = await weather_agent(model).run(WEATHER)
    again = ModelMessagesTypeAdapter.validate_json(answer.all_messages_json())
    assert isinstance(again[0], ModelRequest)
    assert (await weather_agent(model).run("Thanks!", message_history=again)).output


async def test_embeddings(embedder):
    from pydantic_ai import Embedder

    found = await Embedder(f"openai:{embedder}").embed_documents(["one", "two"])
    assert len(found.embeddings) == 2


def test_the_model_by_name():
    assert Agent(f"openai-chat:{os.environ['CHAT_MODEL']}").run_sync("Hello!", model_settings=SETTINGS).output
