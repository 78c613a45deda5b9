"""Images through everything: `oxlo serve` with an encoder beside the model, asked over HTTP."""

import base64
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from tests.conftest import RunningServer, await_ready, launch
from tests.vision import Files, png, sighted_files

__all__ = ["sighted_files"]


@pytest.fixture(scope="module")
def seeing(sighted_files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("seeing")
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").touch()
    model, _ = sighted_files("qwen2vl")
    arguments = (str(model), "--parallel", "4", "--threads", "1", "--ctx", "2048")
    server = await_ready(launch(home, folder / "serve.log", arguments, {}))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def client(seeing: RunningServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{seeing.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def content(*parts: str) -> list[Any]:
    return [
        {"type": "image_url", "image_url": {"url": part}}
        if part.startswith(("data:", "http"))
        else {"type": "text", "text": part}
        for part in parts
    ]


def ask(client: OpenAI, *parts: str, **more: Any) -> Any:
    fields = {"model": "qwen2vl", "max_tokens": 6, "temperature": 0, **more}
    return client.chat.completions.create(messages=[{"role": "user", "content": content(*parts)}], **fields)


def test_an_image_is_seen_counted_and_found_again(client: OpenAI) -> None:
    plain = ask(client, "What is it?")
    first = ask(client, "What is it?", png(1, 96, 64))
    again = ask(client, "What is it?", png(1, 96, 64))
    other = ask(client, "What is it?", png(2, 96, 64))
    assert first.usage.prompt_tokens > plain.usage.prompt_tokens + 6 * 4
    assert again.choices[0].message.content == first.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens - 1
    assert other.usage.prompt_tokens_details.cached_tokens < first.usage.prompt_tokens - 6 * 4


def test_what_text_can_do_works_with_images(client: OpenAI) -> None:
    whole = ask(client, png(1), "Say", n=2, logprobs=True, top_logprobs=2)
    assert len(whole.choices) == 2 and len(whole.choices[0].logprobs.content) >= 1
    chunks = list(ask(client, png(1), "Say", stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}}
    assert ask(client, png(1), "Is it?", response_format=form).choices[0].message.content in ('"yes"', '"no"')
    function = {"name": "look", "parameters": {"type": "object", "properties": {"far": {"type": "boolean"}},
                "required": ["far"], "additionalProperties": False}}  # fmt: skip
    tools = [{"type": "function", "function": function}]
    called = ask(client, png(1), "Look", tools=tools, tool_choice="required", max_tokens=200)
    assert called.choices[0].message.tool_calls[0].function.name == "look"


def test_the_listing_says_who_sees(client: OpenAI) -> None:
    assert client.models.retrieve("qwen2vl").to_dict()["vision"] is True


def bomb() -> str:
    """60,000 x 60,000 pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(2_000_000))) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "url",
    [
        bomb(),
        png(1)[:-300],
        png(1).replace("image/png", "image/webp"),
        "data:image/png;base64,aGVsbG8=",
        "data:image/png;base64,%%%%",
        "data:text/plain;base64,aGVsbG8=",
        "https://example.org/a.png",
        "http://169.254.169.254/latest/meta-data",
        "data:image/png;base64," + "A" * 30_000_000,
    ],
)
def test_bombs_and_lies_are_refused_within_a_second_and_disturb_nobody(
    client: OpenAI, seeing: RunningServer, url: str
) -> None:
    others: list[str] = []
    talking = threading.Thread(
        target=lambda: others.append(ask(client, "Talk", max_tokens=64).choices[0].finish_reason)
    )
    talking.start()
    begun = time.monotonic()
    answer = httpx.post(
        f"{seeing.url}/v1/chat/completions",
        json={"model": "qwen2vl", "messages": [{"role": "user", "content": content("Look", url)}]},
        timeout=30,
    )
    took = time.monotonic() - begun
    assert answer.status_code in (400, 413), answer.text[:500]
    assert answer.json()["error"]["param"] == "messages[0].content[1].image_url.url"
    assert answer.headers["x-should-retry"] == "false"
    assert took < (1.0 if len(url) < 10_000_000 else 3.0), "30 MB take their time to be sent"
    talking.join(30)
    assert others and others[0] in ("length", "stop")


def test_the_template_shows_a_marker_and_not_our_own(seeing: RunningServer) -> None:
    asked = {"model": "qwen2vl", "messages": [{"role": "user", "content": content("Look", png(1), "there")}]}
    prompt = httpx.post(f"{seeing.url}/apply-template", json=asked).json()["prompt"]
    assert "Look<__media__>there" in prompt


def test_an_encoder_that_is_none_keeps_the_server_from_starting(sighted_files: Files, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").touch()
    model, eye = sighted_files("pixtral")
    for wrong, words in ((model, "is no image encoder"), (tmp_path / "none.gguf", "cannot read")):
        server = launch(home, tmp_path / "serve.log", (str(model), "--mmproj", str(wrong)), {})
        assert server.process.wait(30) != 0
        assert words in (tmp_path / "serve.log").read_text()


def test_a_model_without_an_eye_says_so_and_refunds(client: OpenAI, server: RunningServer) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as blind:
        model = blind.models.list().data[0].id
        with pytest.raises(BadRequestError, match="cannot see images") as caught:
            ask(blind, "Look", png(1), model=model)
    assert caught.value.code == "unsupported_value"
    assert caught.value.param == "messages[0].content[1].image_url.url"
