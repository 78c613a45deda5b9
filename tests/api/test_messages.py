"""/v1/messages: Anthropic's own SDK against a real server with a real model, and the rooms around it."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import (
    ImageBlockParam,
    Message,
    MessageParam,
    TextBlock,
    TextBlockParam,
    ThinkingBlock,
    ToolParam,
    ToolUseBlock,
)
from openai import OpenAI
from pydantic import BaseModel

from oxlo_local.client import EventDecoder
from oxlo_local.limits import Limits
from oxlo_local.random_model import write
from tests.api.conftest import Site, StartSite
from tests.conftest import RunningServer, await_ready, launch
from tests.vision import Files, png, sighted_files

__all__ = ["sighted_files"]

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
GREEDY = {"temperature": 0}
QUESTIONS = ("Who are you?", "How do I pull a model?", "What is the ledger?", "Thanks!")


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Anthropic]:
    """The SDK as a user makes it, but that it does not try again."""
    with Anthropic(base_url=server.url, api_key="any", max_retries=0) as made:
        yield made


def asked(text: str) -> list[MessageParam]:
    return [{"role": "user", "content": text}]


def words(message: Message) -> str:
    return "".join(block.text for block in message.content if isinstance(block, TextBlock))


def check(input: object) -> None:
    assert isinstance(input, dict) and input.keys() == {"colour", "coats"}
    assert input["colour"] in ("red", "blue") and input["coats"] in (1, 2)


# -- with the SDK -----------------------------------------------------------------------------------------------------


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


# -- a model that thinks ----------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}{% endfor %}[assistant]{% if enable_thinking is not defined or enable_thinking %}"
    "<think>{% endif %}"
)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anthropic]:
    """A client of a model of random weights whose template opens a thought unless that is switched off."""
    folder = tmp_path_factory.mktemp("thinker")
    home = folder / "home"
    home.mkdir()
    write(folder / "thinker.gguf")
    (home / "config.toml").touch()
    (home / "models.toml").write_text(
        f"[models.thinker]\nfile = '{folder / 'thinker.gguf'}'\n"
        f"[models.thinker.options]\nchat_template = '{TEMPLATE}'\n"
    )
    running = await_ready(launch(home, folder / "serve.log", ("thinker",), {}))
    with Anthropic(base_url=running.url, api_key="any", max_retries=0) as client:
        yield client
    running.stop()


def test_thoughts_are_blocks_of_their_own_streamed_and_whole(thinker: Anthropic) -> None:
    whole = thinker.messages.create(
        model="thinker", max_tokens=12, messages=asked("?"), thinking={"type": "adaptive"}, extra_body=GREEDY
    )
    with thinker.messages.stream(
        model="thinker", max_tokens=12, messages=asked("?"), thinking={"type": "adaptive"}, extra_body=GREEDY
    ) as stream:
        thoughts = "".join(event.thinking for event in stream if event.type == "thinking")
        final = stream.get_final_message()
    (block,) = whole.content
    assert isinstance(block, ThinkingBlock) and block.thinking == thoughts and block.signature
    assert final.content[0].to_dict() == block.to_dict() and final.stop_reason == "max_tokens"
    details = whole.usage.output_tokens_details
    assert details is not None and 0 < details.thinking_tokens <= whole.usage.output_tokens


def test_thinking_can_be_switched_off_or_given_a_budget(thinker: Anthropic) -> None:
    off = thinker.messages.create(
        model="thinker", max_tokens=12, messages=asked("?"), thinking={"type": "disabled"}, extra_body=GREEDY
    )
    assert [block.type for block in off.content] == ["text"]
    given = thinker.messages.create(
        model="thinker",
        max_tokens=1100,
        messages=asked("?"),
        thinking={"type": "enabled", "budget_tokens": 1024},
        extra_body=GREEDY,
    )
    assert [block.type for block in given.content] == ["thinking", "text"]
    details = given.usage.output_tokens_details
    assert details is not None and 1024 < details.thinking_tokens < 1040


def test_a_chat_tells_thought_from_answer_behind_a_budget(thinker: Anthropic) -> None:
    ask: dict[str, Any] = {
        "model": "thinker",
        "messages": [{"role": "user", "content": "?"}],
        "max_tokens": 40,
        "temperature": 0,
    }
    with OpenAI(base_url=f"{str(thinker.base_url).rstrip('/')}/v1", api_key="any", max_retries=0) as client:
        whole = client.chat.completions.create(**ask, extra_body={"thinking_budget": 6})
        parts = [*client.chat.completions.create(**ask, stream=True, extra_body={"thinking_budget": 6})]
    message = whole.choices[0].message
    deltas = [chunk.choices[0].delta for chunk in parts if chunk.choices]
    assert message.content and message.model_extra and message.model_extra["reasoning_content"]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    thoughts = [(delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas]
    assert "".join(thoughts) == message.model_extra["reasoning_content"]
    details = whole.usage and whole.usage.completion_tokens_details
    assert details is not None and 6 < (details.reasoning_tokens or 0) < 20


@pytest.mark.parametrize("display", ["summarized", "omitted"])
def test_a_thought_comes_back_whether_it_was_shown_or_not(
    thinker: Anthropic, display: Literal["summarized", "omitted"]
) -> None:
    answer = thinker.messages.create(
        model="thinker",
        max_tokens=12,
        messages=asked("?"),
        thinking={"type": "adaptive", "display": display},
        extra_body=GREEDY,
    )
    (block,) = answer.content
    assert isinstance(block, ThinkingBlock) and bool(block.thinking) == (display == "summarized")

    def tokens(*content: ThinkingBlock | TextBlockParam) -> int:
        turns: list[MessageParam] = [*asked("?"), {"role": "assistant", "content": content}, *asked("go on")]
        return thinker.messages.count_tokens(model="thinker", messages=turns).input_tokens

    said: TextBlockParam = {"type": "text", "text": "so"}
    assert tokens(block, said) - tokens(said) >= 12


# -- a model that sees ------------------------------------------------------------------------------------------------


def picture(seed: int) -> ImageBlockParam:
    data = png(seed).partition(",")[2]
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def test_an_image_is_seen_as_in_a_chat(
    sighted_files: Files, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("seeing")
    (folder / "home").mkdir()
    (folder / "home" / "config.toml").touch()
    model, eye = sighted_files("pixtral")
    running = await_ready(
        launch(folder / "home", folder / "serve.log", (str(model), "--mmproj", str(eye)), {})
    )
    try:
        with Anthropic(base_url=running.url, api_key="any", max_retries=0) as client:

            def look(*content: ImageBlockParam | TextBlockParam) -> tuple[str, int]:
                turns: list[MessageParam] = [{"role": "user", "content": content}]
                answer = client.messages.create(
                    model=running.model, max_tokens=8, messages=turns, extra_body=GREEDY
                )
                counted = client.messages.count_tokens(model=running.model, messages=turns).input_tokens
                usage = answer.usage
                assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)
                return words(answer), counted

            what: TextBlockParam = {"type": "text", "text": "What is it?"}
            seen, tokens = look(picture(1), what)
            assert tokens > look(what)[1] + 4 and look(picture(1), what)[0] == seen
            image = {"type": "image_url", "image_url": {"url": png(1)}}
            chat = httpx.post(
                f"{running.base_url}/chat/completions",
                json={
                    "model": running.model,
                    "max_tokens": 8,
                    "messages": [{"role": "user", "content": [image, what]}],
                    **GREEDY,
                },
            ).json()
            assert chat["choices"][0]["message"]["content"] == seen
            assert chat["usage"]["prompt_tokens"] == tokens
    finally:
        running.stop()


def test_a_model_without_an_eye_says_so(client: Anthropic, server: RunningServer) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(
            model=server.model, max_tokens=1, messages=[{"role": "user", "content": [picture(1)]}]
        )
    body = refused.value.body
    assert isinstance(body, dict)
    assert body["error"]["code"] == "unsupported_value"
    assert body["error"]["param"] == "messages[0].content[0].source.data"


# -- the rooms around it ----------------------------------------------------------------------------------------------


def body(text: str = "hello", **fields: object) -> dict[str, object]:
    """A request that the echo engine answers with `text`, word by word."""
    return {"model": "echo", "max_tokens": 3, "messages": [{"role": "user", "content": text}], **fields}


def test_every_failure_here_has_anthropics_shape(site: Site) -> None:
    answers = [
        site.client.post("/v1/messages", content=b"{", headers={"content-type": "application/json"}),
        site.client.post("/v1/messages", content=b"{}", headers={"content-type": "text/plain"}),
        site.client.get("/v1/messages"),
        site.client.post("/v1/messages/batches", json={}),
        site.client.post("/v1/messages", json=body(model="idle")),
        site.client.post("/v1/messages", json=body(model="ear")),
        site.client.post("/v1/messages", json=body("!fail=0")),
        site.client.post("/v1/messages/count_tokens", json=body(model="nobody")),
    ]
    assert [answer.status_code for answer in answers] == [400, 415, 405, 404, 503, 400, 500, 404]
    types = ["invalid_request_error"] * 3 + [
        "not_found_error",
        "overloaded_error",
        "invalid_request_error",
        "api_error",
        "not_found_error",
    ]
    for answer, kind in zip(answers, types, strict=True):
        told = answer.json()
        assert told["type"] == "error" and told["error"]["type"] == kind and told["error"]["message"]
        assert told["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
        assert told["error"]["code"] == told["error"]["details"]["error_code"]
    assert site.client.get("/v1/nothing").json().keys() == {"error"}


def test_a_failure_in_the_middle_of_a_stream_is_an_event_and_refunded(site: Site) -> None:
    answer = site.client.post("/v1/messages", json=body("a b !fail=2", stream=True, max_tokens=9))
    assert answer.status_code == 200
    events = [json.loads(each) for each in EventDecoder().feed(answer.content)]
    assert [each["type"] for each in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "error",
    ]
    assert (
        events[-1]["error"]["type"] == "api_error"
        and events[-1]["request_id"] == answer.headers["request-id"]
    )
    assert (site.rows()[-1]["status"], site.rows()[-1]["endpoint"]) == ("refunded", "/v1/messages")


def test_a_silent_stream_is_kept_alive_with_pings(start_site: StartSite) -> None:
    site = start_site(heartbeat_seconds=0.05)
    with site.client.stream("POST", "/v1/messages", json=body("!hang=0", stream=True)) as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(3)] == ["event: ping", 'data: {"type":"ping"}', ""]


def test_the_same_request_again_is_neither_run_nor_charged(site: Site) -> None:
    before = len(site.rows())
    key = {"idempotency-key": "messages-1"}
    first, second = (site.client.post("/v1/messages", json=body("x y"), headers=key) for _ in range(2))
    assert first.json() == second.json() and second.headers["x-oxlo-replayed"] == "true"
    assert len(site.rows()) == before + 1
    other = site.client.post("/v1/messages", json=body("z"), headers=key)
    assert other.status_code == 400 and other.json()["error"]["code"] == "idempotency_conflict"


def test_a_key_and_what_is_left_of_its_limits(start_site: StartSite) -> None:
    site = start_site()
    _, secret = site.run(site.keys.create("anna", "user", Limits(rate=2)))
    with Anthropic(base_url=site.url, api_key=secret, max_retries=0) as client:
        raw = client.messages.with_raw_response.create(model="echo", max_tokens=1, messages=ASK)
        assert raw.headers["anthropic-ratelimit-requests-limit"] == "2"
        assert raw.headers["anthropic-ratelimit-requests-remaining"] == "1"
        assert raw.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
        client.messages.create(model="echo", max_tokens=1, messages=ASK)
        with pytest.raises(anthropic.RateLimitError) as limited:
            client.messages.create(model="echo", max_tokens=1, messages=ASK)
        assert (
            limited.value.error_code == "rate_limit_exceeded"
            and limited.value.response.headers["retry-after"]
        )
    with Anthropic(base_url=site.url, api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            stranger.messages.create(model="echo", max_tokens=1, messages=ASK)
        assert refused.value.type == "authentication_error"
        with pytest.raises(anthropic.AuthenticationError):
            stranger.messages.count_tokens(model="echo", messages=ASK)


def test_the_tier_is_the_keys_own_or_less(start_site: StartSite) -> None:
    site = start_site()
    _, secret = site.run(site.keys.create("anna", "user", Limits(tier="priority")))
    wishes: tuple[Literal["auto", "standard_only"], ...] = ("auto", "standard_only")
    with Anthropic(base_url=site.url, api_key=secret, max_retries=0) as client:
        tiers = [
            client.messages.create(
                model="echo", max_tokens=1, messages=ASK, service_tier=wish
            ).usage.service_tier
            for wish in wishes
        ]
    assert tiers == ["priority", "standard"]


def test_an_unknown_field_is_refused_where_that_is_wanted(start_site: StartSite) -> None:
    site = start_site(strict=True)
    answer = site.client.post("/v1/messages", json=body(mood="good"))
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "unknown_parameter"
