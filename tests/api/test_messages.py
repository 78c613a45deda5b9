"""/v1/messages: Anthropic's own SDK against a real server with a real model."""

import asyncio
import json

import anthropic
import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import (
    Message,
    MessageParam,
    TextBlock,
    ToolParam,
    ToolUseBlock,
)
from pydantic import BaseModel

from tests.api.messages import GREEDY, asked, client, words
from tests.conftest import RunningServer

__all__ = ["client"]

ASK: list[MessageParam] = [{"role": "user", "content": "Paint the wall red, twice."}]
PAINT: ToolParam = {
    "name": "paint",
    "description": "Paint the wall.",
    "strict": True,
    "input_schema": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "coats": {"enum": [1, 2]}},
        "required": ["colour", "coats"],
        "additionalProperties": False,
    },
}
REST: ToolParam = {"name": "rest", "input_schema": {"type": "object"}}
QUESTIONS = ("Who are you?", "How do I pull a model?", "What is the ledger?", "Thanks!")


def check(input: object) -> None:
    assert isinstance(input, dict) and input.keys() == {"colour", "coats"}
    assert input["colour"] in ("red", "blue") and input["coats"] in (1, 2)


def test_a_message(client: Anthropic, server: RunningServer) -> None:
    raw = client.messages.with_raw_response.create(
        model=server.model,
        max_tokens=40,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=asked(QUESTIONS[0]),
        metadata={"user_id": "user-7"},
        extra_body=GREEDY,
    )
    answer = raw.parse()
    assert answer.type == "message" and answer.role == "assistant" and answer.id.startswith("msg_")
    assert answer.model == server.model and words(answer) and answer.stop_reason == "end_turn"
    assert answer.usage.input_tokens > 0 and 0 < answer.usage.output_tokens <= 40
    assert raw.headers["request-id"] == raw.headers["x-request-id"] == answer._request_id
    row = server.rows()[-1]
    assert row["id"] == raw.headers["x-oxlo-entry"] and row["endpoint"] == "/v1/messages"
    assert row["status"] == "settled" and json.loads(row["metadata"]) == {"user_id": "user-7"}
    assert row["completion_tokens"] == answer.usage.output_tokens


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_streamed_message_says_the_same_as_chat_does(
    client: Anthropic, server: RunningServer, question: str
) -> None:
    whole = client.messages.create(
        model=server.model, max_tokens=40, messages=asked(question), extra_body=GREEDY
    )
    with client.messages.stream(
        model=server.model, max_tokens=40, messages=asked(question), extra_body=GREEDY
    ) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert said == words(whole) and [b.to_dict() for b in final.content] == [
        b.to_dict() for b in whole.content
    ]
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    total = final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0)
    assert total == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    chat = httpx.post(
        f"{server.base_url}/chat/completions",
        json={"model": server.model, "max_tokens": 40, "messages": asked(question), **GREEDY},
    ).json()
    assert chat["choices"][0]["message"]["content"] == said and chat["usage"]["prompt_tokens"] == total


def test_a_prefix_is_found_again_and_counted_apart(client: Anthropic, server: RunningServer) -> None:
    system = "You know a lot about paint, walls and brushes. " * 8
    usages = [
        client.messages.create(
            model=server.model, max_tokens=1, system=system, messages=asked("Hello?")
        ).usage
        for _ in range(2)
    ]
    totals = [usage.input_tokens + (usage.cache_read_input_tokens or 0) for usage in usages]
    assert totals[0] == totals[1] and usages[1].input_tokens < totals[1] // 4


def test_a_forced_call_and_its_result(client: Anthropic, server: RunningServer) -> None:
    answer = client.messages.create(
        model=server.model,
        max_tokens=100,
        messages=ASK,
        tools=[REST, PAINT],
        tool_choice={"type": "tool", "name": "paint"},
    )
    (block,) = answer.content
    assert isinstance(block, ToolUseBlock) and block.name == "paint" and answer.stop_reason == "tool_use"
    check(block.input)
    after = client.messages.create(
        model=server.model,
        max_tokens=16,
        tools=[PAINT],
        tool_choice={"type": "none"},
        messages=[
            *ASK,
            {"role": "assistant", "content": answer.content},
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": block.id,
                        "content": [{"type": "text", "text": "done"}],
                        "is_error": False,
                    }
                ],
            },
        ],
    )
    assert after.content and all(isinstance(each, TextBlock) for each in after.content)


def test_a_call_is_streamed_in_pieces(client: Anthropic, server: RunningServer) -> None:
    pieces = []
    with client.messages.stream(
        model=server.model,
        max_tokens=200,
        messages=ASK,
        tools=[PAINT],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    ) as stream:
        for event in stream:
            if event.type == "input_json":
                pieces.append(event.partial_json)
        final = stream.get_final_message()
    assert len(pieces) > 3 and final.stop_reason == "tool_use"
    check(json.loads("".join(pieces)))
    check(final.content[-1].input)  # type: ignore[union-attr]


def test_a_call_that_is_cut_off_is_the_no_more_whole_than_streamed(
    client: Anthropic, server: RunningServer
) -> None:
    def ask(tokens: int) -> tuple[Message, Message]:
        fields = {
            "model": server.model,
            "max_tokens": tokens,
            "messages": ASK,
            "tools": [PAINT],
            "tool_choice": {"type": "any"},
            "extra_body": GREEDY,
        }
        with client.messages.stream(**fields) as stream:  # type: ignore[arg-type]
            return client.messages.create(**fields), stream.get_final_message()  # type: ignore[call-overload]

    inputs = []
    for tokens in range(8, 30, 2):
        whole, streamed = ask(tokens)
        assert whole.stop_reason == streamed.stop_reason in ("max_tokens", "tool_use")
        ours, theirs = (
            [block.input for block in each.content if isinstance(block, ToolUseBlock)]
            for each in (whole, streamed)
        )
        # The SDK takes a number at the end of what came for a whole one; it may not be.
        assert len(ours) == len(theirs) and all(
            a.items() <= b.items() for a, b in zip(ours, theirs, strict=True)
        )
        inputs += ours
    assert {} in inputs and any(len(each) == 1 for each in inputs), "none of them was cut off"


