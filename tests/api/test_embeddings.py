"""/v1/embeddings over a real server: OpenAI's SDK, OpenAI's description, bad requests, rows."""

import base64
import json
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.conftest import RunningServer
from tests.openai_description import judge

TEXTS = ["the cat sat on the mat", "a", "come again another day"]


@pytest.fixture(scope="module")
def client(vectors: RunningServer) -> Iterator[OpenAI]:
    """The SDK as a user makes it, but that it does not try again. It asks for base64 by itself."""
    with OpenAI(base_url=vectors.base_url, api_key="any", max_retries=0) as made:
        yield made


def post(server: RunningServer, **fields: object) -> httpx.Response:
    return httpx.post(
        f"{server.base_url}/embeddings", json={"model": "mean", "input": "x", **fields}, timeout=30
    )


def test_the_sdks_vectors_are_1_long_and_in_order(client: OpenAI) -> None:
    answer = client.embeddings.create(model="mean", input=TEXTS)
    assert [item.index for item in answer.data] == [0, 1, 2] and answer.model == "mean"
    assert all(np.linalg.norm(item.embedding) == pytest.approx(1, abs=1e-5) for item in answer.data)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)
    one = client.embeddings.create(model="mean", input=TEXTS[1])
    assert np.allclose(one.data[0].embedding, answer.data[1].embedding, atol=1e-4)


def test_floats_and_base64_are_the_same_numbers(client: OpenAI, vectors: RunningServer) -> None:
    floats = client.embeddings.create(model="mean", input=TEXTS[0], encoding_format="float").data[0].embedding
    packed = post(vectors, input=TEXTS[0], encoding_format="base64").json()["data"][0]["embedding"]
    assert floats == np.frombuffer(base64.b64decode(packed), "<f4").tolist()
    assert client.embeddings.create(model="mean", input=TEXTS[0]).data[0].embedding == floats


async def test_asynchronous_clients_share_steps(vectors: RunningServer) -> None:
    async with AsyncOpenAI(base_url=vectors.base_url, api_key="any", max_retries=0) as client:
        answer = await client.embeddings.create(model="mean", input=TEXTS * 600)
        assert len(answer.data) == 1800


def test_tokens_are_inputs_too(client: OpenAI, vectors: RunningServer) -> None:
    asked = {"model": "mean", "content": TEXTS[0], "add_special": True}
    tokens = httpx.post(f"{vectors.url}/tokenize", json=asked).json()["tokens"]
    text, one, several = (
        client.embeddings.create(model="mean", input=given).data
        for given in (TEXTS[0], tokens, [tokens, [5, 6]])
    )
    assert np.allclose(text[0].embedding, one[0].embedding, atol=1e-5)
    assert np.allclose(one[0].embedding, several[0].embedding, atol=1e-4) and len(several) == 2


def test_answers_and_errors_are_what_openai_describes(vectors: RunningServer) -> None:
    judge("CreateEmbeddingResponse", post(vectors, input=TEXTS).json())
    judge("ErrorResponse", post(vectors, input=[]).json())


def test_dimensions_only_where_the_catalogue_says_so(client: OpenAI) -> None:
    whole = client.embeddings.create(model="nested", input="x").data[0].embedding
    cut = client.embeddings.create(model="nested", input="x", dimensions=16).data[0].embedding
    assert np.allclose(cut, np.array(whole[:16]) / np.linalg.norm(whole[:16]), atol=1e-5)
    assert client.embeddings.create(model="mean", input="x", dimensions=64).data[0].embedding
    with pytest.raises(openai.BadRequestError, match="64 dimensions") as refused:
        client.embeddings.create(model="mean", input="x", dimensions=16)
    assert refused.value.param == "dimensions" and refused.value.code == "unsupported_value"
    with pytest.raises(openai.BadRequestError, match="65"):
        client.embeddings.create(model="nested", input="x", dimensions=65)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 5]}, "input[1]"),
        ({"input": [[5], []]}, "input[1]"),
        ({"input": [-1]}, "input[0]"),
        ({"input": [[5], [99_999]]}, "input[1]"),
        ({"input": None}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": [1.5]}, "input[0]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "16"}, "dimensions"),
        ({"user": 5}, "user"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
    ],
)
def test_a_malformed_request_is_told_so(
    vectors: RunningServer, fields: dict[str, object], param: str
) -> None:
    answer = post(vectors, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")


def test_an_input_that_is_too_long_is_named_with_both_numbers(vectors: RunningServer) -> None:
    error = post(vectors, input=["short", "a b " * 130]).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input[1]")
    assert "256" in error["message"] and any(
        word.isdigit() and int(word) > 256 for word in error["message"].split()
    )


@pytest.mark.parametrize(
    ("path", "model", "where"),
    [
        ("embeddings", "chat", "/v1/chat/completions"),
        ("embeddings", "rank", "/v1/rerank"),
        ("chat/completions", "mean", "/v1/embeddings"),
        ("completions", "rank", "/v1/rerank"),
        ("rerank", "mean", "/v1/embeddings"),
    ],
)
def test_a_model_of_another_kind_is_a_400_that_says_where_to_ask(
    vectors: RunningServer, path: str, model: str, where: str
) -> None:
    words: dict[str, object] = {"input": "x", "prompt": "x", "query": "x", "documents": ["x"]}
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], **words}
    answer = httpx.post(f"{vectors.base_url}/{path}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "model") and where in error["message"]


def test_unknown_fields_are_named_and_metadata_is_kept(vectors: RunningServer) -> None:
    answer = post(vectors, inputs="x", metadata={"team": "search"})
    assert "inputs" in answer.headers["x-oxlo-warnings"]
    row = next(row for row in vectors.rows() if row["id"] == answer.headers["x-oxlo-entry"])
    assert json.loads(row["metadata"]) == {"team": "search"}


def test_a_list_is_one_unit_and_what_fails_is_refunded(vectors: RunningServer) -> None:
    listed = post(vectors, input=TEXTS)
    rows = {row["id"]: row for row in vectors.rows()}
    row = rows[listed.headers["x-oxlo-entry"]]
    assert (row["endpoint"], row["model"], row["units"], row["status"]) == (
        "/v1/embeddings",
        "mean",
        1,
        "settled",
    )
    assert row["prompt_tokens"] == listed.json()["usage"]["prompt_tokens"]
    failed = post(vectors, input="a b " * 130)
    row = next(row for row in vectors.rows() if row["id"] == failed.headers["x-oxlo-entry"])
    assert (row["status"], row["error_code"]) == ("refunded", "context_length_exceeded")
    before = len(vectors.rows())
    assert "x-oxlo-entry" not in post(vectors, input="").headers and len(vectors.rows()) == before


def test_models_say_their_kind(vectors: RunningServer) -> None:
    listed = httpx.get(f"{vectors.base_url}/models").json()["data"]
    kinds = {
        item["id"]: (item["kind"], item["context_length"]) for item in listed if item["status"] == "ready"
    }
    assert kinds == {
        "mean": ("embedding", 256),
        "nested": ("embedding", 256),
        "rank": ("rerank", 256),
        "chat": ("chat", 512),
    }
