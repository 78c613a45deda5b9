"""The client: where it finds a server, how it reads a stream, and that every failure comes back as an error of ours."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxlo_local.client import (
    Address,
    ChatBody,
    Client,
    EventDecoder,
    Turn,
    error_from,
    locate,
    parse_url,
    read_serve_file,
)
from oxlo_local.errors import (
    BadRequest,
    ModelNotFound,
    OxloError,
    QueueFull,
    ServerError,
    Unavailable,
    WorkerLost,
    every_error,
)
from tests.conftest import RunningServer
from tests.random_server import random_server
from tests.stub_server import (
    CHAT,
    DONE,
    HEAD,
    Reply,
    Stub,
    answer,
    event,
    free_port,
    models,
    piece,
    refusal,
    stub_server,
)

BODY = ChatBody(model="stub-1", messages=[Turn("user", "hi")], temperature=0.0)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server() as server:
        yield server


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with random_server(tmp_path_factory.mktemp("nonsense")) as server:
        yield server


# -- where ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000"),
        (" https://gpu.example.org/llm/v1 ", "https://gpu.example.org/llm"),
        ("http://[::1]:9/", "http://[::1]:9"),
    ],
)
def test_addresses_are_read_as_people_write_them(given_url: str, url: str) -> None:
    assert parse_url(given_url) == url


@pytest.mark.parametrize(
    "text", ["", "ftp://host", "http://", "http://host:port", "http://host:99999", "http://h/?a=b",
             "http://a..b", f"http://{'a' * 64}.org"],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadRequest, match="127.0.0.1:8000"):
        parse_url(text)


def write_serve_file(folder: Path, url: str = "http://127.0.0.1:8123") -> Path:
    path = folder / "serve.json"
    path.write_text(json.dumps({"url": url, "pid": 7, "admin_token": "secret"}))
    return path


def test_the_serve_file_gives_address_and_token(tmp_path: Path) -> None:
    assert locate(write_serve_file(tmp_path)) == Address("http://127.0.0.1:8123", "secret")


def test_a_key_beats_the_admin_token(tmp_path: Path) -> None:
    assert locate(write_serve_file(tmp_path), key="sk-mine").token == "sk-mine"


def test_the_admin_token_goes_to_no_other_server(tmp_path: Path) -> None:
    file = write_serve_file(tmp_path)
    assert locate(file, url="http://elsewhere.example:8123").token is None
    assert locate(file, url="http://127.0.0.1:8123/v1").token == "secret"


def test_no_server_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="oxlo serve"):
        locate(tmp_path / "serve.json")


def test_a_half_written_serve_file_is_none_yet(tmp_path: Path) -> None:
    (tmp_path / "serve.json").write_text('{"url": "http://127')
    assert read_serve_file(tmp_path / "serve.json") is None


def test_a_token_is_in_no_repr() -> None:
    assert "secret" not in repr(Address("http://h", "secret"))


# -- server-sent events -----------------------------------------------------------------------------------------

STREAM = b": hello\n\ndata: one\n\nevent: x\r\ndata:two\r\ndata: more\r\n\r\n: ping\n\ndata: \xc3\xbc\n\ndata: unend"


@given(st.lists(st.integers(0, len(STREAM))))
def test_where_the_network_cuts_does_not_matter(cuts: list[int]) -> None:
    decoder = EventDecoder()
    borders = [0, *sorted(cuts), len(STREAM)]
    events = [
        data
        for begin, end in zip(borders, borders[1:], strict=False)
        for data in decoder.feed(STREAM[begin:end])
    ]
    assert events == [b"one", b"two\nmore", b"\xc3\xbc"]


# -- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", every_error()[1:])
def test_each_error_comes_back_as_itself(kind: type[OxloError]) -> None:
    body = json.dumps(
        {"error": {"message": "m", "type": kind.type, "param": "a[0]", "code": kind.code}}
    ).encode()
    error = error_from(kind.status, body, {"retry-after": "3"}, "http://h")
    assert (type(error), error.message, error.param, error.retry_after) == (kind, "m", "a[0]", 3.0)


def test_errors_of_other_servers_keep_their_words() -> None:
    foreign = error_from(400, b'{"error": {"code": 400, "message": "too long", "type": "x"}}', {}, "http://h")
    assert isinstance(foreign, BadRequest) and foreign.message == "too long"
    assert "502: <html>bad gateway" in error_from(502, b"<html>bad gateway", {}, "http://h").message


# -- synchronous ------------------------------------------------------------------------------------------------


def test_a_chat_is_streamed_with_its_head_and_usage(stub: Stub) -> None:
    stub.replies[CHAT] = [answer("Hel", "lo", cached=4)]
    with Client(Address(stub.address.url, "sk-1")) as client, client.chat(BODY) as stream:
        assert (stream.head.entry, stream.head.price_usd) == ("e_1", "0.0010")
        chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == "Hello"
    assert [chunk.has_output for chunk in chunks] == [False, True, True, False, False]
    counted = chunks[-1].usage
    assert counted is not None and (counted.prompt_tokens, counted.cached_tokens) == (7, 4)
    sent = stub.seen[0]
    assert (
        sent.headers["authorization"] == "Bearer sk-1" and sent.headers["content-type"] == "application/json"
    )
    assert json.loads(sent.body) == {
        "model": "stub-1",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_refusal_is_raised_before_anything_streams(stub: Stub) -> None:
    stub.replies[CHAT] = [refusal(429, "queue_full", "full", retry_after="2")]
    with Client(stub.address) as client, pytest.raises(QueueFull) as caught, client.chat(BODY):
        raise AssertionError("no stream")
    assert caught.value.retry_after == 2.0


def test_an_error_in_mid_stream_comes_after_what_was_sent(stub: Stub) -> None:
    lost = event(
        {
            "error": {
                "message": "the worker died",
                "type": "server_error",
                "param": None,
                "code": "worker_lost",
            }
        }
    )
    stub.replies[CHAT] = [Reply([piece("Hel"), lost], headers=HEAD)]
    seen = []
    with pytest.raises(WorkerLost, match="died"), Client(stub.address) as client, client.chat(BODY) as stream:
        for chunk in stream:
            seen.append(chunk.text)
    assert seen == ["Hel"]


@pytest.mark.parametrize("cut", [True, False])
def test_a_stream_that_just_stops_is_an_error(stub: Stub, cut: bool) -> None:
    stub.replies[CHAT] = [Reply([piece("Hel")], cut=cut)]
    with pytest.raises(ServerError), Client(stub.address) as client, client.chat(BODY) as stream:
        list(stream)


def test_a_stream_of_something_else_is_an_error(stub: Stub) -> None:
    stub.replies[CHAT] = [Reply([b"data: <html>\n\n", DONE])]
    with (
        pytest.raises(ServerError, match="no chat chunk"),
        Client(stub.address) as client,
        client.chat(BODY) as stream,
    ):
        list(stream)


def test_leaving_early_is_seen_by_the_server(stub: Stub) -> None:
    endless = Reply([piece("la")], endless=True)
    stub.replies[CHAT] = [endless]
    with Client(stub.address) as client:
        with client.chat(BODY) as stream:
            assert next(iter(stream)).text == "la"
        assert endless.left.wait(5)


def test_nobody_there_names_the_address() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(Address(url)) as client, pytest.raises(Unavailable, match=url):
        client.models()
    with Client(Address(url)) as client, pytest.raises(Unavailable, match=url), client.chat(BODY):
        raise AssertionError("no stream")


def test_no_proxy_comes_between_this_machine_and_itself(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    stub.replies["/v1/models"] = [models("a", "b")]
    with Client(stub.address) as client:
        assert [item.id for item in client.models()] == ["a", "b"]


def test_names_with_slashes_stay_one_path_segment(stub: Stub) -> None:
    stub.replies["/v1/models/hf%3Aowner%2Frepo"] = [Reply([b'{"id": "hf:owner/repo"}'])]
    with Client(stub.address) as client:
        assert client.model("hf:owner/repo").id == "hf:owner/repo"


def test_an_answer_of_another_form_is_an_error(stub: Stub) -> None:
    stub.replies["/v1/models"] = [Reply([b'{"data": 1}'])]
    with Client(stub.address) as client, pytest.raises(ServerError, match="/v1/models"):
        client.models()


# -- a real server ---------------------------------------------------------------------------------------------


def test_a_real_server_is_found_and_answers(nonsense: RunningServer) -> None:
    address = locate(nonsense.home / "serve.json")
    assert address == Address(nonsense.url, nonsense.admin_token)
    body = ChatBody(
        model=nonsense.model, messages=[Turn("user", "Hello")], max_completion_tokens=8, temperature=0
    )
    with Client(address) as client:
        assert client.ready()
        assert nonsense.model in {item.id for item in client.models()}
        assert client.model(nonsense.model).status == "ready"
        assert "# TYPE" in client.metrics()
        with client.chat(body) as stream:
            chunks = list(stream)
    assert stream.head.entry and float(stream.head.price_usd) > 0
    assert chunks[-1].usage is not None and 1 <= chunks[-1].usage.completion_tokens <= 8


def test_a_real_server_names_an_unknown_model(nonsense: RunningServer) -> None:
    body = ChatBody(model="no-such-model", messages=[Turn("user", "Hello")])
    with (
        Client(locate(nonsense.home / "serve.json")) as client,
        pytest.raises(ModelNotFound),
        client.chat(body),
    ):
        raise AssertionError("no stream")
