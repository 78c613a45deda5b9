"""The lean connection: the same answers and the same errors as the client, over one connection."""

import asyncio
from collections.abc import Iterator

import pytest

from oxlo_local.client import COMPLETIONS_PATH, Address, ChatBody, Client, Turn, encode_chat, locate
from oxlo_local.errors import ModelNotFound, ServerError, Unavailable
from oxlo_local.stream_connection import StreamConnection
from tests.conftest import RunningServer
from tests.random_server import random_server
from tests.stub_server import CHAT, Reply, Stub, answer, free_port, piece, refusal, stub_server

BODY = ChatBody(model="stub-1", messages=[Turn("user", "hi")], temperature=0.0)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server() as server:
        yield server


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with random_server(tmp_path_factory.mktemp("nonsense")) as server:
        yield server


async def streamed(connection: StreamConnection) -> str:
    texts: list[str] = []
    await connection.chat(encode_chat(BODY), lambda chunk: texts.append(chunk.text))
    return "".join(texts)


async def test_one_connection_carries_many_chats(stub: Stub) -> None:
    stub.replies[CHAT] = [answer("Hel", "lo"), answer("again")]
    connection = StreamConnection(Address(stub.address.url, "sk-2"))
    assert [await streamed(connection), await streamed(connection)] == ["Hello", "again"]
    connection.close()
    assert len({seen.port for seen in stub.seen}) == 1
    assert stub.seen[0].headers["authorization"] == "Bearer sk-2"
    assert stub.seen[0].body == encode_chat(BODY)


async def test_a_completion_streams_over_the_same_connection(stub: Stub) -> None:
    said = b'data: {"choices":[{"index":0,"text":"Hel"}]}\n\ndata: {"choices":[{"text":"lo"}]}\n\ndata: [DONE]\n\n'
    stub.replies[COMPLETIONS_PATH] = [Reply([said])]
    connection, texts = StreamConnection(stub.address), list[str]()
    await connection.chat(b'{"prompt":"hi"}', lambda chunk: texts.append(chunk.text), COMPLETIONS_PATH)
    connection.close()
    assert texts == ["Hel", "lo"] and stub.seen[0].path == COMPLETIONS_PATH


async def test_a_refused_chat_leaves_the_connection_usable(stub: Stub) -> None:
    stub.replies[CHAT] = [refusal(404, "model_not_found", "no such model"), answer("yes")]
    connection = StreamConnection(stub.address)
    with pytest.raises(ModelNotFound, match="no such model"):
        await streamed(connection)
    assert await streamed(connection) == "yes"
    connection.close()


async def test_an_answer_that_breaks_off_is_an_error_and_the_next_one_is_not(stub: Stub) -> None:
    stub.replies[CHAT] = [Reply([piece("Hel")], cut=True), Reply([piece("Hel")]), answer("yes")]
    connection = StreamConnection(stub.address)
    with pytest.raises(ServerError, match="mid-answer"):
        await streamed(connection)
    with pytest.raises(ServerError, match="without saying why"):
        await streamed(connection)
    assert await streamed(connection) == "yes"
    connection.close()


async def test_a_kept_connection_that_was_just_closed_is_no_failure(stub: Stub) -> None:
    stub.replies[CHAT] = [answer("one"), Reply(silent=True), answer("two"), Reply([piece("Hel")], cut=True)]
    connection = StreamConnection(stub.address)
    assert [await streamed(connection), await streamed(connection)] == ["one", "two"]
    with pytest.raises(ServerError):  # what has begun to answer is not asked twice
        await streamed(connection)
    connection.close()
    assert len(stub.seen) == 4


async def test_a_new_connection_that_is_closed_without_a_word_is_a_failure(stub: Stub) -> None:
    stub.replies[CHAT] = [Reply(silent=True), answer("never")]
    with pytest.raises(ServerError, match="closed the connection"):
        await streamed(StreamConnection(stub.address))
    assert len(stub.seen) == 1


async def test_a_cancelled_chat_is_seen_by_the_server(stub: Stub) -> None:
    endless = Reply([piece("la")], endless=True)
    stub.replies[CHAT] = [endless]
    connection = StreamConnection(stub.address)
    begun = asyncio.Event()
    task = asyncio.create_task(connection.chat(encode_chat(BODY), lambda _: begun.set()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(endless.left.wait, 5)


async def test_nobody_there_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="oxlo serve"):
        await streamed(StreamConnection(Address(f"http://127.0.0.1:{free_port()}")))


async def test_a_real_server_speaks_the_same_to_the_lean_connection(nonsense: RunningServer) -> None:
    body = ChatBody(
        model=nonsense.model, messages=[Turn("user", "Hello")], max_completion_tokens=8, temperature=0
    )
    address = locate(nonsense.home / "serve.json")
    lean: list[str] = []
    connection = StreamConnection(address)
    head = await connection.chat(encode_chat(body), lambda chunk: lean.append(chunk.text))
    connection.close()
    with Client(address) as client, client.chat(body) as stream:
        assert "".join(chunk.text for chunk in stream) == "".join(lean)
    assert head.entry and head.entry != stream.head.entry
