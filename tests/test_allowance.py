"""What a key has left: limits hold for any number of requests at once, in any process, at every edge of time."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from zoneinfo import ZoneInfo

import pytest

from oxlo_local.db import Database
from oxlo_local.errors import InsufficientQuota, RateLimitExceeded, Standing, TooManyRequests, Unauthorized
from oxlo_local.keys import Key, Keys
from oxlo_local.ledger import Ask, Entry, Ledger, Outcome
from oxlo_local.limits import Budget, Limits, version_of
from tests.conftest import ROOT, Clock, ledger_rows

ASK = Ask("k_1", "/v1/chat/completions", "oxlo-demo", 1, 100, "list", "req_1")
DAY = 86_400.0
T = TypeVar("T")


@pytest.fixture
def db(home: Path) -> Iterator[Database]:
    database = Database.open(home / "ledger.db")
    yield database
    database.close()


@pytest.fixture
async def ledger(db: Database, home: Path, clock: Clock) -> AsyncIterator[Ledger]:
    clock.now = datetime(2026, 11, 23, 12, tzinfo=ZoneInfo("UTC")).timestamp()
    opened = await Ledger.open(db, home / "locks", clock=clock)
    yield opened
    await opened.close()


@pytest.fixture
def keys(db: Database, clock: Clock) -> Keys:
    return Keys(db, clock, who="user tester")


async def made(keys: Keys, limits: Limits, name: str = "ci") -> tuple[Key, Ask]:
    key, _ = await keys.create(name, limits=limits)
    return key, replace(ASK, key_id=key.id)


async def refused(ledger: Ledger, ask: Ask) -> TooManyRequests:
    with pytest.raises(TooManyRequests) as refusal:
        await ledger.reserve(ask)
    return refusal.value


async def kept_sums(db: Database, key_id: str) -> list[tuple[int, ...]]:
    sums = "starts_ms, opened, charged, spent_micros, credits_micros"
    sql = f"SELECT {sums} FROM sums WHERE key_id = ? ORDER BY starts_ms"
    return await db.read(lambda connection: connection.execute(sql, (key_id,)).fetchall())


def of_kind(standings: tuple[Standing, ...], kind: str) -> Standing:
    [found] = [one for one in standings if one.kind == kind]
    return found


# -- money ------------------------------------------------------------------------------------------------------------


async def test_a_thousand_at_once_on_a_budget_for_a_hundred_admit_a_hundred(
    db: Database, ledger: Ledger, keys: Keys, home: Path
) -> None:
    key, ask = await made(keys, Limits(budget=Budget(100 * 100, "month")))
    answers = await asyncio.gather(*(ledger.reserve(ask) for _ in range(1000)), return_exceptions=True)
    assert sum(isinstance(answer, Entry) for answer in answers) == 100
    assert sum(isinstance(answer, InsufficientQuota) for answer in answers) == 900
    assert len(ledger_rows(home)) == 100  # what was refused has no row
    assert [row[1:4] for row in await kept_sums(db, key.id)] == [(100, 100, 10_000)]


RACE = """
import asyncio, json, sys
from dataclasses import replace
from pathlib import Path
from oxlo_local.db import Database
from oxlo_local.errors import InsufficientQuota
from oxlo_local.ledger import Ask, Entry, Ledger, Outcome

async def main():
    home, key_id = Path(sys.argv[1]), sys.argv[2]
    db = Database.open(home / "ledger.db", busy_seconds=30)
    ledger = await Ledger.open(db, home / "locks")
    ask = Ask(key_id, "/v1/chat/completions", "oxlo-demo", 1, 100, "list", "req_1")
    print("ready", flush=True)
    sys.stdin.readline()
    answers = await asyncio.gather(*(ledger.reserve(ask) for _ in range(250)), return_exceptions=True)
    entries = [answer for answer in answers if isinstance(answer, Entry)]
    others = {type(answer).__name__ for answer in answers if not isinstance(answer, Entry)}
    for entry in entries:
        await ledger.settle(entry, Outcome())
    await ledger.close()
    db.close()
    print(json.dumps([len(entries), sorted(others)]), flush=True)

