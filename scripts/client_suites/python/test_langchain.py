"""LangChain's own standard tests for chat models and embeddings, through langchain-openai."""

import os
import struct
import zlib
from types import SimpleNamespace

import pytest
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests
from syrupy.assertion import SnapshotAssertion

# `stream_usage` is on by itself only for OpenAI's own address.
CHAT = {"model": os.environ["CHAT_MODEL"], "temperature": 0, "max_retries": 0, "stream_usage": True}
# A chat model that sees, if only of random weights; it would write until its context is full.
SEEING = {"model": os.environ["SEEING_MODEL"], "temperature": 0, "max_retries": 0, "max_tokens": 16}
# Without the switch the client sends token ids of OpenAI's own vocabulary, which mean nothing to another model.
EMBEDDINGS = {"model": os.environ["EMBEDDING_MODEL"], "check_embedding_ctx_length": False, "max_retries": 0}


class TestChat(ChatModelIntegrationTests):
    """All that is true of a text model behind this server."""

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict:
        return CHAT

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def returns_usage_metadata(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> dict:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        """Ask the same twice: the second time its beginning is known."""
        question, model = "How do I pull a model? " * 5, ChatOpenAI(**CHAT)
        model.invoke(question)
        if not stream:
            return model.invoke(question)
        chunks = list(model.stream(question))
        return sum(chunks[1:], chunks[0])

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return os.environ["CHAT_MODEL"]


def png(side: int = 64) -> bytes:
    """A square of grey."""

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + b"\x80\x80\x80" * side) * side)
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", head) + block(b"IDAT", rows) + block(b"IEND", b"")


class Seeing(ChatModelIntegrationTests):
    """Those of the tests that show the model an image, which they fetch from elsewhere: here they are given one."""

    __test__ = False

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict:
        return SEEING

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True


@pytest.fixture
def sees(monkeypatch: pytest.MonkeyPatch) -> Seeing:
    """The tests, and their image."""
    fetched = SimpleNamespace(get=lambda *_, **__: SimpleNamespace(content=png()))
    monkeypatch.setattr("langchain_tests.integration_tests.chat_models.httpx", fetched)
    return Seeing()


def test_image_inputs(sees: Seeing) -> None:
    """OpenAI's form of an image, and LangChain's own."""
    sees.test_image_inputs(ChatOpenAI(**SEEING))


def test_anthropic_inputs_with_an_image(sees: Seeing) -> None:
    """Anthropic's form of an image."""
    sees.test_anthropic_inputs(ChatOpenAI(**SEEING))


class TestChatUnit(ChatModelUnitTests):
    """What is tested without a request."""

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict:
        return CHAT

    @property
    def init_from_env_params(self) -> tuple[dict, dict, dict]:
        return {"OPENAI_API_KEY": "from-env"}, CHAT, {"openai_api_key": "from-env"}

    @pytest.mark.xfail(reason="a snapshot of the client's own fields, kept by the client's repository")
    def test_serdes(self, model: ChatOpenAI, snapshot: SnapshotAssertion) -> None:
        """It needs a file that is no part of the package."""
        super().test_serdes(model, snapshot)


class TestEmbeddings(EmbeddingsIntegrationTests):
    """Vectors over the wire."""

    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict:
        return EMBEDDINGS


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    """What is tested without a request."""

    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict:
        return EMBEDDINGS

    @property
    def init_from_env_params(self) -> tuple[dict, dict, dict]:
        return {"OPENAI_API_KEY": "from-env"}, EMBEDDINGS, {"openai_api_key": "from-env"}
