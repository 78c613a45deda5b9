"""Who changed what: an event with every change, in its transaction, never edited."""

import os
import pwd
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from oxlo_local import audit
from oxlo_local.db import Connection, Database
from oxlo_local.errors import BadRequest
from oxlo_local.keys import KeyMade, Keys, LimitsChanged, Rotated
from oxlo_local.ledger import Ledger
from oxlo_local.limits import Limits
from tests.conftest import Clock


@pytest.fixture
def db(home: Path) -> Iterator[Database]:
    database = Database.open(home / "ledger.db")
    yield database
    database.close()


async def all_events(db: Database, **options: object) -> list[audit.Event]:
    return [event async for event in audit.events(db, **options)]  # type: ignore[arg-type]


async def test_every_change_of_a_key_is_an_event(db: Database, clock: Clock) -> None:
    keys = Keys(db, clock, who="key k_admin")
    key, secret = await keys.create("ci", limits=Limits(daily=3))
    await keys.limit("ci", lambda limits: msgspec.structs.replace(limits, rate=5))
    clock.advance(1)
    _, newer = await keys.rotate("ci", 60_000)
    await keys.credit("ci", 5, "sorry")
    await keys.revoke("ci")
    events = await all_events(db)
    assert {event.who for event in events} == {"key k_admin"} and {event.key_id for event in events} == {
        key.id
    }
    # Rows of one millisecond have no order among themselves.
    by_action = {event.action: event for event in events}
    assert list(by_action) and set(by_action) == {
        "key_created", "key_limited", "key_rotated", "credited", "key_revoked",
    }  # fmt: skip
    details = {action: event.detail or "" for action, event in by_action.items()}
    assert msgspec.json.decode(details["key_created"], type=KeyMade) == KeyMade("ci", "user", Limits(daily=3))
    changed = msgspec.json.decode(details["key_limited"], type=LimitsChanged)
    assert changed == LimitsChanged(Limits(daily=3), Limits(daily=3, rate=5))
    rotated = msgspec.json.decode(details["key_rotated"], type=Rotated)
    assert rotated == Rotated(secret[:9], newer[:9], 1_061_000)
    assert (by_action["credited"].amount_micros, by_action["credited"].why) == (5, "sorry")
    assert secret[9:] not in str(events) and newer[9:] not in str(events)


async def test_a_change_that_fails_is_no_event(db: Database) -> None:
    keys = Keys(db)
    await keys.create("ci")
    with pytest.raises(BadRequest):
        await keys.create("ci")
    with pytest.raises(ZeroDivisionError):
        await keys.limit("ci", lambda limits: Limits(daily=1 // 0))
    assert [event.action for event in await all_events(db)] == ["key_created"]


async def test_a_price_list_is_an_event_when_it_differs_from_the_last(
    db: Database, home: Path, clock: Clock
) -> None:
    ledger = await Ledger.open(db, home / "locks", clock=clock)
    first = await ledger.announce({"a": 1, "b": 2}, "user x")
    assert await ledger.announce({"b": 2, "a": 1}, "user y") == first
    clock.advance(1)
    second = await ledger.announce({"a": 3, "c": 4}, "user y")
    clock.advance(1)
    await ledger.announce({"a": 1, "b": 2}, "user z")  # a list of old is a change too
    details = [
        msgspec.json.decode(event.detail or "", type=audit.PriceChange) for event in await all_events(db)
    ]
    assert details == [
        audit.PriceChange(first, None, {"a": (None, 1), "b": (None, 2)}),
        audit.PriceChange(second, first, {"a": (1, 3), "b": (2, None), "c": (None, 4)}),
        audit.PriceChange(first, second, {"a": (3, 1), "b": (None, 2), "c": (4, None)}),
    ]
    await ledger.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE events SET who = 'nobody'",
        "DELETE FROM events",
        "UPDATE price_lists SET prices = '{}'",
        "DELETE FROM price_lists",
    ],
)
async def test_the_file_refuses_to_forget(db: Database, sql: str) -> None:
    await Keys(db).create("ci", limits=Limits(prices={"*": 5}))
    with pytest.raises(sqlite3.IntegrityError, match="history is never edited"):
        await db.write(lambda connection: connection.execute(sql) and None)


@pytest.mark.parametrize(
    "values",
    [
        "'v_1', 1, 'x', 'credited', 'k_1', NULL, NULL, 'why', NULL",  # a credit without an amount
        "'v_1', 1, 'x', 'credited', 'k_1', NULL, 1.5, 'why', NULL",
        "'v_1', 1, 'x', 'credited', 'k_1', NULL, 1, NULL, NULL",  # without a reason
        "'v_1', 1, 'x', 'credited', NULL, NULL, 1, 'why', NULL",  # for nobody
        "'v_1', 1, 'x', 'key_created', 'k_1', NULL, 1, NULL, NULL",  # money that is no credit
    ],
)
async def test_a_credit_is_whole_money_for_a_key_with_a_reason(db: Database, values: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="CHECK constraint failed"):
        await db.write(
            lambda connection: connection.execute(f"INSERT INTO events VALUES ({values})") and None
        )


async def test_events_are_read_in_pages_from_a_time_on(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "PAGE", 3)

    def fill(connection: Connection) -> None:
        for number in range(10):
            audit.write(connection, 1000 + number // 2, "user x", "key_revoked", key_id=f"k_{number % 2}")

    await db.write(fill)
    assert [event.at_ms for event in await all_events(db)] == [1000 + number // 2 for number in range(10)]
    assert [event.at_ms for event in await all_events(db, since_ms=1003)] == [1003, 1003, 1004, 1004]
    assert len(await all_events(db, key_id="k_1")) == 5


def test_who_runs_this_is_named_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    assert audit.os_user() == f"user {pwd.getpwuid(os.getuid()).pw_name}" != "user somebody-else"
