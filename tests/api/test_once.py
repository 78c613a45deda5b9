"""Idempotency-Key over real HTTP: one charge and one answer, whatever happens to server and client in between."""

import asyncio
import hashlib
import json
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI
from typer.testing import CliRunner

from oxlo_local.api.app import ROUTES
from oxlo_local.api.once import Fingerprint
from oxlo_local.calls import EchoOptions
from oxlo_local.claims import Demand, scope_of
from oxlo_local.cli import app as cli
from oxlo_local.keys import LOCAL
from oxlo_local.replays import Claim
from tests.api.conftest import Site, StartSite, chat_body, connect, site_of
from tests.api.crash_site import STEPS
from tests.conftest import ROOT, RunningServer, gone, until
from tests.openai_description import judge

CHAT = "/v1/chat/completions"
SLOW = EchoOptions(step_seconds=0.01, parallel=1)


def ask(site: Site, key: str, text: str = "one two three", **fields: object) -> httpx.Response:
    return site.client.post(CHAT, json=chat_body(text, **fields), headers={"idempotency-key": key})


def is_error(answer: httpx.Response, status: int, code: str) -> None:
    judge("ErrorResponse", answer.json())
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert answer.headers["x-should-retry"] == "false" and "retry-after" not in answer.headers


def is_repeated(again: httpx.Response, first: httpx.Response) -> None:
    """Status, body and what the answer says of itself; the id of the request and its times are its own."""
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["x-oxlo-replayed"] == "true" and "x-oxlo-replayed" not in first.headers
    for name in ("content-type", "x-oxlo-entry", "x-oxlo-price-usd", "x-oxlo-warnings", "cache-control"):
        assert again.headers.get(name) == first.headers.get(name)
    assert again.headers["x-request-id"] != first.headers["x-request-id"]


def statuses(site: Site) -> list[object]:
    return [row["status"] for row in site.rows()]


def send_under(site: Site, key: str, body: dict[str, object]) -> socket.socket:
    """A connection on which a chat has been asked for under a key, and nothing read yet."""
    link, data = connect(site), json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nidempotency-key: {key}\r\n"
    link.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data)
    return link


# -- the same again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_same_again_is_the_same_answer(site: Site, path: str, stream: bool) -> None:
    words = {"messages": chat_body()["messages"]} if "chat" in path else {"prompt": "one two"}
    body = {"model": "echo", "stream": stream, "mood": "odd", **words}
    headers = {"idempotency-key": f"{path}-{stream}"}
    before = len(site.rows())
    first = site.client.post(path, json=body, headers=headers)
    assert first.status_code == 200 and "mood" in first.headers["x-oxlo-warnings"]
    assert ("[DONE]" in first.text) == stream
    for _ in range(2):
        is_repeated(site.client.post(path, json=body, headers=headers), first)
    rows = site.rows()[before:]
    assert [row["status"] for row in rows] == ["settled"] and rows[0]["id"] == first.headers["x-oxlo-entry"]


# A request for every other metered POST, to the models of `vectors`.
BODIES: dict[str, dict[str, object]] = {
    "/v1/embeddings": {"model": "mean", "input": "one"},
    "/v1/rerank": {"model": "rank", "query": "one", "documents": ["one", "two"]},
    "/v1/messages": {"model": "chat", "max_tokens": 3, "messages": [{"role": "user", "content": "one"}]},
}
ELSEWHERE = {  # test_audio.py and test_images.py send those
    *("/v1/audio/transcriptions", "/v1/audio/translations"),
    *("/v1/images/generations", "/v1/images/edits", "/v1/images/variations"),
}
UNMETERED = {"/tokenize", "/detokenize", "/apply-template", "/v1/messages/count_tokens"}


def test_every_metered_post_has_its_body_here() -> None:
    posts = {endpoint.path for endpoint in ROUTES if endpoint.method == "POST"}
    told = {CHAT, "/v1/completions", *BODIES, *ELSEWHERE}
    assert posts - UNMETERED == told, "give the new endpoint a request here: it has to be answered once"


@pytest.mark.parametrize("path", BODIES)
def test_so_it_is_at_every_metered_endpoint(vectors: RunningServer, path: str) -> None:
    before, headers = len(vectors.rows()), {"idempotency-key": path}
    first, again = (httpx.post(vectors.url + path, json=BODIES[path], headers=headers) for _ in range(2))
    assert first.status_code == 200
    is_repeated(again, first)
    assert [row["status"] for row in vectors.rows()[before:]] == ["settled"]


