"""How bodies are read, over raw sockets: what is not read must not be waited for."""

import asyncio
import json
import socket

import pytest

from oxlo_local.api.body import BIG_BODY, decoded
from tests.api.conftest import Site, StartSite, chat_body, connect
from tests.openai_description import judge

CHAT = "/v1/chat/completions"
LIMIT = 100_000


@pytest.fixture
def narrow(start_site: StartSite) -> Site:
    return start_site(max_body_bytes=LIMIT)


def request_head(*headers: str) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "host: localhost", "content-type: application/json", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_answer(link: socket.socket) -> tuple[int, dict[str, str], dict[str, object]]:
    """Status, headers and body of the answer that comes; the connection may stay open."""
    stream = link.makefile("rb")
    status = int(stream.readline().split()[1])
    headers = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.decode().partition(": ")
        headers[name] = value
    value = json.loads(stream.read(int(headers["content-length"])))
    judge("ErrorResponse", value)
    return status, headers, value


def test_a_body_declared_too_large_is_refused_unread(narrow: Site) -> None:
    with connect(narrow) as link:
        link.sendall(request_head(f"content-length: {10**12}"))
        status, headers, value = read_answer(link)
    assert status == 413 and headers["connection"] == "close"
    assert value["error"]["code"] == "request_too_large"  # type: ignore[index]
    assert headers["x-should-retry"] == "false"


def test_a_client_that_asks_first_need_not_send(narrow: Site) -> None:
    with connect(narrow) as link:
        link.sendall(request_head(f"content-length: {LIMIT + 1}", "expect: 100-continue"))
        assert read_answer(link)[0] == 413


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(narrow: Site) -> None:
    with connect(narrow) as link:
        link.sendall(request_head("transfer-encoding: chunked"))
        for _ in range(LIMIT // 10_000 + 1):
            link.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        assert read_answer(link)[0] == 413


def test_a_client_that_sends_it_all_gets_the_answer_and_a_clean_end(narrow: Site) -> None:
    with connect(narrow) as link:
        link.sendall(request_head(f"content-length: {40 * LIMIT}"))
        link.sendall(b"x" * (40 * LIMIT))
        assert read_answer(link)[0] == 413
        assert link.recv(1) == b""  # closed, not reset
    assert narrow.client.get("/healthz").status_code == 200


def test_a_body_at_the_limit_is_read(narrow: Site) -> None:
    body = json.dumps(chat_body("x")).encode()
    answer = narrow.client.post(CHAT, content=body.ljust(LIMIT), headers={"content-type": "application/json"})
    assert answer.status_code == 200


def test_a_client_that_leaves_in_mid_body_leaves_no_row(narrow: Site) -> None:
    rows = len(narrow.rows())
    with connect(narrow) as link:
        link.sendall(request_head("content-length: 500") + b'{"model"')
    assert narrow.client.post(CHAT, json=chat_body("after")).status_code == 200
    assert len(narrow.rows()) == rows + 1


def test_a_large_body_is_answered(site: Site) -> None:
    answer = site.client.post(CHAT, json=chat_body("x" * 2_000_000))
    assert answer.json()["choices"][0]["message"]["content"] == "x" * 2_000_000 + " "


def test_deep_and_huge_bodies_are_refused_within_a_second(site: Site) -> None:
    headers = {"content-type": "application/json"}
    for body in (b"[" * 30_000_000, b'{"a":[' + b"[]," * 5_000_000 + b"1]}"):
        answer = site.client.post(CHAT, content=body, headers=headers)
        assert answer.status_code == 400 and answer.elapsed.total_seconds() < 1.5
        judge("ErrorResponse", answer.json())


def test_a_big_body_is_decoded_off_the_loop() -> None:
    def on_loop(body: bytes) -> bool:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return False
        return True

    async def both() -> tuple[bool, bool]:
        return await decoded(on_loop, b"x"), await decoded(on_loop, b"x" * (BIG_BODY + 1))

    assert asyncio.run(both()) == (True, False)


def test_an_upload_without_end_is_cut(narrow: Site) -> None:
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with connect(narrow) as link, pytest.raises(ConnectionError):
        link.sendall(request_head("transfer-encoding: chunked"))
        while True:
            link.sendall(piece)
    assert narrow.client.get("/healthz").status_code == 200
