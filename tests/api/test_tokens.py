"""/tokenize, /detokenize and /apply-template over a real server: llama-server's shapes, and no row for any of them."""

import httpx
import pytest

from oxlo_local.limits import Limits
from tests.api.conftest import StartSite, chat_body
from tests.conftest import RunningServer


def post(server: RunningServer, path: str, **fields: object) -> httpx.Response:
    return httpx.post(f"{server.url}/{path}", json={"model": "chat", **fields}, timeout=30)


def test_tokens_of_a_text_and_back(vectors: RunningServer) -> None:
    rows = len(vectors.rows())
    tokens = post(vectors, "tokenize", content="hello there").json()["tokens"]
    assert tokens and post(vectors, "detokenize", tokens=tokens).json() == {"content": "hello there"}
    marked = post(vectors, "tokenize", content="hello there", add_special=True).json()["tokens"]
    assert marked[1:] == tokens
    assert len(vectors.rows()) == rows


def test_markers_are_read_unless_told_otherwise(vectors: RunningServer) -> None:
    read = post(vectors, "tokenize", content="<|im_start|>").json()["tokens"]
    plain = post(vectors, "tokenize", content="<|im_start|>", parse_special=False).json()["tokens"]
    assert len(read) == 1 < len(plain)
    for tokens in (read, plain):
        assert post(vectors, "detokenize", tokens=tokens).json() == {"content": "<|im_start|>"}


def test_a_piece_that_is_no_character_is_bytes(vectors: RunningServer) -> None:
    pieces = post(vectors, "tokenize", content="é!", with_pieces=True).json()["tokens"]
    assert [each["piece"] for each in pieces] == [[0xC3], [0xA9], "!"]
    assert post(vectors, "detokenize", tokens=[pieces[0]["id"]]).json() == {"content": "\ufffd"}


def test_the_prompt_of_a_chat_however_long(vectors: RunningServer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi " * 2000}]
    prompt = post(vectors, "apply-template", messages=messages).json()["prompt"]
    assert prompt == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{'hi ' * 2000}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_long_text_is_cut_beside_a_stream(vectors: RunningServer) -> None:
    text = "a long way " * 60_000
    tokens = post(vectors, "tokenize", content=text).json()["tokens"]
    assert len(tokens) > 60_000 and post(vectors, "detokenize", tokens=tokens).json()["content"] == text


@pytest.mark.parametrize("model", ["mean", "rank"])
def test_embedding_models_have_tokens_too(vectors: RunningServer, model: str) -> None:
    tokens = post(vectors, "tokenize", model=model, content="a cat").json()["tokens"]
    assert post(vectors, "detokenize", model=model, tokens=tokens).json() == {"content": "a cat"}


@pytest.mark.parametrize(
    ("path", "fields", "status", "param"),
    [
        ("tokenize", {}, 400, "content"),
        ("tokenize", {"content": ["a"]}, 400, "content"),
        ("tokenize", {"content": "a", "with_pieces": 1}, 400, "with_pieces"),
        ("tokenize", {"content": "a", "model": "gpt-9"}, 404, "model"),
        ("tokenize", {"content": "a", "model": None}, 400, "model"),
        ("detokenize", {}, 400, "tokens"),
        ("detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("detokenize", {"tokens": [1, 99_999]}, 400, "tokens"),
        ("apply-template", {}, 400, "messages"),
        ("apply-template", {"messages": []}, 400, "messages"),
        ("apply-template", {"messages": [{"role": "user", "content": "x"}], "model": "mean"}, 400, "model"),
    ],
)
def test_what_is_wrong_is_told(
    vectors: RunningServer, path: str, fields: dict[str, object], status: int, param: str
) -> None:
    answer = post(vectors, path, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_a_key_asks_only_what_it_was_made_for(start_site: StartSite) -> None:
    site = start_site()
    for path in ("/tokenize", "/detokenize", "/apply-template"):
        body = {**chat_body(), "content": "x", "tokens": [1]}
        for limits, status in (
            (Limits(models=("llama-*",)), 403),
            (Limits(endpoints=("chat",)), 403),
            (Limits(models=("echo",), endpoints=(path.strip("/"),)), 400),  # the echo engine's own words
        ):
            _, secret = site.run(site.keys.create(f"{path}-{limits.models}", limits=limits))
            answer = site.client.post(path, json=body, headers={"x-api-key": secret})
            assert answer.status_code == status, answer.text
            assert status == 400 or answer.json()["error"]["code"] == "model_not_allowed"


def test_a_template_is_applied_to_no_other_request_than_chat_takes(start_site: StartSite) -> None:
    site = start_site(choices_max=2)
    answer = site.client.post("/apply-template", json=chat_body(n=3))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")


def test_unknown_fields_are_named(vectors: RunningServer) -> None:
    assert "contents" in post(vectors, "tokenize", content="a", contents="b").headers["x-oxlo-warnings"]
