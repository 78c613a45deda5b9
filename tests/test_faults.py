"""The server as a whole, ended in every way while it streams: no orphan, no open row, an honest end for each client."""

import asyncio
import json
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.conftest import END_TOKEN, RunningServer, StartServer, await_ready, gone, ledger_rows, until


def body(server: RunningServer, tokens: int, **fields: object) -> dict[str, object]:
    return {
        "model": server.model,
        "prompt": "tell me of it",
        "max_tokens": tokens,
        "logit_bias": {END_TOKEN: -100},
        "stream": True,
        **fields,
    }


@contextmanager
def streaming(server: RunningServer, tokens: int) -> Iterator[Iterator[str]]:
    """The `data:` payloads of a streamed completion, from the first one on."""
    with httpx.stream(
        "POST", f"{server.base_url}/completions", json=body(server, tokens), timeout=60
    ) as answer:
        assert answer.status_code == 200, answer.read()
        yield (line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: "))


def complete(server: RunningServer, tokens: int = 4) -> httpx.Response:
    return httpx.post(f"{server.base_url}/completions", json=body(server, tokens, stream=False), timeout=60)


def worker_pid(server: RunningServer) -> int:
    pid = server.workers()[0]["pid"]
    assert isinstance(pid, int)
    return pid


def error_code(payload: str) -> str:
    error = json.loads(payload)["error"]
    assert isinstance(error["code"], str) and error["message"]
    return str(error["code"])


def test_kill_9_of_a_worker_in_mid_stream(start_server: StartServer, long_winded: Path) -> None:
    server = start_server(str(long_winded), "--parallel", "2")
    with streaming(server, 3000) as payloads:
        next(payloads)
        pid = worker_pid(server)
        os.kill(pid, signal.SIGKILL)
        rest = list(payloads)
    assert error_code(rest[-1]) == "worker_lost" and "[DONE]" not in rest
    (row,) = server.rows()
    assert (row["status"], row["reason"]) == ("refunded", "worker_lost")
    assert row["completion_tokens"] > 0
    assert complete(server).status_code == 200
    assert worker_pid(server) != pid and server.workers()[0]["restarts"] == 1
    assert server.rows()[-1]["status"] == "settled"


def test_kill_9_of_the_parent_leaves_no_orphan_and_the_next_start_refunds(
    start_server: StartServer, long_winded: Path, home: Path
) -> None:
    server = start_server(str(long_winded), home=home)
    child = worker_pid(server)
    with streaming(server, 3000) as payloads:
        next(payloads)
        server.process.kill()
        server.process.wait()
        try:
            for _ in payloads:
                pass
        except httpx.RemoteProtocolError:
            pass
    until(lambda: gone(child))
    assert [row["status"] for row in ledger_rows(home)] == ["open"]
    assert (home / "serve.json").exists()
    again = start_server(str(long_winded), home=home)
    (row,) = again.rows()
    assert (row["status"], row["reason"]) == ("refunded", "crashed")
    assert complete(again).status_code == 200


def test_a_frozen_worker_is_replaced(start_server: StartServer, long_winded: Path) -> None:
    server = start_server(str(long_winded), "--ping-seconds", "0.2")
    pid = worker_pid(server)
    with streaming(server, 3000) as payloads:
        next(payloads)
        os.kill(pid, signal.SIGSTOP)
        rest = list(payloads)
    assert error_code(rest[-1]) == "worker_lost"
    assert gone(pid)
    assert complete(server).status_code == 200


async def test_200_clients_that_leave_at_random_points(start_server: StartServer, long_winded: Path) -> None:
    server = start_server(str(long_winded), "--parallel", "8")
    chance = random.Random(11)

    async def visit(client: httpx.AsyncClient) -> None:
        chunks, seconds = chance.choice([0, 1, 3, 10]), chance.uniform(0.0, 3.0)
        try:
            async with asyncio.timeout(seconds):
                async with client.stream(
                    "POST", f"{server.base_url}/completions", json=body(server, 48)
                ) as answer:
                    async for line in answer.aiter_lines():
                        chunks -= line.startswith("data: ")
                        if chunks < 0:
                            return
        except TimeoutError:
            pass

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:
        await asyncio.gather(*(visit(client) for _ in range(200)))
    until(lambda: not any(row["status"] == "open" for row in server.rows()), 30)
    until(lambda: server.workers()[0]["running"] == 0 == server.workers()[0]["waiting"])

    def engine_is_empty() -> bool:
        gauges = server.workers()[0]["gauges"]
        assert isinstance(gauges, dict)
        return bool(gauges.get("running", 0) == 0 == gauges.get("waiting", 0))

    until(engine_is_empty)
    rows = server.rows()
    assert len(rows) > 100
    for row in rows:
        paid = row["first_output_ms"] is not None
        assert row["status"] == ("settled" if paid else "refunded")
        assert paid or row["reason"] == "cancelled"
    assert server.workers()[0]["restarts"] == 0
    assert complete(server).status_code == 200


def test_sigterm_drains(start_server: StartServer, long_winded: Path) -> None:
    server = start_server(str(long_winded))
    with streaming(server, 600) as payloads:
        next(payloads)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        refused = complete(server)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        rest = list(payloads)
    assert rest[-1] == "[DONE]"
    assert server.process.wait(20) == 0
    (row,) = server.rows()
    assert (row["status"], row["completion_tokens"]) == ("settled", 600)
    assert not (server.home / "serve.json").exists()


def test_what_outlasts_the_drain_ends_with_an_error_event(
    start_server: StartServer, long_winded: Path
) -> None:
    server = start_server(str(long_winded), "--drain-seconds", "0.3")
    child = worker_pid(server)
    with streaming(server, 3500) as payloads:
        next(payloads)
        server.process.send_signal(signal.SIGTERM)
        rest = list(payloads)
    assert error_code(rest[-1]) == "shutting_down" and "[DONE]" not in rest
    assert server.process.wait(20) == 0
    (row,) = server.rows()
    assert (row["status"], row["reason"]) == ("refunded", "shutting_down")
    assert gone(child)


def test_a_second_sigterm_ends_it_at_once(start_server: StartServer, long_winded: Path) -> None:
    server = start_server(str(long_winded), "--drain-seconds", "300")
    child = worker_pid(server)
    with streaming(server, 3500) as payloads:
        next(payloads)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        rest = list(payloads)
        assert server.process.wait(20) == 1
    assert time.monotonic() - began < 5
    assert "[DONE]" not in rest
    assert gone(child)
    assert [row["status"] for row in server.rows()] == ["refunded"]


def test_ctrl_c_in_the_terminal_does_not_kill_the_workers_before_the_drain(
    start_server: StartServer, long_winded: Path
) -> None:
    server = start_server(str(long_winded))
    with streaming(server, 300) as payloads:
        next(payloads)
        os.killpg(server.pid, signal.SIGINT)
        rest = list(payloads)
    assert rest[-1] == "[DONE]"
    assert server.process.wait(20) == 0


def test_a_service_that_signals_every_process_still_drains(
    start_server: StartServer, long_winded: Path
) -> None:
    server = start_server(str(long_winded))
    with streaming(server, 300) as payloads:
        next(payloads)
        os.kill(worker_pid(server), signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)
        assert list(payloads)[-1] == "[DONE]"
    assert server.process.wait(20) == 0


def test_two_servers_share_a_home_and_do_not_meet(
    start_server: StartServer, long_winded: Path, home: Path
) -> None:
    one = start_server(str(long_winded), home=home)
    two = start_server(str(long_winded), home=home, wait=False)
    await_ready(two)
    assert one.url != two.url
    with streaming(one, 3500) as payloads:
        next(payloads)
        assert complete(two).status_code == 200
        assert two.stop() == 0  # its end, and its sweep, leave the other's open row alone
        assert [row["status"] for row in ledger_rows(home)] == ["open", "settled"]
        next(payloads)
    assert complete(one).status_code == 200
    assert one.stop() == 0


UNREAD_TOKENS = 1000  # of four choices, each with 20 logprobs: more than the 4 MB that a kernel takes


@contextmanager
def asked_without_reading(server: RunningServer) -> Iterator[socket.socket]:
    """A client that asks for more than fits into the buffers on the way, and takes nothing of it."""
    host, port = server.url.removeprefix("http://").split(":")
    messages = [{"role": "user", "content": "tell me of it"}]
    asked = {**body(server, UNREAD_TOKENS, logprobs=True, top_logprobs=20, n=4), "messages": messages}
    del asked["prompt"]
    data = json.dumps(asked).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect((host, int(port)))
        link.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data)
        yield link


