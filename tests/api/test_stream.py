"""Streams as clients see them, and what becomes of a request whose client leaves."""

import asyncio
import json
import logging

import pytest
from starlette.types import Message

from oxlo_local.api.exchange import Exchange
from oxlo_local.api.stream import READ_AHEAD, Feed, Pace
from oxlo_local.calls import Done, EchoOptions, Event, Failed, Finished, Started, Text, Usage
from oxlo_local.catalogue import Model
from oxlo_local.errors import Cancelled, OxloError
from oxlo_local.inference import Run, closing
from oxlo_local.ledger import Entry
from oxlo_local.metrics import Metrics
from oxlo_local.workers.stream import Stream
from tests.api.conftest import Site, StartSite, chat_body, is_quiet, send
from tests.conftest import until
from tests.openai_description import judge

CHAT = "/v1/chat/completions"


def test_a_failure_in_mid_stream_is_one_event_and_the_end(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "oxlo_local.api")
    answer = site.client.post(CHAT, json=chat_body("one two !fail=2 three", stream=True))
    assert answer.status_code == 200
    blocks = answer.text.split("\n\n")
    assert blocks.pop() == ""
    value = json.loads(blocks.pop().removeprefix("data: "))
    judge("ErrorResponse", value)
    assert value["error"]["code"] == "server_error" and "[DONE]" not in answer.text
    said = "".join(
        json.loads(b.removeprefix("data: "))["choices"][0]["delta"].get("content", "") for b in blocks
    )
    assert said == "one two "
    row = site.rows()[-1]
    assert (row["status"], row["reason"], row["price_micros"]) == ("refunded", "server_error", 2700)
    until(lambda: f"POST {CHAT} 500 " in caplog.text)  # though its status line said 200
    assert f'endpoint="{CHAT}",model="echo",status="500"' in site.client.get("/metrics").text


def test_a_failure_before_output_is_a_plain_error(site: Site) -> None:
    for stream in (False, True):
        answer = site.client.post(CHAT, json=chat_body("one !fail=0", stream=stream))
        judge("ErrorResponse", answer.json())
        assert answer.status_code == 500 and answer.headers["retry-after"] == "1"
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-oxlo-entry"] == site.rows()[-1]["id"]


def test_a_whole_answer_that_fails_is_no_answer(site: Site) -> None:
    answer = site.client.post(CHAT, json=chat_body("one two !fail=2"))
    judge("ErrorResponse", answer.json())
    assert answer.status_code == 500


def test_a_worker_that_dies_in_mid_stream_ends_it_with_an_error(start_site: StartSite) -> None:
    site = start_site()
    answer = site.client.post(CHAT, json=chat_body("one !crash=1", stream=True))
    assert json.loads(answer.text.split("\n\n")[-2].removeprefix("data: "))["error"]["code"] == "worker_lost"
    assert site.rows()[-1]["reason"] == "worker_lost"


@pytest.mark.parametrize(("text", "first"), [("!hang=0 one", ": ping"), ("one !hang=1", "data: ")])
def test_silence_is_filled_with_heartbeats(start_site: StartSite, text: str, first: str) -> None:
    site = start_site(heartbeat_seconds=0.05)
    with site.client.stream("POST", CHAT, json=chat_body(text, stream=True)) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert next(lines).startswith(first)
        until(lambda: next(lines) == ": ping")
        assert next(lines) == ": ping"


# -- clients that leave ------------------------------------------------------------------------------------------------


def test_a_client_that_leaves_a_stream_pays_and_frees_its_slot(
    start_site: StartSite, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "oxlo_local.api")
    site = start_site(EchoOptions(step_seconds=0.01, parallel=1))
    link = send(site, chat_body("secret-word", stream=True, max_tokens=100_000))
    assert link.recv(10_000).startswith(b"HTTP/1.1 200")
    link.close()
    until(lambda: is_quiet(site))
    row = site.rows()[-1]
    assert (row["status"], row["error_code"]) == ("settled", "cancelled")
    until(lambda: " 499 " in caplog.text)
    assert "secret-word" not in caplog.text
    assert site.client.post(CHAT, json=chat_body("next")).status_code == 200


def test_a_client_that_leaves_before_any_output_does_not_pay(start_site: StartSite) -> None:
    site = start_site()
    for stream in (False, True):
        link = send(site, chat_body("!hang=0", stream=stream))
        until(lambda: any(row["status"] == "open" for row in site.rows()))
        link.close()
        until(lambda: not any(row["status"] == "open" for row in site.rows()))
        assert (site.rows()[-1]["status"], site.rows()[-1]["reason"]) == ("refunded", "cancelled")


