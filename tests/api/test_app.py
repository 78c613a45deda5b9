"""The frame: headers, errors of every class before and in mid-stream, routes that are not there, the log."""

import dataclasses
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from oxlo_local.api.app import ROUTES, State, create_app, error_response
from oxlo_local.calls import Call, Done, EchoOptions, Event, Failed, Started, Text, Usage
from oxlo_local.catalogue import Model
from oxlo_local.config import Settings
from oxlo_local.errors import Cancelled, OxloError, QueueFull, every_error, from_code
from oxlo_local.inference import Caller, Inference, RequestFacts, Run
from oxlo_local.ledger import Entry
from oxlo_local.metrics import Metrics
from oxlo_local.workers.stream import Stream
from tests.api.conftest import Site, StartSite, catalogue, chat_body, send
from tests.conftest import until
from tests.openai_description import judge

CHAT = "/v1/chat/completions"
ERRORS = [kind for kind in every_error() if kind is not Cancelled]  # that one is answered to nobody


class Bringing(Inference):
    """An inference whose runs bring these events and no others."""

    def __init__(self, *events: Event) -> None:
        self._events = events

    @asynccontextmanager
    async def open(
        self, call_for: Callable[[Model], Call], *, model: str, caller: Caller, request: RequestFacts
    ) -> AsyncIterator[Run]:
        """A run over a real stream."""
        stream = Stream("c", lambda: None)
        for event in self._events:
            stream.push(event, 0.0)
        yield Run(Entry("e_1", 1, 2700, 0.0), catalogue().resolve(model).model, [], stream)


async def ask(site: Site, home: Path, *events: Event, stream: bool) -> httpx.Response:
    """The application's answer to a chat whose run brings these events."""
    state = dataclasses.replace(
        site.state,
        inference=Bringing(*events),
        settings=Settings(home=home, config=home, auth="never"),
        metrics=Metrics(list),
    )
    transport = httpx.ASGITransport(create_app(state))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.post(CHAT, json=chat_body(stream=stream))


def check_headers(answer: httpx.Response, kind: type[OxloError]) -> None:
    if kind.retryable:
        assert int(answer.headers["retry-after"]) >= 1 and "x-should-retry" not in answer.headers
    else:
        assert answer.headers["x-should-retry"] == "false" and "retry-after" not in answer.headers


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.code)
async def test_every_error_before_output(
    site: Site, tmp_path: Path, kind: type[OxloError], stream: bool
) -> None:
    failed = Failed("c", kind.code, "what to do", "messages[0].role")
    answer = await ask(site, tmp_path, Started("c", 1, 0), failed, stream=stream)
    expected = from_code(kind.code, "what to do")
    judge("ErrorResponse", answer.json())
    assert answer.status_code == expected.status
    assert answer.json()["error"] == {
        "message": "what to do",
        "type": expected.type,
        "param": "messages[0].role",
        "code": expected.code,
    }
    check_headers(answer, type(expected))
    assert answer.headers["x-oxlo-entry"] == "e_1" and answer.headers["x-oxlo-price-usd"] == "0.0027"


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.code)
async def test_every_error_in_mid_stream(site: Site, tmp_path: Path, kind: type[OxloError]) -> None:
    events = [Text("c", 0, "x", 1)] * 70  # more than one batch
    answer = await ask(site, tmp_path, *events, Failed("c", kind.code, "what to do"), stream=True)
    assert answer.status_code == 200
    *before, last = answer.text.removesuffix("\n\n").split("\n\n")
    value = json.loads(last.removeprefix("data: "))
    judge("ErrorResponse", value)
    assert value["error"]["code"] == kind.code and "[DONE]" not in answer.text
    assert len(before) == 71


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.code)
async def test_every_error_of_a_whole_answer_after_output(
    site: Site, tmp_path: Path, kind: type[OxloError]
) -> None:
    answer = await ask(
        site, tmp_path, Text("c", 0, "x", 1), Failed("c", kind.code, "what to do"), stream=False
    )
    assert answer.status_code == from_code(kind.code, "").status
    judge("ErrorResponse", answer.json())


async def test_a_run_that_ends_without_its_end_is_our_failure(site: Site, tmp_path: Path) -> None:
    stream = Stream("c", lambda: None)

    class Stopping(Bringing):
        @asynccontextmanager
        async def open(
            self, call_for: Callable[[Model], Call], *, model: str, caller: Caller, request: RequestFacts
        ) -> AsyncIterator[Run]:
            stream.push(Text("c", 0, "x", 1), 0.0)
            stream.push(Done("c", Usage()), 0.0)
            stream.cancel()
            yield Run(Entry("e_1", 1, 2700, 0.0), Model(id="echo"), [], stream)

    state = dataclasses.replace(
        site.state,
        inference=Stopping(),
        settings=Settings(home=tmp_path, config=tmp_path, auth="never"),
        metrics=Metrics(list),
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(state)), base_url="http://localhost"
    ) as client:
        answer = await client.post(CHAT, json=chat_body())
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "server_error"


