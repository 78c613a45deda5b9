"""What the tests of /v1/messages share: questions, the SDK as a user makes it, and what an answer says."""

from collections.abc import Iterator

import pytest
from anthropic import Anthropic
from anthropic.types import ImageBlockParam, Message, MessageParam, TextBlock

from tests.conftest import RunningServer
from tests.vision import png

GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Anthropic]:
    """The SDK as a user makes it, but that it does not try again."""
    with Anthropic(base_url=server.url, api_key="any", max_retries=0) as made:
        yield made


def asked(text: str) -> list[MessageParam]:
    return [{"role": "user", "content": text}]


def words(message: Message) -> str:
    return "".join(block.text for block in message.content if isinstance(block, TextBlock))


def picture(seed: int) -> ImageBlockParam:
    data = png(seed).partition(",")[2]
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