def test_a_client_that_leaves_a_whole_answer_is_noticed(start_site: StartSite) -> None:
    site = start_site(EchoOptions(step_seconds=0.01))
    before = site.fleet.status()[0].gauges.generated_tokens  # by the warm-up
    link = send(site, chat_body("one", max_tokens=100_000))
    until(lambda: site.fleet.status()[0].gauges.generated_tokens > before + 3)
    link.close()
    until(lambda: is_quiet(site))
    assert (site.rows()[-1]["status"], site.rows()[-1]["error_code"]) == ("settled", "cancelled")


# -- the feed ----------------------------------------------------------------------------------------------------------


ENTRY = Entry("e_1", 1, 1000, 0.0)


def run_of(*events: Event) -> Run:
    stream = Stream("c", lambda: None)
    for event in events:
        stream.push(event, 0.0)
    return Run(ENTRY, Model(id="m"), [], stream)


async def stays() -> Message:
    """A client that never leaves."""
    never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    return await never


async def leaves() -> Message:
    """A client that has left."""
    return {"type": "http.disconnect"}


def said(count: int) -> list[Event]:
    return [*(Text("c", 0, f"{n} ", 1) for n in range(count)), Finished("c", 0, "stop"), Done("c", Usage())]


async def test_what_is_ready_comes_in_one_batch() -> None:
    seen: list[Event] = []
    async with Feed(run_of(*said(10)), stays, seen.append, None) as feed:
        batches = [batch async for batch in feed]
    assert batches == [said(10)] and seen == said(10)


async def test_a_slow_writer_does_not_make_the_feed_run_ahead() -> None:
    events = said(1000)
    async with Feed(run_of(*events), stays, lambda event: None, None) as feed:
        batches = [batch async for batch in feed]
    assert max(map(len, batches)) == READ_AHEAD
    assert [event for batch in batches for event in batch] == events


async def test_a_feed_raises_what_the_run_raises_after_what_came_before() -> None:
    run = run_of(Text("c", 0, "a", 1), Failed("c", "context_length_exceeded", "too long"))
    async with Feed(run, stays, lambda event: None, None) as feed:
        assert await anext(feed) == [Text("c", 0, "a", 1)]
        with pytest.raises(OxloError, match="too long"):
            await anext(feed)


async def test_a_feed_ends_when_the_client_has_left() -> None:
    async with Feed(run_of(), leaves, lambda event: None, None) as feed:
        with pytest.raises(Cancelled):
            await anext(feed)


@pytest.mark.parametrize(
    ("before", "closed"),
    [(Started("c", 1, 0), ("refunded", "cancelled")), (Text("c", 0, "a", 1), ("settled", "cancelled"))],
    ids=["no output", "output"],
)
async def test_what_comes_after_the_client_has_left_changes_nothing(
    before: Event, closed: tuple[str, str]
) -> None:
    """However soon after: between the client's leaving and the closing of its row the worker goes on."""
    told: list[str] = []
    stream = Stream("c", lambda: told.append("cancel"))
    stream.push(before, 0.0)
    async with Feed(Run(ENTRY, Model(id="m"), [], stream), leaves, lambda event: None, None) as feed:
        with pytest.raises(Cancelled):
            while True:
                await anext(feed)
        for event in (*said(1), Failed("c", "cancelled", "told so")):
            stream.push(event, 1.0)
    assert closing(stream, Cancelled("left"))[:2] == closed and told == ["cancel"]


def test_a_request_has_one_first_output_though_its_choices_come_one_after_the_other() -> None:
    metrics = Metrics(list)
    pace = Pace(metrics, Exchange("req_1"), "m")
    for choice in range(3):
        for event in (Text("c", choice, "a", 1), Text("c", choice, "b", 1), Finished("c", choice, "stop")):
            pace.see(event)
    counts = [line for line in metrics.text().decode().splitlines() if "_count{" in line]
    assert 'oxlo_first_output_seconds_count{model="m"} 1.0' in counts
    assert 'oxlo_inter_token_seconds_count{model="m"} 3.0' in counts


async def test_silence_is_an_empty_batch() -> None:
    async with Feed(run_of(Text("c", 0, "a", 1)), stays, lambda event: None, 0.01) as feed:
        assert [len(await anext(feed)) for _ in range(3)] == [1, 0, 0]