def test_a_stop_sequence_is_told_and_not_said(client: Anthropic, server: RunningServer) -> None:
    free = words(
        client.messages.create(
            model=server.model, max_tokens=40, messages=asked(QUESTIONS[1]), extra_body=GREEDY
        )
    )
    stop = free[len(free) // 2 : len(free) // 2 + 4]
    answer = client.messages.create(
        model=server.model,
        max_tokens=40,
        messages=asked(QUESTIONS[1]),
        stop_sequences=["never said", stop],
        extra_body=GREEDY,
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert words(answer) == free[: free.index(stop)]


def test_an_answer_goes_on_with_what_it_is_given(client: Anthropic, server: RunningServer) -> None:
    free = words(
        client.messages.create(
            model=server.model, max_tokens=60, messages=asked(QUESTIONS[0]), extra_body=GREEDY
        )
    )
    begun = " ".join(free.split()[:2])
    turns: list[MessageParam] = [*asked(QUESTIONS[0]), {"role": "assistant", "content": begun}]
    rest = client.messages.create(model=server.model, max_tokens=60, messages=turns, extra_body=GREEDY)
    assert begun + words(rest) == free


def test_no_tokens_fill_the_cache(client: Anthropic, server: RunningServer) -> None:
    system = "Everything about warm caches and cold ones. " * 8
    empty = client.messages.create(model=server.model, max_tokens=0, system=system, messages=asked("?"))
    assert (empty.content, empty.stop_reason, empty.usage.output_tokens) == ([], "max_tokens", 0)
    warm = client.messages.create(model=server.model, max_tokens=1, system=system, messages=asked("?"))
    assert (warm.usage.cache_read_input_tokens or 0) > warm.usage.input_tokens


class Wall(BaseModel):
    """What an answer is to say."""

    colour: str
    coats: int


def test_an_answer_of_a_form(client: Anthropic, server: RunningServer) -> None:
    schema = {**Wall.model_json_schema(), "additionalProperties": False}
    schema["properties"] = {"colour": {"enum": ["red", "blue"]}, "coats": {"type": "integer", "maximum": 9}}
    answer = client.messages.create(
        model=server.model,
        max_tokens=100,
        messages=ASK,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert Wall.model_validate_json(words(answer)).colour in ("red", "blue")


def test_the_tokens_are_counted_as_they_are_used(client: Anthropic, server: RunningServer) -> None:
    before = len(server.rows())
    counted = client.messages.count_tokens(
        model=server.model, messages=ASK, system="Be brief.", tools=[PAINT, REST]
    )
    assert len(server.rows()) == before, "to count is free"
    used = client.messages.create(
        model=server.model, max_tokens=1, messages=ASK, system="Be brief.", tools=[PAINT, REST]
    ).usage
    assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)
    long = client.messages.count_tokens(model=server.model, messages=asked("word " * 20_000))
    assert long.input_tokens > 20_000, "also what is too long to be answered"


def test_errors_are_the_sdks_own(client: Anthropic, server: RunningServer) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="claude-9", max_tokens=1, messages=ASK)
    assert (missing.value.type, missing.value.error_code) == ("not_found_error", "model_not_found")
    assert missing.value.request_id
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError) as long:
            client.messages.create(
                model=server.model, max_tokens=1, messages=asked("word " * 20_000), stream=stream
            )
        assert long.value.error_code == "context_length_exceeded"
    with pytest.raises(anthropic.BadRequestError) as stops:
        client.messages.create(model=server.model, max_tokens=1, messages=ASK, stop_sequences=["x" * 5000])
    body = stops.value.body
    assert isinstance(body, dict) and body["error"]["param"] == "stop_sequences"
    with pytest.raises(anthropic.BadRequestError) as tool:
        client.messages.create(
            model=server.model,
            max_tokens=1,
            messages=ASK,
            tools=[{"type": "web_search_20250305", "name": "web_search"}],
        )
    assert "custom" in str(tool.value.api_message)


def test_a_wish_that_this_model_cannot_grant_is_a_warning(client: Anthropic, server: RunningServer) -> None:
    raw = client.messages.with_raw_response.create(
        model=server.model,
        max_tokens=2000,
        messages=asked(QUESTIONS[0]),
        thinking={"type": "enabled", "budget_tokens": 1024},
        extra_body={**GREEDY, "mood": 1},
    )
    assert raw.headers["x-oxlo-warnings"] == (
        'unknown field "mood" has no effect; thinking has no effect: this model does not think'
    )
    assert words(raw.parse())


async def test_asynchronous_clients_and_the_beta_route(client: Anthropic, server: RunningServer) -> None:
    async with AsyncAnthropic(base_url=server.url, auth_token="any", max_retries=0) as many:

        async def say(number: int) -> str:
            async with many.messages.stream(
                model=server.model, max_tokens=12, messages=asked(f"Who are you? {number}")
            ) as stream:
                return "".join([text async for text in stream.text_stream])

        assert all(await asyncio.gather(*(say(number) for number in range(8))))
        beta = await many.beta.messages.create(
            model=server.model,
            max_tokens=12,
            messages=[{"role": "user", "content": QUESTIONS[0]}],
            betas=["context-management-2025-06-27", "interleaved-thinking-2025-05-14"],
            context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        )
        assert beta.content and beta.stop_reason in ("end_turn", "max_tokens")