def test_what_costs_nothing_is_done_again(vectors: RunningServer) -> None:
    before = len(vectors.rows())
    for text in ("one", "one", "another body"):
        body, headers = {"model": "mean", "content": text}, {"idempotency-key": "free"}
        answer = httpx.post(f"{vectors.url}/tokenize", json=body, headers=headers)
        assert answer.status_code == 200 and "x-oxlo-replayed" not in answer.headers
    assert len(vectors.rows()) == before


def test_another_body_is_a_conflict(site: Site) -> None:
    assert ask(site, "conflict").status_code == 200
    before = len(site.rows())
    is_error(ask(site, "conflict", "another"), 400, "idempotency_conflict")
    assert len(site.rows()) == before


def test_the_same_key_at_another_endpoint_or_of_another_api_key_is_another(start_site: StartSite) -> None:
    site = start_site()
    users = [site.run(site.keys.create(name, "user"))[1] for name in ("anna", "ben")]
    entries = set()
    for user in users:
        for path, words in (
            (CHAT, {"messages": chat_body()["messages"]}),
            ("/v1/completions", {"prompt": "x"}),
        ):
            headers = {"idempotency-key": "same", "x-api-key": user}
            answer = site.client.post(path, json={"model": "echo", **words}, headers=headers)
            assert answer.status_code == 200 and "x-oxlo-replayed" not in answer.headers
            entries.add(answer.headers["x-oxlo-entry"])
    assert len(entries) == 4


def test_what_was_refused_or_refunded_is_not_kept(start_site: StartSite) -> None:
    site = start_site()
    for _ in range(2):
        assert ask(site, "refunded", "one !fail=1").status_code == 500
    assert statuses(site) == ["refunded", "refunded"]
    assert ask(site, "refunded", "another body").status_code == 200
    assert ask(site, "refused", n=0).status_code == 400
    assert ask(site, "refused", model="nobody").status_code == 404
    assert ask(site, "refused").status_code == 200
    assert statuses(site) == ["refunded", "refunded", "settled", "settled"]


def test_a_stream_that_failed_in_the_middle_runs_again(start_site: StartSite) -> None:
    site = start_site()
    for _ in range(2):
        answer = ask(site, "broken", "one !fail=1", stream=True)
        assert answer.status_code == 200 and "server_error" in answer.text
        assert "x-oxlo-replayed" not in answer.headers
    assert statuses(site) == ["refunded", "refunded"]


@pytest.mark.parametrize("key", ["", "a b", "caf\xe9", "x" * 256, "tab\tbed"])
def test_a_key_is_visible_ascii(site: Site, key: str) -> None:
    headers = {b"idempotency-key": key.encode("latin-1")}
    answer = site.client.post(CHAT, json=chat_body(), headers=headers)
    is_error(answer, 400, "invalid_value")
    assert "255" in answer.json()["error"]["message"]


def test_the_longest_key_and_two_of_them(site: Site) -> None:
    assert ask(site, "~" * 255).status_code == 200
    twice = [("idempotency-key", "a"), ("idempotency-key", "b")]
    is_error(site.client.post(CHAT, json=chat_body(), headers=twice), 400, "invalid_value")


def test_a_get_may_carry_one_and_is_not_kept(site: Site) -> None:
    headers = {"idempotency-key": "get"}
    for _ in range(2):
        answer = site.client.get("/v1/models", headers=headers)
        assert answer.status_code == 200 and "x-oxlo-replayed" not in answer.headers


# -- while the first runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_those_who_ask_meanwhile_wait_for_the_first(start_site: StartSite, stream: bool) -> None:
    site = start_site(EchoOptions(step_seconds=0.02, parallel=8))
    with ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(ask, site, "crowd", max_tokens=20, stream=stream) for _ in range(6)]
        until(lambda: any(worker.running for worker in site.fleet.status()))
        is_error(ask(site, "crowd", "another"), 400, "idempotency_conflict")
        answers = sorted(
            (each.result() for each in asked), key=lambda each: "x-oxlo-replayed" in each.headers
        )
    for answer in answers[1:]:
        is_repeated(answer, answers[0])
    assert statuses(site) == ["settled"]


