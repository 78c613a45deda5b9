"""Connections as clients can make them: what is no HTTP, heads without end, answers that nobody takes."""

import json
import logging
import socket

import pytest

from oxlo_local.api.connections import Readers
from oxlo_local.calls import EchoOptions
from tests.api.conftest import Site, StartSite, chat_body, connect, is_quiet, send
from tests.conftest import until
from tests.openai_description import judge

CHAT = "/v1/chat/completions"
MEGABYTE = "x" * 1_000_000
UNREAD = 20  # of these are more than all the buffers on the way take
CHUNKED = (
    f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    "transfer-encoding: chunked\r\n\r\n"
).encode()


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: many\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ],
)
def test_what_is_no_http_gets_the_error_shape_too(site: Site, sent: bytes) -> None:
    with connect(site) as link:
        link.sendall(sent)
        head, _, body = link.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"connection: close" in head
    assert b"x-request-id: req_" in head and b"openai-processing-ms: 0" in head
    judge("ErrorResponse", json.loads(body))


@pytest.mark.parametrize(
    ("begun", "piece"),
    [
        (b"GET /healthz HTTP/1.1\r\nx: ", b"x" * 4096),
        (b"GET /healthz HTTP/1.1\r\n", b"name: value\r\n" * 300),
        (b"GET /", b"x" * 4096),
        (CHUNKED + b"5;", b"x" * 4096),
        (CHUNKED + b"0\r\n", b"name: value\r\n" * 300),
    ],
    ids=["header", "headers", "url", "chunk-extension", "trailers"],
)
def test_a_head_without_end_is_cut(site: Site, begun: bytes, piece: bytes) -> None:
    with connect(site) as link, pytest.raises(ConnectionError):
        link.sendall(begun)
        for _ in range(10_000):
            link.sendall(piece)
    assert site.client.get("/healthz").status_code == 200


def test_a_long_head_that_has_an_end_is_read(site: Site) -> None:
    assert site.client.get("/healthz", headers={"x": "x" * 30_000}).status_code == 200


def test_trailers_are_no_headers(site: Site) -> None:
    head = b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    with connect(site) as link:
        link.sendall(head + b"0\r\nx-request-id: from-behind\r\n\r\n")
        assert b"from-behind" not in link.makefile("rb").read()


def kept(link: socket.socket) -> int:
    """How many bytes of a cut answer the kernel still holds."""
    count = 0
    while data := link.recv(1 << 20):
        count += len(data)
    return count


@pytest.mark.parametrize(
    ("step_seconds", "code"), [(0.0, None), (0.1, "cancelled")], ids=["ended", "running"]
)
def test_a_client_that_stops_reading_counts_as_one_that_left(
    start_site: StartSite, caplog: pytest.LogCaptureFixture, step_seconds: float, code: str | None
) -> None:
    """Whether or not its answer has been computed to its end meanwhile."""
    caplog.set_level(logging.INFO, "oxlo_local.api")
    site = start_site(EchoOptions(step_seconds=step_seconds, parallel=1), write_timeout=0.5)
    tokens = UNREAD if code is None else 100 * UNREAD
    with send(site, chat_body(MEGABYTE, max_tokens=tokens, stream=True), room=4096) as link:
        until(lambda: site.rows() and site.rows()[0]["status"] != "open" and not site.http.connections())
        assert kept(link) < UNREAD * len(MEGABYTE)
    (row,) = site.rows()
    assert (row["status"], row["error_code"]) == ("settled", code)
    until(lambda: site.fleet.status()[0].running == 0)
    assert " 499 " in caplog.text


def test_a_whole_answer_that_nobody_takes_does_not_stay_in_memory(start_site: StartSite) -> None:
    site = start_site(write_timeout=0.5)
    with send(site, chat_body(MEGABYTE, max_tokens=UNREAD), room=4096) as link:
        until(lambda: site.rows() and site.rows()[0]["status"] == "settled")
        until(lambda: not site.http.connections())
        assert kept(link) < UNREAD * len(MEGABYTE)


def test_a_client_that_reads_slowly_stays(start_site: StartSite) -> None:
    site = start_site()
    readers = Readers(site.http, 10)

    async def look(now: float) -> int:
        readers.look(now)
        return sum(connection.stuck_bytes() for connection in site.http.connections())

    with send(site, chat_body(MEGABYTE, max_tokens=UNREAD), room=4096) as link:
        until(lambda: site.run(look(0.0)) > 0)
        stuck = site.run(look(9.0))
        while site.run(look(9.5)) == stuck:
            link.recv(1 << 16)
        settled = 0
        while settled != (settled := site.run(look(10.0))):  # the kernel takes its part
            pass
        assert site.run(look(19.0)) == settled
        site.run(look(20.0))
        until(lambda: not site.http.connections())


def test_a_client_that_leaves_with_another_request_waiting_behind_is_noticed(start_site: StartSite) -> None:
    site = start_site(EchoOptions(step_seconds=0.01, parallel=1))
    with send(site, chat_body("one", stream=True, max_tokens=100_000)) as link:
        assert link.recv(10_000).startswith(b"HTTP/1.1 200")
        link.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
    until(lambda: is_quiet(site))
    assert [(row["status"], row["error_code"]) for row in site.rows()] == [("settled", "cancelled")]