async def test_a_fault_of_ours_is_a_500_that_says_nothing(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Bringing):
        def open(self, *_: object, **__: object) -> object:  # type: ignore[override]
            raise ZeroDivisionError("secret detail")

    state: State = dataclasses.replace(
        site.state,
        inference=Faulty(),
        settings=Settings(home=tmp_path, config=tmp_path, auth="never"),
        metrics=Metrics(list),
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(state)), base_url="http://localhost"
    ) as client:
        answer = await client.post(CHAT, json=chat_body(), headers={"x-request-id": "find-me"})
    judge("ErrorResponse", answer.json())
    assert answer.status_code == 500 and "secret detail" not in answer.text
    assert answer.headers["x-request-id"] == "find-me"
    assert "secret detail" in caplog.text


def test_retry_after_is_what_was_computed() -> None:
    assert error_response(QueueFull("full", retry_after=7.2)).headers["retry-after"] == "8"
    assert error_response(QueueFull("full", retry_after=0.01)).headers["retry-after"] == "1"


# -- headers ----------------------------------------------------------------------------------------------------------


def test_a_sane_request_id_is_kept_and_any_other_replaced(site: Site) -> None:
    assert (
        site.client.get("/healthz", headers={"x-request-id": "My.req-1_x"}).headers["x-request-id"]
        == "My.req-1_x"
    )
    ids = set()
    for odd in ("", "x" * 129, "a b", "a;b=c", "<script>"):
        ids.add(site.client.get("/healthz", headers={"x-request-id": odd}).headers["x-request-id"])
    assert len(ids) == 5 and all(id.startswith("req_") for id in ids)


def test_every_answer_says_who_it_is_and_how_long_it_took(site: Site) -> None:
    for path in (*(endpoint.path for endpoint in ROUTES), "/nowhere", "/v1/models/none"):
        answer = site.client.get(path)
        assert answer.headers["x-request-id"] and int(answer.headers["openai-processing-ms"]) >= 0


# -- routes that are not there ----------------------------------------------------------------------------------------


def test_unknown_routes_and_methods_have_the_error_shape(site: Site) -> None:
    answer = site.client.get("/v1/nothing\u00e9")
    judge("ErrorResponse", answer.json())
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    for endpoint in ROUTES:
        path = endpoint.path.replace("{model:path}", "echo")
        answer = site.client.patch(path)
        judge("ErrorResponse", answer.json())
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        assert endpoint.method in answer.headers["allow"]


def test_head_and_options(site: Site) -> None:
    head = site.client.head("/v1/models")
    assert head.status_code == 200 and head.content == b""
    assert site.client.head(CHAT).status_code == 405
    options = site.client.options(CHAT)
    assert (options.status_code, options.headers["allow"], options.content) == (204, "POST", b"")
    assert site.client.options("/nowhere").status_code == 404


# -- the log -----------------------------------------------------------------------------------------------------------


def test_a_line_for_every_request_without_what_was_said(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "oxlo_local.api")
    site.client.get("/healthz")
    answer = site.client.post(CHAT, json=chat_body("prompt-words", mood="odd-value"))
    site.client.get("/nowhere%0aforged?token=hidden", headers={"authorization": "Bearer hidden"})
    lines = [record.getMessage() for record in caplog.records if record.name == "oxlo_local.api.app"]
    assert lines[0].startswith(f"POST {CHAT} 200 ")
    assert f"model=echo entry={answer.headers['x-oxlo-entry']}" in lines[0] and '"mood"' in lines[0]
    assert lines[1].startswith("GET /nowhere%0aforged 404 ")
    for secret in ("prompt-words", "odd-value", "hidden"):
        assert secret not in caplog.text


def test_a_full_queue_says_when_to_come_back(start_site: StartSite) -> None:
    site = start_site(EchoOptions(parallel=1), queue_max=1)
    with ExitStack() as clients:
        clients.enter_context(send(site, chat_body("one !hang=1")))
        until(lambda: site.fleet.status()[0].running == 1)
        while site.fleet.status()[0].waiting < 1:
            clients.enter_context(send(site, chat_body("waits")))
        answer = site.client.post(CHAT, json=chat_body("too many"))
    judge("ErrorResponse", answer.json())
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1 and "x-oxlo-entry" not in answer.headers
