"""The ledger: every row is closed exactly once, whatever happens to the request, the file or the process."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from oxlo_local import statement
from oxlo_local.db import Connection, Database
from oxlo_local.errors import LedgerUnavailable
from oxlo_local.instance import names
from oxlo_local.ledger import Ask, Entry, EntryClosed, Ledger, Outcome, usd
from oxlo_local.statement import Row
from tests.conftest import Clock, ledger_rows

ASK = Ask("k_1", "/v1/chat/completions", "oxlo-demo", 1, 2700, "2026-11", "req_1")


@pytest.fixture
def db(home: Path) -> Iterator[Database]:
    database = Database.open(home / "ledger.db", busy_seconds=0.05)
    yield database
    database.close()


@pytest.fixture
async def ledger(db: Database, home: Path, clock: Clock) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(db, home / "locks", clock=clock)
    yield opened
    await opened.close()


async def row_of(db: Database, entry: Entry) -> Row:
    return await statement.show(db, entry.id)


# -- the life of a row ------------------------------------------------------------------------------------------------


async def test_a_row_is_in_the_file_before_reserve_returns(db: Database, ledger: Ledger, home: Path) -> None:
    ask = replace(
        ASK,
        chain_id="chain-1",
        metadata={"ticket": "7", "von": "Jürgen"},
        address_class="public",
        job_id="job_1",
    )
    entry = await ledger.reserve(ask)
    [row] = ledger_rows(home)  # as any other program sees it
    assert (row["id"], row["status"], row["closed_ms"], row["reason"]) == (entry.id, "open", None, None)
    assert (row["key_id"], row["endpoint"], row["model"]) == ("k_1", "/v1/chat/completions", "oxlo-demo")
    assert (row["units"], row["unit_price_micros"], row["price_micros"]) == (1, 2700, 2700)
    assert (row["price_version"], row["request_id"], row["chain_id"]) == ("2026-11", "req_1", "chain-1")
    assert (row["address_class"], row["job_id"], row["opened_ms"]) == ("public", "job_1", 1_000_000)
    assert (entry.price_micros, entry.opened, row["instance"]) == (2700, 1000.0, ledger.instance_id)
    assert (await row_of(db, entry)).plain()["metadata"] == {"ticket": "7", "von": "Jürgen"}


async def test_a_ledger_that_was_closed_has_begun_its_wal_before_the_first_request(home: Path) -> None:
    wal = home / "ledger.db-wal"
    for _ in range(2):
        database = Database.open(home / "ledger.db")
        ledger = await Ledger.open(database, home / "locks")
        assert wal.stat().st_size > 0
        await ledger.close()
        database.close()
        assert not wal.exists() or wal.stat().st_size == 0


async def test_settling_keeps_the_price_and_what_was_needed(
    db: Database, ledger: Ledger, clock: Clock
) -> None:
    entry = await ledger.reserve(ASK)
    clock.advance(2.5)
    outcome = Outcome(120, 80, 200, 50, queue_ms=1.5, first_output_ms=80.25, total_ms=2500.0)
    await ledger.settle(entry, outcome)
    row = await row_of(db, entry)
    assert (row.status, row.reason, row.closed_ms, row.price_micros) == ("settled", None, 1_002_500, 2700)
    tokens = (row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.reasoning_tokens)
    assert tokens == (120, 80, 200, 50)
    assert (row.queue_ms, row.first_output_ms, row.total_ms) == (1.5, 80.25, 2500.0)


async def test_a_refund_says_why(db: Database, ledger: Ledger) -> None:
    entry = await ledger.reserve(ASK)
    await ledger.refund(entry, "worker_lost", Outcome(prompt_tokens=9, error_code="worker_lost"))
    row = await row_of(db, entry)
    assert (row.status, row.reason, row.error_code) == ("refunded", "worker_lost", "worker_lost")
    assert (row.price_micros, row.prompt_tokens) == (2700, 9)
    [line] = await statement.summary(db, "model")
    assert (line.spent_micros, line.refunded_micros) == (0, 2700)


async def test_of_several_images_those_delivered_are_charged(db: Database, ledger: Ledger) -> None:
    entry = await ledger.reserve(replace(ASK, endpoint="/v1/images/generations", units=4))
    assert entry.price_micros == 4 * 2700
    await ledger.settle(entry, Outcome(images=3, steps=60), units=3)
    row = await row_of(db, entry)
    assert (row.units, row.price_micros, row.images, row.steps) == (3, 3 * 2700, 3, 60)


@pytest.mark.parametrize("delivered", [-1, 5])
async def test_more_than_was_reserved_cannot_be_charged(ledger: Ledger, delivered: int) -> None:
    entry = await ledger.reserve(replace(ASK, units=4))
    with pytest.raises(ValueError, match=f"{delivered} units delivered of 4 reserved"):
        await ledger.settle(entry, Outcome(), units=delivered)
    await ledger.settle(entry, Outcome())


async def test_a_row_is_closed_once(db: Database, ledger: Ledger, clock: Clock) -> None:
    settled, refunded = await ledger.reserve(ASK), await ledger.reserve(ASK)
    await ledger.settle(settled, Outcome(completion_tokens=1))
    await ledger.refund(refunded, "timeout", Outcome())
    before = [await row_of(db, entry) for entry in (settled, refunded)]
    clock.advance(9)
    with pytest.raises(EntryClosed, match="is settled: it cannot be refunded"):
        await ledger.refund(settled, "timeout", Outcome())
    with pytest.raises(EntryClosed, match="is settled: it cannot be settled"):
        await ledger.settle(settled, Outcome(completion_tokens=2))
    with pytest.raises(EntryClosed, match="is refunded: it cannot be settled"):
        await ledger.settle(refunded, Outcome())
    with pytest.raises(EntryClosed, match="is not there"):
        await ledger.settle(Entry("e_0", 1, 1, 0.0), Outcome())
    assert [await row_of(db, entry) for entry in (settled, refunded)] == before


async def test_many_requests_at_once_each_get_their_row(db: Database, ledger: Ledger) -> None:
    async def request(number: int) -> None:
        entry = await ledger.reserve(replace(ASK, request_id=f"req_{number}"))
        if number % 3:
            await ledger.settle(entry, Outcome(completion_tokens=number))
        else:
            await ledger.refund(entry, "cancelled", Outcome())

    await asyncio.gather(*(request(number) for number in range(300)))
    rows = [row async for row in statement.export(db)]
    assert {row.request_id: row.status for row in rows} == {
        f"req_{number}": "settled" if number % 3 else "refunded" for number in range(300)
    }


# -- what the file itself refuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("UPDATE entries SET completion_tokens = 1 WHERE status = 'settled'", "closed entry is never edited"),
        ("UPDATE entries SET status = 'open', closed_ms = NULL WHERE status = 'settled'", "never edited"),
        ("UPDATE entries SET key_id = 'k_2' WHERE status = 'open'", "was reserved for is never edited"),
        ("UPDATE entries SET unit_price_micros = 0, price_micros = 0", "never edited"),
        ("UPDATE entries SET price_micros = 1 WHERE status = 'open'", "CHECK constraint failed"),
        ("UPDATE entries SET price_micros = 2700.5 WHERE status = 'open'", "CHECK constraint failed"),
        ("UPDATE entries SET units = 1.5, price_micros = 4050 WHERE status = 'open'", "CHECK constraint"),
        ("UPDATE entries SET status = 'paid', closed_ms = 1 WHERE status = 'open'", "CHECK constraint"),
        ("UPDATE entries SET status = 'settled' WHERE status = 'open'", "CHECK constraint failed"),
        ("UPDATE entries SET status = 'refunded', closed_ms = 1 WHERE status = 'open'", "CHECK constraint"),
        ("DELETE FROM entries WHERE status = 'open'", "an entry is never deleted"),
        ("DELETE FROM entries WHERE status = 'settled'", "an entry is never deleted"),
    ],
)
async def test_the_file_refuses_what_the_program_must_never_do(
    db: Database, ledger: Ledger, home: Path, sql: str, message: str
) -> None:
    await ledger.reserve(ASK)
    await ledger.settle(await ledger.reserve(ASK), Outcome())
    before = [tuple(row) for row in ledger_rows(home)]
    with pytest.raises(sqlite3.IntegrityError, match=message):
        await db.write(lambda connection: connection.execute(sql) and None)
    assert [tuple(row) for row in ledger_rows(home)] == before


# -- clients that leave, disks that fail ------------------------------------------------------------------------------


async def test_a_request_cancelled_while_it_reserves_leaves_no_open_row(db: Database, ledger: Ledger) -> None:
    for pauses in range(4):
        reserving = asyncio.create_task(ledger.reserve(ASK))
        for _ in range(pauses):
            await asyncio.sleep(0)
        reserving.cancel()
        await asyncio.gather(reserving, return_exceptions=True)
    await db.write(lambda connection: None)  # everything queued before has been written
    rows = [row async for row in statement.export(db)]
    assert {(row.status, row.reason) for row in rows} == {("refunded", "cancelled")}
    assert len(rows) == 3  # the first was cancelled before it began


async def test_a_request_cancelled_while_it_settles_is_settled(db: Database, ledger: Ledger) -> None:
    entry = await ledger.reserve(ASK)
    settling = asyncio.create_task(ledger.settle(entry, Outcome(completion_tokens=5)))
    await asyncio.sleep(0)
    settling.cancel()
    await db.write(lambda connection: None)
    assert settling.cancelled()
    row = await row_of(db, entry)
    assert (row.status, row.completion_tokens) == ("settled", 5)


async def test_nothing_is_reserved_while_the_file_is_locked(db: Database, ledger: Ledger, home: Path) -> None:
    other = sqlite3.connect(home / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="locked by another process"):
        await ledger.reserve(ASK)
    other.close()
    assert ledger_rows(home) == []
    await ledger.settle(await ledger.reserve(ASK), Outcome())


async def test_a_close_that_cannot_be_written_follows_later(db: Database, ledger: Ledger, home: Path) -> None:
    delivered, failed = await ledger.reserve(ASK), await ledger.reserve(ASK)
    other = sqlite3.connect(home / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await ledger.settle(delivered, Outcome(completion_tokens=5))  # the answer is out: no error for the client
    await ledger.refund(failed, "timeout", Outcome())
    assert [row["status"] for row in ledger_rows(home)] == ["open", "open"]
    with pytest.raises(LedgerUnavailable):
        await ledger.sweep()
    other.close()
    assert await ledger.sweep() == 2
    assert await ledger.sweep() == 0
    assert (await row_of(db, delivered)).status == "settled"
    assert (await row_of(db, failed)).reason == "timeout"


async def test_a_close_is_kept_when_its_client_leaves_a_locked_file(
    db: Database, ledger: Ledger, home: Path
) -> None:
    entry = await ledger.reserve(ASK)
    other = sqlite3.connect(home / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    settling = asyncio.create_task(ledger.settle(entry, Outcome()))
    await asyncio.sleep(0)
    settling.cancel()
    with pytest.raises(LedgerUnavailable):
        await db.write(lambda connection: None)
    other.close()
    assert await ledger.sweep() == 1
    assert (await row_of(db, entry)).status == "settled"


async def test_a_close_that_fails_for_a_fault_of_ours_is_told_although_its_client_has_left(
    db: Database, ledger: Ledger, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = await ledger.reserve(ASK)

    def refuse(connection: Connection) -> None:
        connection.execute(
            "CREATE TRIGGER faulty BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'a fault of ours'); END"
        )

    await db.write(refuse)
    settling = asyncio.create_task(ledger.settle(entry, Outcome()))
    await asyncio.sleep(0)
    settling.cancel()
    await asyncio.gather(settling, return_exceptions=True)
    await db.write(lambda connection: connection.execute("DROP TRIGGER faulty") and None)
    assert f"entry {entry.id} stays open" in caplog.text and "a fault of ours" in caplog.text
    assert [row["status"] for row in ledger_rows(home)] == ["open"]


async def test_what_is_owed_is_written_at_the_end(db: Database, home: Path) -> None:
    ledger = await Ledger.open(db, home / "locks")
    entry = await ledger.reserve(ASK)
    other = sqlite3.connect(home / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await ledger.settle(entry, Outcome())
    other.close()
    await ledger.close()
    assert [row["status"] for row in ledger_rows(home)] == ["settled"]
    assert names(home / "locks") == set()


async def test_rows_left_at_the_end_are_refunded(db: Database, home: Path) -> None:
    ledger = await Ledger.open(db, home / "locks")
    await ledger.reserve(ASK)
    await ledger.close()
    assert [(row["status"], row["reason"]) for row in ledger_rows(home)] == [("refunded", "crashed")]


async def test_an_end_on_a_locked_file_leaves_its_rows_to_the_next_start(db: Database, home: Path) -> None:
    ledger = await Ledger.open(db, home / "locks")
    await ledger.reserve(ASK)
    other = sqlite3.connect(home / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await ledger.close()
    other.close()
    assert names(home / "locks") == {ledger.instance_id}
    after = await Ledger.open(db, home / "locks")
    assert [(row["status"], row["reason"]) for row in ledger_rows(home)] == [("refunded", "crashed")]
    assert names(home / "locks") == {after.instance_id}
    await after.close()


async def test_a_damaged_file_stops_the_start(home: Path) -> None:
    database = Database.open(home / "ledger.db")
    database.close()
    with (home / "ledger.db").open("r+b") as file:
        file.seek(-4096, 2)
        file.write(bytes(range(256)) * 16)
    database = Database.open(home / "ledger.db")
    with pytest.raises(LedgerUnavailable, match=r"is damaged\. Stop what uses it"):
        await Ledger.open(database, home / "locks")
    assert names(home / "locks") == set()
    database.close()


# -- processes that die -----------------------------------------------------------------------------------------------

SERVE = """
import asyncio, sys
from pathlib import Path
from oxlo_local.db import Connection, Database
from oxlo_local.ledger import Ask, Ledger, Outcome