def generated(server: RunningServer) -> int:
    gauges = server.workers()[0]["gauges"]
    assert isinstance(gauges, dict)
    return int(gauges.get("generated_tokens", 0))


def test_a_drain_does_not_wait_for_clients_that_stopped_reading(
    start_server: StartServer, long_winded: Path
) -> None:
    server = start_server(str(long_winded), "--parallel", "4", "--drain-seconds", "0.5")
    with asked_without_reading(server):
        until(lambda: generated(server) >= 4 * UNREAD_TOKENS, 40)  # the model is done, its client is not
        assert [row["status"] for row in server.rows()] == ["open"]
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 4
    assert "Traceback" not in server.log and " 499 " in server.log
    assert [row["status"] for row in server.rows()] != ["open"]


def test_one_who_waits_for_what_another_server_runs_is_told_at_the_end(
    start_server: StartServer, long_winded: Path, home: Path
) -> None:
    first, second = (start_server(str(long_winded), home=home) for _ in range(2))
    asked, headers = body(first, 3500), {"idempotency-key": "one"}
    with ThreadPoolExecutor(2) as threads:

        def ask(server: RunningServer) -> Future[httpx.Response]:
            path = f"{server.base_url}/completions"
            return threads.submit(httpx.post, path, json=asked, headers=headers, timeout=60)

        ask(first)
        until(lambda: [row["status"] for row in first.rows()] == ["open"])
        waiting = ask(second)
        until(lambda: "oxlo_requests_in_flight 2.0" in httpx.get(f"{second.url}/metrics").text)
        second.process.send_signal(signal.SIGTERM)
        answer = waiting.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert second.process.wait(20) == 0
        first.stop(signal.SIGKILL)
