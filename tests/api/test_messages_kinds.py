"""/v1/messages of models that think or see, through Anthropic's own SDK."""

from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import httpx
import pytest
from anthropic import Anthropic
from anthropic.types import ImageBlockParam, MessageParam, TextBlockParam, ThinkingBlock
from openai import OpenAI

from oxlo_local.random_model import write
from tests.api.messages import GREEDY, asked, client, picture, words
from tests.conftest import RunningServer, await_ready, launch
from tests.vision import Files, png, sighted_files

__all__ = ["client", "sighted_files"]

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
