"""LlamaIndex with its OpenAILike model: completions, chats, streams, tools, structured output, agents, embeddings."""

import os

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

PERSON = "Give me JSON: Ada is 36 years old and lives in London."
WEATHER = "What is the weather in Paris?"


class Person(BaseModel):
    """Who somebody is."""

    name: str
    age: int
    city: str


def get_weather(city: str) -> str:
    """Get the current weather in a city."""
    return f'{{"city": "{city}", "temperature": 21, "condition": "sunny"}}'


def address() -> dict[str, str]:
    """Where the server is."""
    return {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}


@pytest.fixture
def llm(chat) -> OpenAILike:
    """The chat model, with all that it can."""
    return OpenAILike(
        model=chat,
        is_chat_model=True,
        is_function_calling_model=True,
        should_use_structured_outputs=True,
        context_window=2048,
        temperature=0,
        max_tokens=300,
        max_retries=0,
        **address(),
    )


def asked(text: str) -> list[ChatMessage]:
    """One question after a system message."""
    return [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=text)]


def test_complete_and_chat(llm):
    assert llm.complete("How do I pull a model?").text
    answer = llm.chat(asked("How do I pull a model?"))
    assert answer.message.content and answer.raw.usage.total_tokens > 0


def test_a_plain_completion(chat):
    llm = OpenAILike(model=chat, is_chat_model=False, temperature=0, max_tokens=8, **address())
    deltas = "".join(each.delta for each in llm.stream_complete("Hello"))
    assert deltas == llm.complete("Hello").text


def test_streams(llm):
    whole = llm.chat(asked("How do I pull a model?")).message.content
    assert "".join(each.delta or "" for each in llm.stream_chat(asked("How do I pull a model?"))) == whole


async def test_async(llm):
    assert (await llm.achat(asked("Hello!"))).message.content
    assert "".join([each.delta or "" async for each in await llm.astream_chat(asked("Hello!"))])


def test_a_tool_that_must_be_called(llm):
    tool = FunctionTool.from_defaults(get_weather)
    answer = llm.chat_with_tools([tool], user_msg=WEATHER, tool_required=True)
    calls = llm.get_tool_calls_from_response(answer)
    assert calls[0].tool_name == "get_weather" and isinstance(calls[0].tool_kwargs["city"], str)


def test_a_tool_is_called_in_a_stream(llm):
    tool = FunctionTool.from_defaults(get_weather)
    *_, last = llm.stream_chat_with_tools([tool], user_msg=WEATHER)
    assert [call.tool_kwargs for call in llm.get_tool_calls_from_response(last)] == [{"city": "Paris"}]


def test_structured_output(llm):
    answer = llm.as_structured_llm(Person).chat([ChatMessage(role="user", content=PERSON)])
    assert isinstance(answer.raw, Person)


def test_structured_output_is_streamed(llm):
    *_, last = llm.as_structured_llm(Person).stream_chat([ChatMessage(role="user", content=PERSON)])
    assert last.raw.name and isinstance(last.raw.age, int)


async def test_an_agent(llm):
    agent = FunctionAgent(tools=[FunctionTool.from_defaults(get_weather)], llm=llm, system_prompt="Be brief.")
    answer = await agent.run(WEATHER)
    assert answer.response.content
    assert [call.tool_kwargs for call in answer.tool_calls] == [{"city": "Paris"}]


async def test_embeddings(embedder):
    model = OpenAIEmbedding(model_name=embedder, max_retries=0, **address())
    one, many = model.get_text_embedding("one"), await model.aget_text_embedding_batch(["one", "two"])
    assert one == pytest.approx(many[0], abs=1e-3) and len(many) == 2
