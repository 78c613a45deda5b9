"""`verify` believes nothing: each kind of damage is found and named, and a sound ledger has no faults."""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from oxlo_local import verify as room
from oxlo_local.db import Database
from oxlo_local.keys import Keys
from oxlo_local.ledger import Ask, Entry, Ledger, Outcome
from oxlo_local.limits import Budget, Limits, version_of
from oxlo_local.verify import Fault, verify
from tests.conftest import Clock

PRICES = {"oxlo-demo": 100}
ASK = Ask("local", "/v1/chat/completions", "oxlo-demo", 1, 100, version_of(PRICES), "req_1")


@pytest.fixture
def db(home: Path) -> Iterator[Database]:
    database = Database.open(home / "ledger.db")
    yield database
    database.close()


@pytest.fixture
async def rows(db: Database, home: Path, clock: Clock) -> AsyncIterator[list[Entry]]:
    """Five rows of a limited key, one of them refunded, one open; a credit; a price list."""
    keys = Keys(db, clock)
    limits = Limits(budget=Budget(10_000, "day"), daily=50, prices={"oxlo-*": 70})
    key, _ = await keys.create("ci", limits=limits)
    ledger = await Ledger.open(db, home / "locks", clock=clock)
    await ledger.announce(PRICES, "user x")
    asks = [replace(ASK, key_id=key.id), ASK, *[replace(ASK, key_id=key.id)] * 3]
    entries = [await ledger.reserve(ask) for ask in asks]
    for entry in entries[:3]:
        await ledger.settle(entry, Outcome())
    await ledger.refund(entries[3], "timeout", Outcome())
    await keys.credit("ci", 500, "welcome")
    yield entries
    await ledger.close()


def damage(home: Path, *statements: str) -> None:
    """What a hand at an sqlite3 shell can do."""
    connection = sqlite3.connect(home / "ledger.db", isolation_level=None)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    # The tests' clock is far behind: what has lists and events now is to have had them from the beginning.
    connection.execute("UPDATE migrations SET applied_ms = 0")
    for statement in statements:
        assert connection.execute(statement).rowcount >= 1, statement
    connection.close()


async def faults(db: Database, count: int | None = None) -> list[Fault]:
    verdict = await verify(db)
    assert count is None or len(verdict.faults) == count, verdict.faults
    return verdict.faults


async def test_a_sound_ledger_has_no_faults(db: Database, rows: list[Entry], clock: Clock) -> None:
    verdict = await verify(db)
    assert verdict.faults == [] and (verdict.rows, verdict.sums, verdict.credits) == (5, 2, 1)
    clock.advance(-100_000)  # neither has one whose clock went back
    assert await faults(db, 0) == []


async def test_an_empty_ledger_has_no_faults(db: Database) -> None:
    assert await faults(db, 0) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("status = 'paid'", "its status is none"),
        ("status = 'open'", "status and time of closing disagree"),
        ("reason = 'x'", "status and reason of a refund disagree"),
        ("price_micros = 1", "its price is not units times unit price"),
        ("units = 1.5, price_micros = 105.0", "its units are no whole number"),
        ("unit_price_micros = -1, price_micros = -1", "its unit price is no whole number"),
        ("opened_ms = opened_ms - 1", "its id was made at another time than it was opened at"),
    ],
)
async def test_a_row_that_was_tampered_with_is_named(
    db: Database, rows: list[Entry], home: Path, change: str, words: str
) -> None:
    damage(home, f"UPDATE entries SET {change} WHERE id = '{rows[2].id}'")
    assert Fault(rows[2].id, words) in await faults(db)


async def test_a_cheaper_row_is_found_by_the_sums_and_by_its_price_list(
    db: Database, rows: list[Entry], home: Path
) -> None:
    damage(home, f"UPDATE entries SET unit_price_micros = 1, price_micros = 1 WHERE id = '{rows[0].id}'")
    found = await faults(db, 3)
    assert sum("say 4 rows" in fault.what or "say 5 rows" in fault.what for fault in found) == 2
    assert (
        found[-1].id == rows[0].id
        and "where price list" in found[-1].what
        and "says 0.00007" in found[-1].what
    )


async def test_a_row_that_is_missing_is_known_by_its_number(
    db: Database, rows: list[Entry], home: Path
) -> None:
    damage(home, f"DELETE FROM entries WHERE id = '{rows[1].id}'")
    assert Fault(rows[2].id, "rows 2 to 2, written before it, are missing") in await faults(db)


async def test_the_last_row_is_missed_too(db: Database, rows: list[Entry], home: Path) -> None:
    damage(home, f"DELETE FROM entries WHERE id = '{rows[4].id}'")
    assert Fault("ledger", "the last rows, 5 to 5, are missing") in await faults(db)