def test_if_the_first_is_refunded_the_second_runs(start_site: StartSite) -> None:
    site = start_site(SLOW)
    busy = send_under(site, "busy", chat_body(max_tokens=60))
    until(lambda: site.fleet.status()[0].running == 1)
    first = send_under(site, "left", chat_body("mine"))
    until(lambda: len(site.rows()) == 2)
    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(ask, site, "left", "mine")
        first.close()  # before any output: refunded
        answer = second.result()
    assert answer.status_code == 200 and "x-oxlo-replayed" not in answer.headers
    assert [(row["status"], row["reason"]) for row in site.rows()] == [
        ("settled", None),
        ("refunded", "cancelled"),
        ("settled", None),
    ]
    busy.close()


def test_one_who_waits_may_leave(start_site: StartSite) -> None:
    site = start_site(SLOW)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, site, "patience", max_tokens=50)
        until(lambda: site.fleet.status()[0].running == 1)
        send_under(site, "patience", chat_body("one two three", max_tokens=50)).close()
        answer = first.result()
    is_repeated(ask(site, "patience", max_tokens=50), answer)
    assert statuses(site) == ["settled"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_answer_whose_client_left_is_completed_for_its_return(start_site: StartSite, stream: bool) -> None:
    site = start_site(SLOW)
    body = chat_body("one two three", max_tokens=60, stream=stream)
    before = site.fleet.status()[0].gauges.generated_tokens
    link = send_under(site, "back-soon", body)
    until(lambda: site.fleet.status()[0].gauges.generated_tokens > before + 3)
    link.close()
    again = ask(site, "back-soon", max_tokens=60, stream=stream)
    assert again.status_code == 200 and again.headers["x-oxlo-replayed"] == "true"
    assert again.text.count("three") == 20 and ("[DONE]" in again.text) == stream
    (row,) = site.rows()
    assert (row["status"], row["error_code"], row["completion_tokens"]) == ("settled", None, 60)


def test_one_who_waits_is_told_when_its_time_is_over(start_site: StartSite) -> None:
    site = start_site(request_timeout=0.5)
    body = json.dumps(chat_body()).encode()
    headers = {"idempotency-key": "stuck", "content-type": "application/json"}
    replays = site.state.replays
    demand = Demand(scope_of(LOCAL, CHAT, "stuck"), hashlib.sha256(body).digest())
    first = site.run(replays.claim(demand))
    assert isinstance(first, Claim)
    answer = site.client.post(CHAT, content=body, headers=headers)
    judge("ErrorResponse", answer.json())
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert answer.headers["retry-after"] == "1"

    async def end() -> None:
        replays.end(first)

    site.run(end())
    assert site.client.post(CHAT, content=body, headers=headers).status_code == 200
    assert statuses(site) == ["settled"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_answer_that_cannot_be_kept_is_not_completed_for_nobody(
    start_site: StartSite, stream: bool
) -> None:
    site = start_site(SLOW, idempotency_max_bytes=0)
    before = site.fleet.status()[0].gauges.generated_tokens
    link = send_under(site, "gone", chat_body(max_tokens=100_000, stream=stream))
    until(lambda: site.fleet.status()[0].gauges.generated_tokens > before + 3)
    link.close()
    until(lambda: statuses(site) == ["settled"])
    assert site.rows()[0]["error_code"] == "cancelled"


async def test_a_crowd_that_leaves_and_comes_back_is_charged_once_for_each_key(start_site: StartSite) -> None:
    site = start_site(EchoOptions(step_seconds=0.002, parallel=8))
    chance = random.Random(4)

    async def visit(client: httpx.AsyncClient, number: int) -> httpx.Response | None:
        """Ask, and perhaps not stay: the number is in the row's metadata."""
        body = chat_body("one two", max_tokens=12, stream=number % 2 == 0, metadata={"number": str(number)})
        try:
            async with asyncio.timeout(chance.choice([0.01, 0.03, 0.1, None])):
                return await client.post(CHAT, json=body, headers={"idempotency-key": f"crowd-{number}"})
        except TimeoutError:
            return None

    async with httpx.AsyncClient(base_url=site.url, timeout=30, limits=httpx.Limits()) as client:
        await asyncio.gather(*(visit(client, number) for _ in range(6) for number in range(20)))
        for number in range(20):
            answer = None
            while answer is None:
                answer = await visit(client, number)
            assert answer.status_code == 200 and answer.text.count("two") == 6
    charged = [row["metadata"] for row in site.rows() if row["status"] != "refunded"]
    assert sorted(map(str, charged)) == sorted(json.dumps({"number": str(number)}) for number in range(20))


# -- two processes, and one that dies ----------------------------------------------------------------------------------


def test_it_is_the_same_after_a_restart_and_in_another_process(home: Path) -> None:
    with site_of(home) as one:
        first = ask(one, "lasting", stream=True)
        with site_of(home) as two:
            is_repeated(ask(two, "lasting", stream=True), first)
            is_error(ask(two, "lasting", "another"), 400, "idempotency_conflict")
    with site_of(home) as three:
        is_repeated(ask(three, "lasting", stream=True), first)
        assert statuses(three) == ["settled"]


@contextmanager
def crash_site(home: Path, step: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.api.crash_site", str(home), step],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_two_processes_wait_for_each_other(home: Path) -> None:
    body, headers = chat_body("one", max_tokens=60), {"idempotency-key": "shared"}
    with crash_site(home, "never") as (url, _), site_of(home) as site, ThreadPoolExecutor(2) as threads:
        first = threads.submit(httpx.post, url + CHAT, json=body, headers=headers, timeout=20)
        until(lambda: statuses(site) == ["open"])
        second = threads.submit(ask, site, "shared", "one", max_tokens=60)
        is_error(ask(site, "shared", "another"), 400, "idempotency_conflict")
        is_repeated(second.result(), first.result())
        assert statuses(site) == ["settled"]


def test_of_two_processes_one_is_killed_and_the_other_runs(home: Path) -> None:
    body, headers = chat_body("one", max_tokens=500), {"idempotency-key": "inherited"}
    with crash_site(home, "never") as (url, process), site_of(home) as site, ThreadPoolExecutor(2) as threads:
        first = threads.submit(httpx.post, url + CHAT, json=body, headers=headers, timeout=20)
        until(lambda: statuses(site) == ["open"])
        second = threads.submit(ask, site, "inherited", "one", max_tokens=500)
        process.kill()
        assert isinstance(first.exception(), httpx.TransportError)
        until(lambda: site.run(site.ledger.sweep()) == 1)  # a server does this every few seconds
        assert second.result().status_code == 200 and "x-oxlo-replayed" not in second.result().headers
        closed = [(row["status"], row["reason"]) for row in site.rows()]
        assert closed == [("refunded", "crashed"), ("settled", None)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("step", STEPS)
def test_kill_9_after_any_step_charges_once(home: Path, step: str, stream: bool) -> None:
    body, headers = chat_body("one two", stream=stream), {"idempotency-key": "killed"}
    with crash_site(home, step) as (url, process):
        with pytest.raises(httpx.TransportError):
            httpx.post(url + CHAT, json=body, headers=headers, timeout=20)
        until(lambda: gone(process.pid))
    with site_of(home) as site:
        answer = site.client.post(CHAT, json=body, headers=headers)
        assert answer.status_code == 200 and answer.text.count("two") == 1
        assert ("x-oxlo-replayed" in answer.headers) == (step == "settled")
        is_repeated(site.client.post(CHAT, json=body, headers=headers), answer) if step != "settled" else None
        found = [(row["status"], row["reason"]) for row in site.rows()]
    crashed = [] if step in ("claimed", "settled") else [("refunded", "crashed")]
    assert found == [*crashed, ("settled", None)]


# -- what is not kept --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [0, 100])
def test_an_answer_over_the_limit_is_not_made_twice(start_site: StartSite, largest: int) -> None:
    site = start_site(idempotency_max_bytes=largest)
    assert ask(site, "large").status_code == 200
    for _ in range(2):
        is_error(ask(site, "large"), 409, "idempotency_expired")
    assert statuses(site) == ["settled"]
    assert not site.settings.replays_dir.exists()


def test_purge_removes_what_was_said(start_site: StartSite) -> None:
    site = start_site()
    assert ask(site, "purged", "secret-word").status_code == 200
    (file,) = site.settings.replays_dir.iterdir()
    assert b"secret-word" in file.read_bytes() and file.stat().st_mode & 0o777 == 0o600
    for name in ("ledger.db", "ledger.db-wal"):
        content = (site.settings.home / name).read_bytes()
        assert b"secret-word" not in content and b"purged" not in content
    site.settings.config.touch()
    environ = {"OXLO_HOME": str(site.settings.home), "OXLO_CONFIG": str(site.settings.config)}
    assert CliRunner().invoke(cli, ["purge", "--yes"], env=environ).exit_code == 0
    assert not site.settings.replays_dir.exists()
    is_error(ask(site, "purged", "secret-word"), 409, "idempotency_expired")
    assert ask(site, "after").status_code == 200 and len(list(site.settings.replays_dir.iterdir())) == 1


# -- OpenAI's SDK ------------------------------------------------------------------------------------------------------


class LosesTheFirstAnswer(threading.Thread):
    """A connection between client and server that breaks when the first answer is about to arrive."""

    def __init__(self, site: Site) -> None:
        super().__init__(daemon=True)
        self._site = site
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[bytes] = []

    def run(self) -> None:
        for number in range(2):
            client, _ = self._listener.accept()
            with client, connect(self._site) as server:
                self.asked.append(message_from(client))
                server.sendall(self.asked[-1])
                answer = message_from(server)
                if number:
                    client.sendall(answer)
                    client.shutdown(socket.SHUT_WR)
        self._listener.close()


def message_from(link: socket.socket) -> bytes:
    """One HTTP message whose length is in its head."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += link.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = re.findall(rb"(?i)\r\ncontent-length: (\d+)", head)
    while len(body) < int(length):
        body += link.recv(1 << 16)
    return head + b"\r\n\r\n" + body


@pytest.mark.parametrize("how", ["as it comes", "by extra_headers", "as other versions of it do"])
def test_retries_of_the_sdk(start_site: StartSite, how: str) -> None:
    """The SDK as it is makes a key for each request and sends it under no name; where it has a name, nothing is
    charged twice.
    """
    site = start_site()
    between = LosesTheFirstAnswer(site)
    between.start()
    headers = {"Idempotency-Key": "mine"} if how == "by extra_headers" else {}
    with OpenAI(base_url=f"{between.url}/v1", api_key="any", max_retries=2) as client:
        if how == "as other versions of it do":
            client._idempotency_header = "Idempotency-Key"
        answer = client.chat.completions.with_raw_response.create(
            model="echo", messages=[{"role": "user", "content": "one two"}], extra_headers=headers
        )
    between.join(10)
    keyless = how == "as it comes"
    assert answer.parse().choices[0].message.content == "one two "
    assert len(between.asked) == 2 and all(
        (b"idempotency-key" in asked.lower()) != keyless for asked in between.asked
    )
    assert ("x-oxlo-replayed" in answer.headers) != keyless
    until(lambda: statuses(site) == ["settled"] * (2 if keyless else 1))


def test_the_sdk_does_not_insist_on_what_no_retry_cures(start_site: StartSite) -> None:
    site = start_site(idempotency_max_bytes=0)
    with OpenAI(base_url=f"{site.url}/v1", api_key="any", max_retries=5) as client:

        def chat(text: str) -> openai.types.chat.ChatCompletion:
            headers = {"Idempotency-Key": "mine"}
            return client.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": text}], extra_headers=headers
            )

        chat("one")
        with pytest.raises(openai.ConflictError) as expired:
            chat("one")
        with pytest.raises(openai.BadRequestError) as conflict:
            chat("two")
    assert (expired.value.code, conflict.value.code) == ("idempotency_expired", "idempotency_conflict")


# -- the fingerprint ---------------------------------------------------------------------------------------------------


def digest(body: bytes, kind: str = "application/json", piece: int = 1 << 20) -> bytes:
    fingerprint = Fingerprint(kind)
    for start in range(0, len(body), piece):
        fingerprint.add(body[start : start + piece])
    return fingerprint.digest()


def form(boundary: str, file: bytes) -> tuple[bytes, str]:
    head = f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode()
    return head + file + f"\r\n--{boundary}--\r\n".encode(), f'multipart/form-data; boundary="{boundary}"'


def test_a_body_is_known_by_its_bytes_however_they_come() -> None:
    body = b'{"model": "echo"}'
    assert len({digest(body, piece=size) for size in range(1, 20)}) == 1
    assert digest(body) != digest(body + b" ")


def test_a_form_is_known_by_its_files_not_by_its_boundary() -> None:
    prints = {
        digest(*form(name, b"\r\n--x sound -"), piece=size)
        for name in ("abc", "----0-----1")
        for size in (1, 7, 99)
    }
    assert len(prints) == 1
    assert digest(*form("abc", b"other sound")) not in prints
    assert digest(*form("abc", b"")) != digest(*form("abc", b"\0boundary\0"))
