"""The stock OpenAI SDK, synchronous and asynchronous, against a real server with a real model."""

import asyncio
import signal
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.conftest import ROOT, RunningServer, await_ready, launch, until

DEMO = ROOT / "oxlo_local" / "embedded" / "oxlo-demo.gguf"
STORIES = ROOT.parent / "shared" / "models" / "stories260K.gguf"
# The stories model was never taught to chat; with this it goes on with the last message.
TELLING = f"""
[models.teller]
file = "{STORIES}"
[models.teller.options]
chat_template = "{{% for m in messages %}}{{{{ m.content }}}} {{% endfor %}}"
"""
START = "Once upon a time, there was a"


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server over a model that chats: oxlo-demo, else the stories model with a template."""
    if not (DEMO.is_file() or STORIES.is_file()):
        pytest.skip("neither oxlo-demo.gguf nor the shared stories model is here")
    folder = tmp_path_factory.mktemp("talking")
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").touch()
    if not DEMO.is_file():
        (home / "models.toml").write_text(TELLING)
    name = "oxlo-demo" if DEMO.is_file() else "teller"
    running = await_ready(launch(home, folder / "serve.log", (name, "--parallel", "4"), {}))
    yield running
    assert running.stop(signal.SIGTERM) == 0


@pytest.fixture(scope="module")
def client(talking: RunningServer) -> Iterator[OpenAI]:
    """The SDK as a user makes it, but that it does not try again."""
    with OpenAI(base_url=talking.base_url, api_key="any", max_retries=0) as made:
        yield made


def asked(text: str = START) -> list[openai.types.chat.ChatCompletionMessageParam]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def test_a_chat(client: OpenAI, talking: RunningServer) -> None:
    answer = client.chat.completions.create(
        model=talking.model, messages=asked(), max_tokens=12, temperature=0
    )
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.model == talking.model and answer.object == "chat.completion"
    assert answer.usage is not None and 0 < answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_streamed_chat_says_the_same(client: OpenAI, talking: RunningServer) -> None:
    whole = client.chat.completions.create(
        model=talking.model, messages=asked(), max_tokens=12, temperature=0
    )
    stream = client.chat.completions.create(
        model=talking.model,
        messages=asked(),
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_n_choices_are_counted_and_a_seed_repeats_them(client: OpenAI, talking: RunningServer) -> None:
    answers = [
        client.chat.completions.create(
            model=talking.model, messages=asked(), max_tokens=8, n=3, seed=7, temperature=1
        )
        for _ in range(2)
    ]
    texts = [[choice.message.content for choice in answer.choices] for answer in answers]
    assert texts[0] == texts[1] and len(texts[0]) == 3
    assert [choice.index for choice in answers[0].choices] == [0, 1, 2]
    assert answers[0].usage is not None and 3 < answers[0].usage.completion_tokens <= 24


def test_stop_strings_are_not_said(client: OpenAI, talking: RunningServer) -> None:
    def say(stop: list[str] | None) -> str:
        answer = client.completions.create(
            model=talking.model, prompt=START, max_tokens=24, temperature=0, stop=stop
        )
        if stop:
            assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].text

    free = say(None)
    stop = free[len(free) // 2 : len(free) // 2 + 3]
    assert say([stop]) == free[: free.index(stop)]


def test_logprobs_of_a_chat(client: OpenAI, talking: RunningServer) -> None:
    answer = client.chat.completions.create(
        model=talking.model, messages=asked(), max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content and answer.usage is not None
    assert len(logprobs.content) <= answer.usage.completion_tokens
    for token in logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.logprob == max(top.logprob for top in token.top_logprobs)  # greedy
        assert token.bytes is not None


def test_a_completion_with_echo_and_logprobs(client: OpenAI, talking: RunningServer) -> None:
    answer = client.completions.create(
        model=talking.model, prompt=START, max_tokens=5, temperature=0, logprobs=2, echo=True
    )
    choice = answer.choices[0]
    assert choice.text.startswith(START) and choice.logprobs is not None
    table = choice.logprobs
    assert table.tokens and table.token_logprobs and table.top_logprobs and table.text_offset
    assert len(table.tokens) == len(table.token_logprobs) == len(table.top_logprobs) == len(table.text_offset)
    assert answer.usage is not None
    assert len(table.tokens) == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert table.text_offset == sorted(table.text_offset)
    for token, offset in zip(table.tokens[2:], table.text_offset[2:], strict=True):
        assert token.startswith("bytes:") or choice.text[offset:].startswith(token)


def test_streamed_completions_of_several_prompts(client: OpenAI, talking: RunningServer) -> None:
    prompts = [START, "The sun"]
    whole = client.completions.create(model=talking.model, prompt=prompts, max_tokens=6, temperature=0)
    texts = ["", ""]
    for chunk in client.completions.create(
        model=talking.model, prompt=prompts, max_tokens=6, temperature=0, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


def test_models(client: OpenAI, talking: RunningServer) -> None:
    assert talking.model in [model.id for model in client.models.list()]
    model = client.models.retrieve(talking.model)
    assert model.id == talking.model and model.object == "model"


def test_headers_of_a_metered_answer(client: OpenAI, talking: RunningServer) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=talking.model, messages=asked(), max_tokens=2, extra_body={"mood": "good", "top_k": 5}
    )
    assert raw.headers["x-oxlo-entry"].startswith("e_")
    assert float(raw.headers["x-oxlo-price-usd"]) > 0
    assert raw.headers["x-oxlo-warnings"] == 'unknown field "mood" has no effect'
    assert raw.parse()._request_id == raw.headers["x-request-id"]


def test_errors_are_the_sdks_own(client: OpenAI, talking: RunningServer) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="gpt-9", messages=asked())
    assert (not_found.value.code, not_found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=talking.model, messages=asked(), temperature=9)
    assert bad.value.param == "temperature" and bad.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as later:
        client.chat.completions.create(model=talking.model, messages=asked(), store=True)
    assert later.value.code == "unsupported_value"
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as long:
            client.completions.create(model=talking.model, prompt=[5] * 100_000, stream=stream)
        assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as other:
        client.embeddings.create(model=talking.model, input="x")
    assert other.value.param == "model" and other.value.request_id


def test_a_stream_that_is_closed_early_frees_its_slot(client: OpenAI, talking: RunningServer) -> None:
    stream = client.completions.create(
        model=talking.model, prompt=START, max_tokens=300, stream=True, extra_body={"logit_bias": {"2": -100}}
    )
    next(iter(stream))
    stream.close()
    until(lambda: all(worker["running"] == 0 for worker in talking.workers()))


async def test_sixteen_asynchronous_clients(talking: RunningServer) -> None:
    async with AsyncOpenAI(base_url=talking.base_url, api_key="any", max_retries=0) as client:

        async def chat(number: int) -> str:
            stream = await client.chat.completions.create(
                model=talking.model, messages=asked(f"{START} {number}"), max_tokens=8, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        texts = await asyncio.gather(*(chat(number) for number in range(16)))
        assert all(texts)
        answer = await client.completions.create(model=talking.model, prompt=START, max_tokens=3)
        assert answer.choices[0].text
        assert talking.model in [model.id async for model in client.models.list()]
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="gpt-9", prompt="x")


def test_keys_as_the_sdk_sends_them(talking: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("keyed")
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text('auth = "always"\n')
    if not DEMO.is_file():
        (home / "models.toml").write_text(TELLING)
    server = await_ready(launch(home, folder / "serve.log", (talking.model,), {}))
    try:
        key = next(line for line in server.log.split() if line.startswith("oxlo_"))
        with OpenAI(base_url=server.base_url, api_key=key, max_retries=0) as client:
            assert client.models.list().data
        with (
            OpenAI(base_url=server.base_url, api_key="sk-wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError) as refused,
        ):
            client.models.list()
        assert refused.value.code == "invalid_api_key"
    finally:
        server.stop()