async def test_rows_that_were_slipped_in_are_found(db: Database, rows: list[Entry], home: Path) -> None:
    copy = "SELECT * FROM entries WHERE id = '{}'"
    connection = sqlite3.connect(home / "ledger.db")
    columns = [row[1] for row in connection.execute("PRAGMA table_info(entries)")]
    connection.close()
    assert columns[0] == "id"
    double = copy.format(rows[0].id).replace("*", ", ".join(["'e_double'", *columns[1:]]))
    others = ("NULL" if column == "number" else column for column in columns[1:])
    numberless = copy.format(rows[0].id).replace("*", ", ".join(["'e_new'", *others]))
    damage(home, f"INSERT INTO entries {double}", f"INSERT INTO entries {numberless}")
    found = await faults(db)
    assert Fault("e_new", "it has no number") in found
    assert any("another row has its number 1 too" in fault.what for fault in found)
    assert Fault("ledger", "there are 7 rows, and 5 were written") in found


async def test_a_sum_that_was_tampered_with_is_named(db: Database, rows: list[Entry], home: Path) -> None:
    damage(home, "UPDATE sums SET spent_micros = spent_micros - 70 WHERE key_id <> ''")
    [fault] = await faults(db, 1)
    assert fault.id.startswith("k_")
    assert "say 4 rows, 3 of them charged with 0.00014 USD, 0.0005 USD of credits" in fault.what
    assert "its rows say 4 rows, 3 of them charged with 0.00021 USD" in fault.what


async def test_a_credit_that_was_removed_is_missed(db: Database, rows: list[Entry], home: Path) -> None:
    damage(home, "DELETE FROM events WHERE action = 'credited'")
    assert len([fault for fault in await faults(db) if "0.0005 USD of credits" in fault.what]) == 2


async def test_rows_of_nobody_are_found(db: Database, rows: list[Entry], home: Path) -> None:
    damage(home, f"UPDATE entries SET key_id = 'k_nobody' WHERE id = '{rows[1].id}'")
    assert Fault(rows[1].id, "one of 1 rows of key k_nobody, which was never made") in await faults(db)


async def test_a_price_list_that_was_tampered_with_is_named(
    db: Database, rows: list[Entry], home: Path
) -> None:
    version = version_of(PRICES)
    damage(home, f"UPDATE price_lists SET prices = '{{\"oxlo-demo\":1}}' WHERE version = '{version}'")
    found = await faults(db, 2)
    assert found[0] == Fault(
        version, f"the prices of this list are those of list {version_of({'oxlo-demo': 1})}"
    )
    assert found[1].id == rows[1].id


async def test_a_price_list_that_is_missing_is_missed_by_its_rows(
    db: Database, rows: list[Entry], home: Path
) -> None:
    version = version_of(PRICES)
    damage(home, f"DELETE FROM price_lists WHERE version = '{version}'")
    assert await faults(db) == [
        Fault(rows[1].id, f"one of 1 rows by price list {version}, which is not there")
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE keys SET limits = '{\"daily\":9}'", "its limits are not those that its events come to"),
        ("UPDATE keys SET role = 'admin'", "the key is of role admin, and was made as user"),
        ("UPDATE keys SET revoked_ms = created_ms + 1", "the key is revoked, and no event says who did that"),
        ("UPDATE keys SET id = 'k_other'", "no event says who made the key"),
        ("DELETE FROM keys", "there are events of this key, and no such key"),
    ],
)
async def test_a_key_that_no_event_has_made_so_is_named(
    db: Database, rows: list[Entry], home: Path, change: str, words: str
) -> None:
    damage(home, change)
    assert words in [fault.what for fault in await faults(db)]


async def test_a_key_that_was_brought_back_is_named(db: Database, rows: list[Entry], home: Path) -> None:
    await Keys(db).revoke("ci")
    assert await faults(db, 0) == []
    damage(home, "UPDATE keys SET revoked_ms = NULL")
    assert [fault.what for fault in await faults(db)] == [
        "the key is valid, and an event says that it was revoked"
    ]


async def test_limits_changed_in_any_order_of_the_clock_are_as_they_should_be(
    db: Database, rows: list[Entry], home: Path, clock: Clock
) -> None:
    keys = Keys(db, clock)
    for daily in (7, 8, 7, 8, 9):
        await keys.limit("ci", lambda limits, daily=daily: msgspec.structs.replace(limits, daily=daily))  # type: ignore[misc]
        clock.advance(-10)
    assert await faults(db, 0) == []
    damage(home, "UPDATE keys SET limits = replace(limits, '9', '99')")
    assert len(await faults(db)) == 1


async def test_no_more_is_named_than_can_be_read(
    db: Database, rows: list[Entry], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST", 2)
    damage(home, "UPDATE entries SET price_micros = 1")
    assert sum("units times unit price" in fault.what for fault in await faults(db)) == 2