async def main():
    home = Path(sys.argv[1])
    ledger = await Ledger.open(Database.open(home / "ledger.db"), home / "locks")
    ask = Ask("k_1", "/v1/chat/completions", "oxlo-demo", 1, 2700, "2026-11", "req_1")
    entries = [await ledger.reserve(ask) for _ in range(5)]
    await ledger.settle(entries[0], Outcome())
    await ledger.refund(entries[1], "timeout", Outcome())
    print(ledger.instance_id, flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@pytest.fixture
def server(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process with three open rows and two closed ones; its instance id."""
    command = [sys.executable, "-c", SERVE, str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


Served = tuple[subprocess.Popen[str], str]


async def test_rows_of_a_killed_process_are_refunded_by_the_next_start(home: Path, server: Served) -> None:
    process, instance_id = server
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = ledger_rows(home)
    assert sorted(row["status"] for row in before) == ["open", "open", "open", "refunded", "settled"]
    database = Database.open(home / "ledger.db")
    ledger = await Ledger.open(database, home / "locks")
    after = ledger_rows(home)
    assert [tuple(row) for row in after if row["reason"] != "crashed"] == [
        tuple(row) for row in before if row["status"] != "open"
    ]
    crashed = [row for row in after if row["reason"] == "crashed"]
    assert len(crashed) == 3
    assert {(row["status"], row["instance"]) for row in crashed} == {("refunded", instance_id)}
    assert names(home / "locks") == {ledger.instance_id}  # the file of the dead is gone
    await ledger.close()
    database.close()


async def test_a_process_that_dies_beside_us_is_seen_while_running(
    db: Database, ledger: Ledger, home: Path, server: Served
) -> None:
    process, _ = server
    mine = await ledger.reserve(ASK)
    assert await ledger.sweep() == 0
    assert (
        sum(row["status"] == "open" for row in ledger_rows(home)) == 4
    )  # both live: nobody's rows are touched
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert await ledger.sweep() == 3
    assert (await row_of(db, mine)).status == "open"
    await ledger.settle(mine, Outcome())


async def test_two_servers_on_one_ledger_never_refund_each_other(home: Path) -> None:
    files = [Database.open(home / "ledger.db") for _ in range(2)]
    ledgers = [await Ledger.open(file, home / "locks") for file in files]
    entries = [await ledger.reserve(ASK) for ledger in ledgers]
    for _ in range(3):
        assert [await ledger.sweep() for ledger in ledgers] == [0, 0]
    for ledger, entry in zip(ledgers, entries, strict=True):
        await ledger.settle(entry, Outcome())
    assert [row["status"] for row in ledger_rows(home)] == ["settled", "settled"]
    for ledger, file in zip(ledgers, files, strict=True):
        await ledger.close()
        file.close()
    assert names(home / "locks") == set()


# -- money ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "0.0000"),
        (1, "0.000001"),
        (100, "0.0001"),
        (2700, "0.0027"),
        (2710, "0.00271"),
        (1_000_000, "1.0000"),
        (-2700, "-0.0027"),
        (9_007_199_254_740_993, "9007199254.740993"),  # 2 ** 53 + 1: a float would lose the last digit
    ],
)
def test_money_is_printed_exactly(micros: int, text: str) -> None:
    assert usd(micros) == text


async def test_opening_tries_a_row_and_leaves_none(db: Database, home: Path) -> None:
    ledger = await Ledger.open(db, home / "locks")
    assert ledger_rows(home) == []
    assert (home / "ledger.db-wal").stat().st_size > 0
    await ledger.close()


async def test_a_file_that_takes_no_rows_is_known_at_the_start(db: Database, home: Path) -> None:
    def refuse(connection: Connection) -> None:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON entries BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )

    await db.write(refuse)
    with pytest.raises(Exception, match="no room"):
        await Ledger.open(db, home / "locks")
    assert list((home / "locks").iterdir()) == []