asyncio.run(main())
"""


def race(home: Path, key_id: str, racers: int) -> list[tuple[int, list[str]]]:
    """Let so many processes ask 250 times at once each; how many each got, and what the others were refused with."""
    command = [sys.executable, "-c", RACE, str(home), key_id]
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(racers)
        ]
        for racer in running:
            assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
        for racer in running:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        return [tuple(json.loads(racer.communicate(timeout=50)[0])) for racer in running]


async def test_four_processes_on_one_budget_admit_a_hundred_together(db: Database, home: Path) -> None:
    key, _ = await Keys(db).create("ci", limits=Limits(budget=Budget(100 * 100, "total")))
    told = await asyncio.to_thread(race, home, key.id, 4)
    assert sum(admitted for admitted, _ in told) == 100
    assert {name for _, others in told for name in others} == {"InsufficientQuota"}
    assert [row["status"] for row in ledger_rows(home)] == ["settled"] * 100


async def test_a_refusal_says_how_much_is_left_and_when_there_is_more(ledger: Ledger, keys: Keys) -> None:
    key, ask = await made(keys, Limits(budget=Budget(250, "day"), zone="Europe/Berlin"))
    first = await ledger.reserve(ask)
    assert first.standings == (Standing("budget", 250, 150, 11 * 3600.0),)  # 13:00 in Berlin
    await ledger.reserve(ask)
    refusal = await refused(ledger, ask)
    assert isinstance(refusal, InsufficientQuota) and not refusal.retryable
    assert refusal.message == (
        f"the budget of key {key.id} has 0.00005 of 0.00025 USD left, and this request costs 0.0001; it is whole again "
        "at 2026-11-24 00:00 CET. An admin can raise it with `oxlo keys limit`"
    )
    assert refusal.standings == (Standing("budget", 250, 50, 11 * 3600.0),)
    cheaper = await ledger.reserve(replace(ask, unit_price_micros=50))
    assert cheaper.standings[0].remaining == 0
    await ledger.reserve(replace(ask, unit_price_micros=0))  # what costs nothing needs nothing


async def test_what_is_refunded_can_be_spent_again(db: Database, ledger: Ledger, keys: Keys) -> None:
    _, ask = await made(keys, Limits(budget=Budget(400, "total"), daily=4))
    images = await ledger.reserve(replace(ask, units=4))
    assert of_kind((await refused(ledger, ask)).standings, "budget").remaining == 0
    await ledger.settle(images, Outcome(images=3), units=3)
    again = await ledger.reserve(ask)
    await refused(ledger, ask)
    await ledger.refund(again, "timeout", Outcome())
    assert of_kind(await ledger.standings(ask.key_id), "budget").remaining == 100
    assert of_kind(await ledger.standings(ask.key_id), "daily").remaining == 3


async def test_credits_are_spent_like_the_budget_and_can_be_taken_back(
    db: Database, ledger: Ledger, keys: Keys
) -> None:
    key, ask = await made(keys, Limits(budget=Budget(100, "total")))
    await ledger.reserve(ask)
    await refused(ledger, ask)
    _, event = await keys.credit("ci", 250, "a bad answer")
    assert (await ledger.reserve(ask)).standings[0] == Standing("budget", 350, 150, None)
    await keys.credit("ci", -250, "too much")
    left = of_kind(await ledger.standings(key.id), "budget")
    assert (left.limit, left.remaining) == (100, 0)  # never below zero
    await refused(ledger, ask)
    assert (event.who, event.action, event.why) == ("user tester", "credited", "a bad answer")


async def test_a_credit_belongs_to_the_window_it_was_given_in(
    ledger: Ledger, keys: Keys, clock: Clock
) -> None:
    key, ask = await made(keys, Limits(budget=Budget(100, "day")))
    await keys.credit("ci", 100, "before any request")
    assert of_kind(await ledger.standings(key.id), "budget").limit == 200
    clock.advance(DAY)
    assert of_kind(await ledger.standings(key.id), "budget").limit == 100
    assert (await ledger.reserve(ask)).standings[0].remaining == 0


# -- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "day"),
    [
        (Limits(daily=1, zone="Asia/Tokyo"), (2026, 12, 1)),
        (Limits(budget=Budget(100, "day"), zone="America/New_York"), (2026, 11, 2)),
        (Limits(budget=Budget(100, "month"), zone="Europe/Berlin"), (2027, 1, 1)),
        (Limits(budget=Budget(100, "week")), (2026, 11, 30)),
    ],
    ids=["daily", "budget a day, clocks changed", "budget a month", "budget a week"],
)
async def test_a_limit_is_whole_again_at_midnight_of_the_keys_zone(
    ledger: Ledger, keys: Keys, clock: Clock, limits: Limits, day: tuple[int, int, int]
) -> None:
    _, ask = await made(keys, limits)
    midnight = datetime(*day, tzinfo=ZoneInfo(limits.zone)).timestamp()
    clock.now = midnight - 0.001
    entry = await ledger.reserve(ask)
    assert (entry.standings[0].remaining, entry.standings[0].reset) == (0, 0.001)
    assert isinstance(await refused(ledger, ask), InsufficientQuota)
    clock.now = midnight
    await ledger.reserve(ask)
    await refused(ledger, ask)
    await ledger.refund(
        entry, "timeout", Outcome()
    )  # belongs to the window before: gives nothing back in this one
    await refused(ledger, ask)


async def test_a_clock_that_goes_back_gives_no_money_back(
    db: Database, ledger: Ledger, keys: Keys, clock: Clock
) -> None:
    _, ask = await made(keys, Limits(budget=Budget(300, "day"), daily=3, rate=3))
    noon = clock.now
    await ledger.reserve(ask)
    clock.advance(DAY)
    for _ in range(3):
        await ledger.reserve(ask)
    clock.now = noon + 1  # the first day again: one of three is spent
    for _ in range(2):
        await ledger.reserve(ask)
    assert isinstance(await refused(ledger, ask), InsufficientQuota)
    clock.now = noon + DAY - 1  # and the second, of which nothing is left
    assert isinstance(await refused(ledger, ask), InsufficientQuota)
    clock.now = noon - 3600
    assert isinstance(await refused(ledger, ask), InsufficientQuota)
    clock.now = noon - 20_000 * DAY  # before 1972: no crash, and a window of its own
    await ledger.reserve(ask)


async def test_sums_are_right_whenever_a_limit_comes(db: Database, ledger: Ledger, keys: Keys) -> None:
    key, ask = await made(keys, Limits())
    entries = [await ledger.reserve(ask) for _ in range(6)]
    await ledger.refund(entries[0], "timeout", Outcome())
    assert await kept_sums(db, key.id) == []
    await keys.credit("ci", 50, "welcome")
    await keys.limit("ci", lambda limits: Limits(budget=Budget(1000, "total"), daily=10))
    assert [row[1:] for row in await kept_sums(db, key.id)] == [(6, 5, 500, 50), (6, 5, 500, 50)]
    await ledger.refund(entries[1], "timeout", Outcome())
    standings = await ledger.standings(key.id)
    assert (of_kind(standings, "budget").remaining, of_kind(standings, "daily").remaining) == (650, 6)
    await keys.limit("ci", lambda limits: Limits(budget=Budget(1000, "week"), zone="Asia/Tokyo"))
    assert of_kind(await ledger.standings(key.id), "budget").remaining == 650


# -- rate and requests at once ----------------------------------------------------------------------------------------


async def test_the_rate_is_a_sliding_window_and_retry_after_is_exact(
    ledger: Ledger, keys: Keys, clock: Clock
) -> None:
    key, ask = await made(keys, Limits(rate=3))
    begun = clock.now
    for after in (0.0, 10.0, 20.25):
        clock.now = begun + after
        entry = await ledger.reserve(ask)
    assert entry.standings == (Standing("rate", 3, 0, 60.0),)
    clock.now = begun + 30
    refusal = await refused(ledger, ask)
    assert isinstance(refusal, RateLimitExceeded) and refusal.retryable
    assert (refusal.code, refusal.retry_after) == ("rate_limit_exceeded", 30.0)
    assert refusal.standings == (Standing("rate", 3, 0, 50.25),)
    clock.now = begun + 59.999
    assert (await refused(ledger, ask)).retry_after == 0.001
    clock.now = begun + 60
    await ledger.reserve(ask)
    assert (await refused(ledger, ask)).retry_after == 10.0


async def test_refunded_requests_count_in_the_rate_and_not_in_the_day(ledger: Ledger, keys: Keys) -> None:
    key, ask = await made(keys, Limits(rate=2, daily=2, budget=Budget(200, "day")))
    for _ in range(2):
        await ledger.refund(await ledger.reserve(ask), "timeout", Outcome())
    standings = {one.kind: one.remaining for one in await ledger.standings(key.id)}
    assert standings == {"budget": 200, "daily": 2, "rate": 0}
    assert isinstance(await refused(ledger, ask), RateLimitExceeded)


async def test_a_lowered_rate_waits_for_as_many_as_it_must(ledger: Ledger, keys: Keys, clock: Clock) -> None:
    key, ask = await made(keys, Limits(rate=10))
    for _ in range(5):
        await ledger.reserve(ask)
        clock.advance(1)
    await keys.limit("ci", lambda limits: Limits(rate=2))
    refusal = await refused(ledger, ask)
    assert refusal.retry_after == 58.0  # three must leave: the fourth newest was opened two seconds ago
    clock.advance(58)
    await ledger.reserve(ask)


async def test_a_clock_that_was_wrong_by_hours_locks_nobody_out(
    ledger: Ledger, keys: Keys, clock: Clock
) -> None:
    _, ask = await made(keys, Limits(rate=1))
    clock.advance(7200)
    await ledger.reserve(ask)
    clock.advance(-30)
    assert (await refused(ledger, ask)).retry_after == 90.0  # a step of a clock forgets nothing
    clock.advance(-7000)
    await ledger.reserve(ask)


async def test_requests_at_once_are_bounded(ledger: Ledger, keys: Keys) -> None:
    _, ask = await made(keys, Limits(concurrency=2))
    answers = await asyncio.gather(*(ledger.reserve(ask) for _ in range(20)), return_exceptions=True)
    entries = [answer for answer in answers if isinstance(answer, Entry)]
    assert len(entries) == 2
    refusal = await refused(ledger, ask)
    assert isinstance(refusal, RateLimitExceeded) and refusal.retry_after == 1.0
    assert refusal.standings == (Standing("concurrency", 2, 0, None),)
    await ledger.settle(entries[0], Outcome())
    await ledger.reserve(ask)


async def test_money_is_named_before_the_rate_because_no_retry_cures_it(ledger: Ledger, keys: Keys) -> None:
    _, ask = await made(keys, Limits(rate=1, concurrency=1, daily=1, budget=Budget(100, "day")))
    await ledger.reserve(ask)
    refusal = await refused(ledger, ask)
    assert isinstance(refusal, InsufficientQuota)
    assert [one.kind for one in refusal.standings] == ["budget", "daily", "rate", "concurrency"]


# -- who --------------------------------------------------------------------------------------------------------------


async def test_limits_of_one_key_touch_no_other(ledger: Ledger, keys: Keys) -> None:
    _, ask = await made(keys, Limits(daily=1))
    _, other = await made(keys, Limits(daily=1), "other")
    await ledger.reserve(ask)
    await refused(ledger, ask)
    await ledger.reserve(other)
    assert (await ledger.reserve(replace(ASK, key_id="local"))).standings == ()


async def test_a_key_that_ended_after_it_was_verified_opens_no_row(
    ledger: Ledger, keys: Keys, clock: Clock, home: Path
) -> None:
    _, expiring = await made(keys, Limits(expires_ms=round(clock.now * 1000) + 1000))
    _, revoked = await made(keys, Limits(), "other")
    await ledger.reserve(expiring)
    clock.advance(1)
    with pytest.raises(Unauthorized, match="has expired"):
        await ledger.reserve(expiring)
    await keys.revoke("other")
    with pytest.raises(Unauthorized, match="has been revoked"):
        await ledger.reserve(revoked)
    assert len(ledger_rows(home)) == 1


async def test_a_key_pays_its_own_price_under_its_own_list(ledger: Ledger, keys: Keys, home: Path) -> None:
    prices = {"oxlo-*": 7, "*@embeddings": 3}
    _, ask = await made(keys, Limits(prices=prices, budget=Budget(12, "day")))
    entry = await ledger.reserve(ask)
    assert (entry.price_micros, entry.standings[0].remaining) == (7, 5)
    await refused(ledger, ask)
    await ledger.reserve(replace(ask, endpoint="/v1/embeddings", model="bge"))
    listed = replace(ask, model="mistral-7b", unit_price_micros=2)
    await ledger.reserve(listed)
    rows = [(row["price_micros"], row["price_version"]) for row in ledger_rows(home)]
    assert rows == [(7, version_of(prices)), (3, version_of(prices)), (2, "list")]


@pytest.mark.parametrize(("micros", "admitted"), [(299, 2), (300, 3), (301, 3)])
async def test_a_budget_is_exact_to_the_micro_dollar(
    ledger: Ledger, keys: Keys, micros: int, admitted: int
) -> None:
    _, ask = await made(keys, Limits(budget=Budget(micros, "month")))
    answers = await asyncio.gather(*(ledger.reserve(ask) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(answer, Entry) for answer in answers) == admitted


# -- what it costs ----------------------------------------------------------------------------------------------------


async def test_all_limits_are_read_by_one_statement_and_a_request_writes_few_pages(
    db: Database, ledger: Ledger, keys: Keys, home: Path
) -> None:
    limits = Limits(budget=Budget(10**9, "month"), daily=100_000, rate=10_000, concurrency=100)
    _, ask = await made(keys, limits)
    log = home / "ledger.db-wal"

    async def statements(work: Callable[[], Awaitable[T]]) -> tuple[T, list[str]]:
        seen: dict[str, None] = {}  # triggers are told of under the name of their statement
        db._connection.set_trace_callback(lambda sql: seen.setdefault(sql.split("(")[0].split(" WHERE ")[0]))
        result = await work()
        db._connection.set_trace_callback(None)
        return result, [sql.split()[0] for sql in seen]

    await ledger.settle(await ledger.reserve(ask), Outcome())  # the first of a window sums it up
    entry, told = await statements(lambda: ledger.reserve(ask))
    assert told == ["BEGIN", "SELECT", "INSERT", "COMMIT"]
    _, told = await statements(lambda: ledger.settle(entry, Outcome()))
    assert told == ["BEGIN", "UPDATE", "COMMIT"]
    size, pairs = log.stat().st_size, 200
    for _ in range(pairs):
        await ledger.settle(await ledger.reserve(ask), Outcome())
    assert (log.stat().st_size - size) / (4096 + 24) / pairs < 9
