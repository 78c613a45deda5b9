"""What the ledger says: sums, periods, single rows and the stream of all rows."""

import csv
import io
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from oxlo_local import statement
from oxlo_local.db import Database
from oxlo_local.errors import NotFound
from oxlo_local.ledger import Ask, Ledger, Outcome
from oxlo_local.statement import Period
from tests.conftest import Clock

DAY = 86400.0
ASK = Ask("k_1", "/v1/chat/completions", "oxlo-demo", 1, 100, "2026-11", "req_1")


@pytest.fixture
def db(home: Path) -> Iterator[Database]:
    database = Database.open(home / "ledger.db")
    yield database
    database.close()


@pytest.fixture
async def ledger(db: Database, home: Path, clock: Clock) -> AsyncIterator[Ledger]:
    """Four rows on three days: settled, refunded, settled for three images of four, and open."""
    opened = await Ledger.open(db, home / "locks", clock=clock)
    chained = replace(ASK, chain_id="chain-1")
    await opened.settle(await opened.reserve(chained), Outcome(10, 5, 20, 2))
    clock.advance(DAY)
    await opened.refund(
        await opened.reserve(replace(ASK, model="whisper")), "timeout", Outcome(audio_seconds=1.5)
    )
    images = replace(
        chained, model="sdxl", endpoint="/v1/images/generations", units=4, unit_price_micros=2700
    )
    await opened.settle(await opened.reserve(images), Outcome(images=3, steps=60), units=3)
    clock.advance(DAY)
    await opened.reserve(replace(ASK, key_id="k_2"))
    yield opened
    await opened.close()


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    ("by", "spent"),
    [
        ("model", {"oxlo-demo": 200, "sdxl": 8100, "whisper": 0}),
        ("key", {"k_1": 8200, "k_2": 100}),
        ("day", {"1970-01-01": 100, "1970-01-02": 8100, "1970-01-03": 100}),
        ("endpoint", {"/v1/chat/completions": 200, "/v1/images/generations": 8100}),
        ("chain", {"chain-1": 8200}),  # rows without a chain are no group
    ],
)
async def test_sums_by_each_grouping(db: Database, by: statement.By, spent: dict[str, int]) -> None:
    lines = await statement.summary(db, by)
    assert {line.group: line.spent_micros for line in lines} == spent
    assert [line.group for line in lines] == sorted(spent)


@pytest.mark.usefixtures("ledger")
async def test_a_line_counts_states_and_tokens(db: Database) -> None:
    total = statement.total(await statement.summary(db, "model"))
    assert total == statement.Line("total", 4, 1, 2, 1, 8300, 100, 10, 5, 20, 2, 1.5, 3)
    assert total.plain()["spent_usd"] == "0.0083"


@pytest.mark.usefixtures("ledger")
async def test_a_key_sees_its_own_rows(db: Database) -> None:
    [line] = await statement.summary(db, "key", key_id="k_2")
    assert (line.group, line.requests, line.open) == ("k_2", 1, 1)


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    ("period", "requests"),
    [
        (Period(), 4),
        (Period(since=1000.0), 4),  # inclusive
        (Period(since=1000.001), 3),
        (Period(until=1000.0), 0),  # exclusive
        (Period(until=1000.001), 1),
        (Period(1000.0 + DAY, 1000.0 + 2 * DAY), 2),
        (Period(since=1000.0 + 3 * DAY), 0),
        (Period(since=-5.0), 4),
    ],
)
async def test_a_period_is_exact(db: Database, period: Period, requests: int) -> None:
    assert statement.total(await statement.summary(db, "model", period)).requests == requests
    assert len([row async for row in statement.export(db, period)]) == requests
    of_keys = [await statement.summary(db, "model", period, key_id) for key_id in ("k_1", "k_2", "k_3")]
    assert sum(statement.total(lines).requests for lines in of_keys) == requests and of_keys[2] == []


async def test_an_empty_ledger_has_no_lines(db: Database) -> None:
    assert await statement.summary(db, "day") == []
    assert [row async for row in statement.export(db)] == []
    assert statement.total([]).requests == 0


async def test_an_unknown_row_is_not_found(db: Database) -> None:
    with pytest.raises(NotFound, match="no entry 'e_nowhere'"):
        await statement.show(db, "e_nowhere")


async def test_an_export_has_every_row_once_in_order(
    db: Database, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statement, "PAGE", 7)
    for number in range(50):  # within one millisecond of the clock
        await ledger.reserve(replace(ASK, request_id=f"req_{number}"))
    rows = [row async for row in statement.export(db)]
    assert len({row.id for row in rows}) == len(rows) == 54
    assert [row.request_id for row in rows[4:]] == [f"req_{number}" for number in range(50)]


async def test_an_export_holds_a_page_at_a_time_and_sees_rows_that_come_meanwhile(
    db: Database, ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statement, "PAGE", 2)
    exporting = statement.export(db)
    await anext(exporting)
    clock.advance(1)
    late = await ledger.reserve(ASK)  # the writer is not held up by a half-read export
    assert [row.id async for row in exporting][-1] == late.id


@pytest.mark.usefixtures("ledger")
async def test_a_row_in_plain_form_survives_csv(db: Database) -> None:
    row = [row async for row in statement.export(db)][0]
    plain = row.plain()
    assert tuple(plain) == statement.EXPORTED
    assert (plain["opened"], plain["price_usd"]) == ("1970-01-01T00:16:40.000Z", "0.0001")
    text = io.StringIO()
    csv.writer(text).writerow(plain.values())
    assert len(next(csv.reader([text.getvalue()]))) == len(statement.EXPORTED)


@pytest.mark.parametrize(
    ("at_ms", "text"),
    [(0, "1970-01-01T00:00:00.000Z"), (1_795_424_094_050, "2026-11-23T08:54:54.050Z")],
)
def test_times_are_iso_in_utc(at_ms: int, text: str) -> None:
    assert statement.iso(at_ms) == text
