"""The path, over real workers and a real ledger: each request ends once, and its row is closed by the rule."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from oxlo_local import config
from oxlo_local.calls import Call, Denoised, Done, Drawn, Event, Failed, Finished, Started, Text, Usage
from oxlo_local.catalogue import Catalogue, Model
from oxlo_local.db import Database
from oxlo_local.errors import (
    Cancelled,
    ContextLengthExceeded,
    InsufficientQuota,
    ModelNotAllowed,
    ModelNotFound,
    ModelNotLoaded,
    OxloError,
    QueueFull,
    ServerError,
    ShuttingDown,
    TimedOut,
    UnsupportedValue,
    WorkerLost,
)
from oxlo_local.inference import (
    Caller,
    Closing,
    Inference,
    RequestFacts,
    Run,
    closing,
    draw_seconds,
    price_list,
    real_time_factor,
)
from oxlo_local.keys import Keys
from oxlo_local.ledger import Ledger
from oxlo_local.limits import UNLIMITED, Budget, Limits, version_of
from oxlo_local.workers.stream import Stream
from oxlo_local.workers.supervisor import Fleet
from tests.workers.conftest import echo, ready, say, status, until

PRICE = Decimal("0.0027")
COLUMNS = (
    "status, reason, error_code, price_micros, units, prompt_tokens, completion_tokens, queue_ms, "
    "first_output_ms, total_ms, request_id, endpoint, model, key_id"
)


@dataclass
class Row:
    """The columns that the tests look at."""

    status: str
    reason: str | None
    error_code: str | None
    price_micros: int
    units: int
    prompt_tokens: int | None
    completion_tokens: int | None
    queue_ms: float | None
    first_output_ms: float | None
    total_ms: float | None
    request_id: str
    endpoint: str
    model: str
    key_id: str


class House:
    """Inference with everything below it: one echo model, a ledger in a file."""

    def __init__(self, fleet: Fleet, db: Database, ledger: Ledger) -> None:
        models = [Model(id=id, path=Path("/echo"), price_usd=PRICE) for id in ("echo", "asleep")]
        models.append(Model(id="gone", price_usd=PRICE, fallback="echo"))
        self.catalogue = Catalogue(models, {"parrot": "echo"}, PRICE)
        self.fleet = fleet
        self.inference = Inference(self.catalogue, ledger, fleet)
        self.db = db

    def open(
        self,
        text: str,
        *,
        model: str = "echo",
        call_for: Callable[[Model], Call] | None = None,
        limits: Limits = UNLIMITED,
        key_id: str = "local",
        **fields: Any,
    ) -> Any:
        """Open a run that says `text` back."""
        make = call_for if call_for is not None else (lambda model: say("any", text, **fields))
        return self.inference.open(
            make,
            model=model,
            caller=Caller(key_id, "admin", "loopback", limits),
            request=RequestFacts("req-1", "/v1/chat/completions"),
        )

    async def rows(self) -> list[Row]:
        """All rows, oldest first."""
        sql = f"SELECT {COLUMNS} FROM entries ORDER BY id"
        return await self.db.read(lambda connection: [Row(*row) for row in connection.execute(sql)])

    async def row(self) -> Row:
        """The only row."""
        (row,) = await self.rows()
        return row


MakeHouse = Callable[..., Any]


@pytest.fixture
async def house_of(home: Path) -> AsyncIterator[MakeHouse]:
    """Makes a house from settings and echo options."""
    closers: list[tuple[Fleet, Ledger, Database]] = []

    async def make(options: dict[str, Any] | None = None, silent_pings: int = 100, **flags: object) -> House:
        settings = config.load({"home": home, "ping_seconds": 0.05, **flags}, {})
        settings.make_home()
        fleet = Fleet(settings, silent_pings=silent_pings)
        await fleet.start([echo(**(options or {}))])
        db = Database.open(settings.ledger_path)
        ledger = await Ledger.open(db, settings.locks_dir)
        closers.append((fleet, ledger, db))
        return House(fleet, db, ledger)

    yield make
    for fleet, ledger, db in closers:
        await fleet.stop(1.0)
        await ledger.close()
        db.close()


async def read(run: Run) -> list[Event]:
    return [event async for event in run]


async def test_a_complete_answer_is_settled_with_its_tokens_and_times(house_of: MakeHouse) -> None:
    house = await house_of()
    async with house.open("one two three", model="parrot") as run:
        events = await read(run)
        assert (await house.row()).status == "open"
        assert run.entry.price_micros == 2700 and run.model.id == "echo" and run.warnings == []
    assert "".join(event.text for event in events if isinstance(event, Text)) == "one two three "
    assert isinstance(events[-1], Done)
    row = await house.row()
    assert (row.status, row.reason, row.error_code, row.price_micros) == ("settled", None, None, 2700)
    assert (row.prompt_tokens, row.completion_tokens) == (3, 3)
    assert row.queue_ms is not None and row.first_output_ms is not None and row.total_ms is not None
    assert 0 < row.queue_ms <= row.first_output_ms <= row.total_ms
    assert (row.request_id, row.endpoint, row.model, row.key_id) == (
        "req-1",
        "/v1/chat/completions",
        "echo",
        "local",
    )


async def test_a_fallback_is_told_and_the_row_names_the_model_that_ran(house_of: MakeHouse) -> None:
    house = await house_of()
    async with house.open("x", model="gone") as run:
        await read(run)
        assert run.model.id == "echo" and "gone is not here" in run.warnings[0]
    assert (await house.row()).model == "echo"


async def test_a_key_is_refused_what_it_was_not_made_for_before_anything_else(house_of: MakeHouse) -> None:
    house = await house_of()

    def refuse(model: Model) -> Call:
        raise AssertionError("the call was made")

    for limits in (Limits(models=("llama-*",)), Limits(endpoints=("audio",))):
        for model in ("echo", "asleep"):  # also where the model is not running
            with pytest.raises(ModelNotAllowed):
                async with house.open("x", model=model, limits=limits, call_for=refuse):
                    pass
    async with house.open("x", model="parrot", limits=Limits(models=("echo",), tier="batch")) as run:
        await read(run)  # an alias is what it stands for
    assert len(await house.rows()) == 1


async def test_a_key_without_money_is_refused_and_its_place_is_free_again(house_of: MakeHouse) -> None:
    house = await house_of(queue_max=1)
    key, _ = await Keys(house.db).create("ci", limits=Limits(budget=Budget(2700, "total")))
    async with house.open("x", key_id=key.id) as run:
        await read(run)
        assert run.entry.standings[0].remaining == 0
    for _ in range(5):
        with pytest.raises(InsufficientQuota):
            async with house.open("x", key_id=key.id):
                pass
    async with house.open("x") as run:  # somebody else
        await read(run)
    assert [row.key_id for row in await house.rows()] == [key.id, "local"]


async def test_an_endpoint_may_have_a_price_of_its_own(house_of: MakeHouse) -> None:
    house = await house_of()
    priced = Model(
        id="echo", path=Path("/echo"), price_usd=PRICE, endpoint_prices={"chat": Decimal("0.0005")}
    )
    house.catalogue.models["echo"] = priced
    async with house.open("x") as run:
        await read(run)
    assert (await house.row()).price_micros == 500
    assert price_list(house.catalogue)["echo@chat"] == 500


async def test_what_is_refused_before_the_row_leaves_none(house_of: MakeHouse) -> None:
    house = await house_of({"parallel": 1, "step_seconds": 0.005}, queue_max=1)
    await ready(house.fleet)

    def refuse(model: Model) -> Call:
        raise UnsupportedValue("no", param="n")

    refusals: list[tuple[Any, type[OxloError]]] = [
        (house.open("x", model="unheard-of"), ModelNotFound),
        (house.open("x", model="asleep"), ModelNotLoaded),
        (house.open("x", call_for=refuse), UnsupportedValue),
    ]
    for opening, error in refusals:
        with pytest.raises(error):
            async with opening:
                pytest.fail("it was let in")
    assert await house.rows() == []
    async with house.open("x", max_tokens=1000), house.open("x", max_tokens=1000):
        with pytest.raises(QueueFull):
            async with house.open("x"):
                pytest.fail("it was let in")
        assert len(await house.rows()) == 2
    await house.fleet.drain(0)
    with pytest.raises(ShuttingDown):
        async with house.open("x"):
            pytest.fail("it was let in")
    assert len(await house.rows()) == 2


async def test_a_prompt_too_long_is_found_after_the_row_and_refunds_it(house_of: MakeHouse) -> None:
    house = await house_of({"ctx": 5})
    with pytest.raises(ContextLengthExceeded):
        async with house.open("x " * 6) as run:
            await read(run)
    row = await house.row()
    assert (row.status, row.reason, row.error_code) == (
        "refunded",
        "context_length_exceeded",
        "context_length_exceeded",
    )


async def test_a_client_that_leaves_after_output_pays(house_of: MakeHouse) -> None:
    house = await house_of({"step_seconds": 0.005})
    with pytest.raises(Cancelled):
        async with house.open("x", max_tokens=1_000_000) as run:
            async for event in run:
                if isinstance(event, Text):
                    raise Cancelled("the client left")
    row = await house.row()
    assert (row.status, row.error_code, row.price_micros) == ("settled", "cancelled", 2700)
    assert row.completion_tokens is not None and row.completion_tokens >= 1
    await until(lambda: status(house.fleet).running == 0)


async def test_output_counts_when_it_reaches_the_parent_not_when_it_is_read(house_of: MakeHouse) -> None:
    house = await house_of()
    async with house.open("x y", max_tokens=1_000_000):
        await until(lambda: status(house.fleet).gauges.generated_tokens > 10)
    assert (await house.row()).status == "settled"


async def test_a_client_that_does_not_read_holds_up_neither_the_worker_nor_memory(
    house_of: MakeHouse,
) -> None:
    house = await house_of()
    await ready(house.fleet)
    async with house.open("word", max_tokens=20_000) as slow:
        async with house.open("quick") as run:
            assert isinstance((await read(run))[-1], Done)
        await until(lambda: status(house.fleet).running == 0)  # the worker is through, nobody has read a word
        events = await read(slow)
    assert len(events) < 5000
    assert sum(event.tokens for event in events if isinstance(event, Text)) == 20_000
    assert "".join(event.text for event in events if isinstance(event, Text)) == "word " * 20_000


async def test_a_client_that_leaves_before_output_pays_nothing(house_of: MakeHouse) -> None:
    house = await house_of({"load_seconds": 0.5})

    async def ask() -> None:
        async with house.open("x") as run:
            await read(run)

    asking = asyncio.create_task(ask())
    await until(lambda: status(house.fleet).waiting == 1)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    row = await house.row()
    assert (row.status, row.reason, row.first_output_ms) == ("refunded", "cancelled", None)
    assert status(house.fleet).waiting == 0


async def test_a_request_cancelled_while_its_row_is_written_leaves_nothing_open(house_of: MakeHouse) -> None:
    house = await house_of()
    await ready(house.fleet)

    async def ask() -> None:
        async with house.open("x", max_tokens=1_000_000) as run:
            await read(run)

    for turns in range(12):
        asking = asyncio.create_task(ask())
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
    await settled_all(house)
    assert (status(house.fleet).waiting, status(house.fleet).running) == (0, 0)


async def settled_all(house: House) -> None:
    """Wait until nothing is open: neither a row nor a call."""
    await house.inference.quiet()
    async with asyncio.timeout(20):
        while any(row.status == "open" for row in await house.rows()):  # noqa: ASYNC110  # rows live in a file
            await asyncio.sleep(0.01)
    await until(lambda: (status(house.fleet).waiting, status(house.fleet).running) == (0, 0))


@pytest.mark.parametrize(
    ("text", "error", "flags"),
    [
        ("!crash=0 x", WorkerLost, {}),  # before any output
        ("!crash=1 x", WorkerLost, {}),  # after the first
        ("!crash=4 x", WorkerLost, {}),  # in mid-stream
        ("!exit=2 x", WorkerLost, {}),
        ("!hang=2 x", WorkerLost, {"step_timeout": 0.6}),
        ("!fail=0 x", ServerError, {}),
        ("!fail=3 x", ServerError, {}),
        ("x", TimedOut, {"request_timeout": 0.2}),
    ],
)
async def test_any_failure_of_ours_ends_the_call_once_and_refunds_it(
    house_of: MakeHouse, text: str, error: type[OxloError], flags: dict[str, object]
) -> None:
    house = await house_of({"step_seconds": 0.01}, **flags)
    await ready(house.fleet)
    events: list[Event] = []
    with pytest.raises(error) as raised:
        async with house.open(text, max_tokens=100_000) as run:
            async for event in run:
                events.append(event)
    assert not any(isinstance(event, (Done, Failed, Finished)) for event in events)
    row = await house.row()
    assert (row.status, row.reason, row.error_code) == ("refunded", raised.value.code, raised.value.code)
    assert row.completion_tokens == sum(isinstance(event, Text) for event in events)
    async with house.open("!stray=0 still there") as run:
        assert isinstance((await read(run))[-1], Done)
    await settled_all(house)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
async def test_kill_and_freeze_at_any_moment_leave_no_row_open(house_of: MakeHouse, sent: int) -> None:
    """Sixteen requests, some running, some queued in the worker, some in the parent, when the process goes."""
    house = await house_of({"parallel": 3, "step_seconds": 0.003}, silent_pings=40)
    await ready(house.fleet)
    outcomes: list[str] = []

    async def ask(number: int) -> None:
        try:
            async with house.open(f"request {number}", max_tokens=60) as run:
                ends = [event for event in await read(run) if isinstance(event, Done)]
            outcomes.append("done" if len(ends) == 1 else "odd")
        except WorkerLost:
            outcomes.append("lost")

    asking = [asyncio.create_task(ask(number)) for number in range(16)]
    await until(lambda: status(house.fleet).running == 3)
    pid = status(house.fleet).pid
    assert pid is not None
    os.kill(pid, sent)
    await asyncio.gather(*asking)
    assert len(outcomes) == 16 and set(outcomes) == {"done", "lost"}
    rows = await house.rows()
    assert sorted(row.status for row in rows) == sorted(
        "settled" if outcome == "done" else "refunded" for outcome in outcomes
    )


async def test_200_clients_that_leave_at_random_points_leak_nothing(house_of: MakeHouse) -> None:
    house = await house_of({"parallel": 8, "step_seconds": 0.001}, queue_max=300)
    chance = random.Random(5)

    async def ask(number: int) -> None:
        patience = chance.choice([0, 1, 2, 5, 20])
        async with house.open(f"client {number}", max_tokens=30) as run:
            async for _ in run:
                if patience == 0:
                    return
                patience -= 1

    asking = [asyncio.create_task(ask(number)) for number in range(200)]
    waiting = set(asking)
    while waiting:
        _, waiting = await asyncio.wait(waiting, timeout=0.01)
        for task in chance.sample(sorted(waiting, key=id), k=len(waiting) // 20):
            task.cancel()
    await settled_all(house)
    rows = await house.rows()
    assert rows and all(row.status == "settled" or row.reason == "cancelled" for row in rows)
    assert all((row.first_output_ms is None) == (row.status == "refunded") for row in rows)
    await until(lambda: status(house.fleet).gauges.running == 0)
    async with house.open("and another") as run:
        assert isinstance((await read(run))[-1], Done)


async def test_shutdown_ends_open_calls_and_refunds_them(house_of: MakeHouse) -> None:
    house = await house_of({"step_seconds": 0.005})
    with pytest.raises(ShuttingDown):
        async with house.open("x", max_tokens=1_000_000) as run:
            async for event in run:
                if isinstance(event, Text):
                    await house.fleet.drain(0.01)
    row = await house.row()
    assert (row.status, row.reason) == ("refunded", "shutting_down")


async def test_a_failure_above_the_path_is_ours_too(house_of: MakeHouse) -> None:
    house = await house_of()
    with pytest.raises(KeyError):
        async with house.open("x") as run:
            await read(run)
            raise KeyError("the renderer broke")
    row = await house.row()
    assert (row.status, row.reason) == ("refunded", "server_error")


def stream_with(*events: Event) -> Stream:
    stream = Stream("a", lambda: None)
    for event in events:
        stream.push(event, 1.0)
    return stream


STARTED, TEXT, FINISHED = Started("a", 1, 0), Text("a", 0, "x", 1), Finished("a", 0, "stop")
DONE, LOST = Done("a", Usage()), Failed("a", "worker_lost", "gone")


@pytest.mark.parametrize(
    ("events", "error", "closed"),
    [
        ((STARTED, TEXT, FINISHED, DONE), None, ("settled", None)),
        ((STARTED, TEXT, FINISHED, DONE), asyncio.CancelledError(), ("settled", None)),
        ((STARTED, TEXT), asyncio.CancelledError(), ("settled", "cancelled")),
        ((STARTED, TEXT), Cancelled("left"), ("settled", "cancelled")),
        ((STARTED, TEXT), None, ("settled", "cancelled")),
        ((STARTED, TEXT), GeneratorExit(), ("settled", "cancelled")),
        ((STARTED, TEXT), ConnectionResetError(), ("settled", "cancelled")),
        ((STARTED, FINISHED), None, ("settled", "cancelled")),
        ((STARTED,), asyncio.CancelledError(), ("refunded", "cancelled")),
        ((), Cancelled("left"), ("refunded", "cancelled")),
        ((STARTED, TEXT, LOST), WorkerLost("gone"), ("refunded", "worker_lost")),
        ((STARTED, TEXT, LOST), asyncio.CancelledError(), ("refunded", "worker_lost")),
        ((STARTED, TEXT), ValueError("ours"), ("refunded", "server_error")),
        ((STARTED, TEXT), TimedOut("ours"), ("refunded", "timeout")),
        ((STARTED, TEXT, FINISHED, DONE), ValueError("ours"), ("refunded", "server_error")),
    ],
)
def test_the_rule_of_closing(
    events: tuple[Event, ...], error: BaseException | None, closed: tuple[str, str | None]
) -> None:
    assert closing(stream_with(*events), error) == Closing(*closed)  # type: ignore[arg-type]


STEP, FIRST, SECOND = (
    Denoised("a", 0, 1, 4),
    Drawn("a", 0, b"x", 64, 64, 7),
    Drawn("a", 1, b"y", 64, 64, 8),
)


@pytest.mark.parametrize(
    ("events", "error", "delivered", "closed"),
    [
        ((STARTED, STEP, FIRST, SECOND, DONE), None, 0, ("settled", None, 2)),
        ((STARTED, STEP, FIRST), Cancelled("left"), 0, ("settled", "cancelled", 1)),
        ((STARTED, STEP, FIRST), Cancelled("left"), 1, ("settled", "cancelled", 1)),
        ((STARTED, STEP), Cancelled("left"), 0, ("refunded", "cancelled", None)),
        ((STARTED, STEP, FIRST, LOST), WorkerLost("gone"), 0, ("refunded", "worker_lost", None)),
        ((STARTED, STEP, FIRST, LOST), WorkerLost("gone"), 1, ("settled", "worker_lost", 1)),
        ((STARTED, STEP, FIRST, SECOND), TimedOut("ours"), 1, ("settled", "timeout", 1)),
        ((STARTED, STEP, FIRST, SECOND, DONE), ValueError("ours"), 0, ("refunded", "server_error", None)),
    ],
)
def test_of_some_images_those_delivered_are_settled(
    events: tuple[Event, ...],
    error: BaseException | None,
    delivered: int,
    closed: tuple[str, str | None, int | None],
) -> None:
    assert closing(stream_with(*events), error, delivered) == Closing(*closed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("events", "seconds"),
    [((STARTED, STEP), 1.5), ((STARTED, FIRST), 1.5), ((STARTED, TEXT), None), ((), None)],
)
def test_the_seconds_of_drawing_are_those_after_the_queue(
    events: tuple[Event, ...], seconds: float | None
) -> None:
    assert draw_seconds(stream_with(*events), 2000.0, 500.0) == seconds


def test_the_price_version_changes_with_a_price_and_with_nothing_else() -> None:
    def version(price: str, title: str = "") -> str:
        models = [Model(id="a", price_usd=Decimal(price), title=title)]
        return version_of(price_list(Catalogue(models, {}, PRICE)))

    assert version("0.0010") == version("0.001", title="other")
    assert version("0.0010") != version("0.0011")


@pytest.mark.parametrize(
    ("terminal", "total", "queue", "factor"),
    [
        (Done("a", Usage(audio_seconds=60.0)), 3000.0, 1000.0, 30.0),
        (Done("a", Usage(audio_seconds=60.0)), 2000.0, None, 30.0),
        (Done("a", Usage(audio_seconds=0.25)), 0.1, 0.1, 250.0),
        (Done("a", Usage(10, 5)), 3000.0, 1000.0, None),
        (Failed("a", "cancelled", "", None, Usage(audio_seconds=60.0)), 3000.0, 0.0, None),
        (None, 3000.0, 0.0, None),
    ],
)
def test_a_real_time_factor_is_audio_by_work(
    terminal: Done | Failed | None, total: float, queue: float | None, factor: float | None
) -> None:
    assert real_time_factor(terminal, total, queue) == factor
