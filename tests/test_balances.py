"""Balances over any order of events and 200 deaths: what a key has left is what its rows say, never below zero."""

import asyncio
import random
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from oxlo_local import audit
from oxlo_local.db import Connection, Database
from oxlo_local.errors import InsufficientQuota, OxloError, RateLimitExceeded, Standing
from oxlo_local.keys import Keys
from oxlo_local.ledger import Ask, Entry, Ledger, Outcome
from oxlo_local.limits import MINUTE_MS, UNLIMITED, Budget, Limits, version_of, window
from oxlo_local.verify import verify
from tests.conftest import ROOT, Clock, ledger_rows
from tests.dying_server import STEPS

PRICES = [{"oxlo-demo": price} for price in range(301)]
ASK = Ask("", "/v1/chat/completions", "oxlo-demo", 1, 100, version_of(PRICES[100]), "req_1")
T = TypeVar("T")


# -- any order --------------------------------------------------------------------------------------------------------


def keep_prices(connection: Connection) -> None:
    """Have the lists by which the tests' rows are charged."""
    for prices in PRICES:
        audit.keep_prices(connection, 0, prices)


@dataclass
class Row:
    """What the test knows of a row."""

    key: int
    opened_ms: int
    price: int
    status: str = "open"


@dataclass
class Server:
    """A process as the ledger sees it. To crash is to lose the lock and nothing else."""

    file: Database
    ledger: Ledger
    open: list[tuple[Entry, Row]] = field(default_factory=list)


LIMITS = st.builds(
    Limits,
    budget=st.none()
    | st.builds(Budget, st.integers(0, 900), st.sampled_from(["day", "week", "month", "total"])),
    rate=st.none() | st.integers(1, 4),
    daily=st.none() | st.integers(1, 6),
    concurrency=st.none() | st.integers(1, 4),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia"]),
)
WHICH = st.integers(0, 1)


class AnyOrder(RuleBasedStateMachine):
    """Two keys and up to three servers on one ledger, against a plain list of rows that says who must be admitted."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.home = Path(self.folder.name)
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.rows: list[Row] = []
        self.credits: list[tuple[int, int, int]] = []  # key, time, amount
        self.limits = [UNLIMITED, UNLIMITED]
        self.dead: list[Server] = []
        self.living: list[Server] = []
        self.start()
        self.keys = Keys(self.living[0].file, self.clock, who="user test")
        self.ids = [self.run(self.keys.create(name))[0].id for name in ("a", "b")]
        self.run(self.living[0].file.write(keep_prices))

    def run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self.runner.run(wait())

    @property
    def now_ms(self) -> int:
        return int(self.clock.now * 1000)

    @initialize(days=st.integers(10_000, 30_000), seconds=st.integers(0, 86_399))
    def some_time(self, days: int, seconds: int) -> None:
        self.clock.now = days * 86_400.0 + seconds

    # -- the oracle --

    def expected(self, key: int) -> tuple[Standing, ...]:
        """How the limits of a key must stand, counted from the rows."""
        limits, now = self.limits[key], self.now_ms
        own = [row for row in self.rows if row.key == key]
        charged = [row for row in own if row.status != "refunded"]
        found = []
        if limits.budget is not None:
            span = window(limits.budget.per, now, limits.zone)
            given = sum(
                amount for whose, at, amount in self.credits if whose == key and span.start <= at < span.end
            )
            whole = max(0, limits.budget.micros + given)
            spent = sum(row.price for row in charged if span.start <= row.opened_ms < span.end)
            reset = None if limits.budget.per == "total" else (span.end - now) / 1000
            found.append(Standing("budget", whole, max(0, whole - spent), reset))
        if limits.daily is not None:
            span = window("day", now, limits.zone)
            made = sum(span.start <= row.opened_ms < span.end for row in charged)
            found.append(
                Standing("daily", limits.daily, max(0, limits.daily - made), (span.end - now) / 1000)
            )
        if limits.rate is not None:
            near = [row.opened_ms for row in own if now - MINUTE_MS < row.opened_ms <= now + MINUTE_MS]
            reset = (max(near) + MINUTE_MS - now) / 1000 if near else 0.0
            found.append(Standing("rate", limits.rate, max(0, limits.rate - len(near)), reset))
        if limits.concurrency is not None:
            running = sum(row.status == "open" for row in own)
            found.append(
                Standing("concurrency", limits.concurrency, max(0, limits.concurrency - running), None)
            )
        return tuple(found)

    def verdict(self, key: int, price: int) -> type[OxloError] | None:
        """What a request must be refused with."""
        for one in self.expected(key):
            if one.remaining < (price if one.kind == "budget" else 1):
                return InsufficientQuota if one.kind in ("budget", "daily") else RateLimitExceeded
        return None

    # -- what can happen --

    @rule(who=st.integers(0, 2), key=WHICH, units=st.integers(1, 3), price=st.integers(0, 300))
    def reserve(self, who: int, key: int, units: int, price: int) -> None:
        server = self.living[who % len(self.living)]
        version = version_of(PRICES[price])
        ask = replace(ASK, key_id=self.ids[key], units=units, unit_price_micros=price, price_version=version)
        verdict = self.verdict(key, units * price)
        if verdict is not None:
            with pytest.raises(verdict):
                self.run(server.ledger.reserve(ask))
            return
        entry = self.run(server.ledger.reserve(ask))
        row = Row(key, self.now_ms, units * price)
        self.rows.append(row)
        server.open.append((entry, row))
        left = {one.kind: one.remaining for one in entry.standings}
        assert left == {one.kind: one.remaining for one in self.expected(key)}
        assert all(remaining >= 0 for remaining in left.values())

    @precondition(lambda self: any(server.open for server in self.living))
    @rule(which=st.integers(0, 99), how=st.sampled_from(["settle", "some", "refund"]))
    def close(self, which: int, how: str) -> None:
        held = [(server, pair) for server in self.living for pair in server.open]
        server, (entry, row) = held[which % len(held)]
        server.open.remove((entry, row))
        if how == "refund":
            self.run(server.ledger.refund(entry, "timeout", Outcome()))
            row.status = "refunded"
            return
        units = entry.units - 1 if how == "some" else entry.units
        self.run(server.ledger.settle(entry, Outcome(), units=units))
        row.status, row.price = "settled", units * entry.unit_price_micros

    @rule(key=WHICH, limits=LIMITS)
    def limit(self, key: int, limits: Limits) -> None:
        self.run(self.keys.limit(self.ids[key], lambda before: limits))
        self.limits[key] = limits

    @rule(key=WHICH, amount=st.integers(-300, 500).filter(bool))
    def credit(self, key: int, amount: int) -> None:
        self.run(self.keys.credit(self.ids[key], amount, "why not"))
        self.credits.append((key, self.now_ms, amount))

    @rule(seconds=st.sampled_from([0.001, 5.0, 59.999, 60.0, 3600.0, 86_400.0, 20 * 86_400.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([0.001, 30.0, 61.0, 7200.0, 3 * 86_400.0]))
    def the_clock_is_put_back(self, seconds: float) -> None:
        self.clock.advance(-seconds)

    @precondition(lambda self: len(self.living) > 1)
    @rule(who=st.integers(1, 2))
    def crash(self, who: int) -> None:
        server = self.living.pop(1 + (who - 1) % (len(self.living) - 1))
        server.file.close()
        server.ledger._own.release()
        self.dead.append(server)

    @rule()
    def start(self) -> None:
        if len(self.living) == 3:
            return
        file = Database.open(self.home / "ledger.db")
        self.living.append(Server(file, self.run(Ledger.open(file, self.home / "locks", clock=self.clock))))
        self.bury()

    @rule(who=st.integers(0, 2))
    def sweep(self, who: int) -> None:
        self.run(self.living[who % len(self.living)].ledger.sweep())
        self.bury()

    def bury(self) -> None:
        """What a start or a sweep does to the rows of the dead."""
        for server in self.dead:
            for _, row in server.open:
                row.status = "refunded"
        self.dead = []

    # -- what must hold --

    @invariant()
    def the_file_says_what_the_rows_say(self) -> None:
        told = [
            (self.ids.index(row["key_id"]), row["opened_ms"], row["price_micros"], row["status"])
            for row in sorted(ledger_rows(self.home), key=lambda row: int(row["number"]))
        ]
        assert told == [(row.key, row.opened_ms, row.price, row.status) for row in self.rows]

    @invariant()
    def what_is_left_is_what_the_rows_say(self) -> None:
        for key, key_id in enumerate(self.ids):
            assert self.run(self.living[-1].ledger.standings(key_id)) == self.expected(key)

    def teardown(self) -> None:
        assert self.run(verify(self.living[0].file)).faults == []
        for server in self.living:
            self.run(server.ledger.close())
            server.file.close()
        self.runner.close()
        self.folder.cleanup()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


# -- any death --------------------------------------------------------------------------------------------------------

DEATHS = 200
PRICE, BUDGET = 100, 100_000


class Undertaker:
    """A process that makes servers which serve some requests and die of SIGKILL at the step that they are told."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def bury_one(self, step: str, nth: int) -> str:
        """Let one server live and die; what ended it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{step} {nth}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@contextmanager
def undertaker(home: Path, key_id: str) -> Iterator[Undertaker]:
    command = [sys.executable, "-m", "tests.dying_server", str(home), key_id]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Undertaker(process)
        assert process.stdin is not None
        process.stdin.close()


async def test_200_servers_die_at_every_step_and_not_a_cent_is_lost(home: Path) -> None:
    db = Database.open(home / "ledger.db", busy_seconds=20)
    key, _ = await Keys(db).create(
        "ci", limits=Limits(budget=Budget(BUDGET, "total"), daily=5000, concurrency=50)
    )
    await db.write(keep_prices)
    ledger = await Ledger.open(db, home / "locks")
    mine = await ledger.reserve(replace(ASK, key_id=key.id))  # of a server that lives through it all
    chance = random.Random(4)
    refunded = set()
    with undertaker(home, key.id) as deaths:
        for number in range(DEATHS):
            step = STEPS[number % len(STEPS)]
            assert await asyncio.to_thread(deaths.bury_one, step, chance.randrange(6)) == "killed", step
            await ledger.sweep()
            rows = ledger_rows(home)
            assert [row["id"] for row in rows if row["status"] == "open"] == [mine.id]
            spent = sum(row["price_micros"] for row in rows if row["status"] != "refunded")
            left = (await ledger.standings(key.id))[0]
            assert left.remaining == BUDGET - spent >= 0
            refunded |= {row["reason"] for row in rows if row["status"] == "refunded"}
            if number % 25 == 0:
                assert (await verify(db)).faults == []
    assert (await verify(db)).faults == []
    # A row of a dead server never counts, unless its answer had been delivered and its row closed.
    assert refunded == {"crashed", "timeout"}
    assert {row["status"] for row in rows} == {"open", "settled", "refunded"}
    await ledger.settle(mine, Outcome())
    await ledger.close()
    db.close()


async def test_a_delivered_answer_stays_settled_when_its_server_dies_behind_it(home: Path) -> None:
    db = Database.open(home / "ledger.db", busy_seconds=20)
    key, _ = await Keys(db).create("ci")
    ledger = await Ledger.open(db, home / "locks")
    with undertaker(home, key.id) as deaths:
        assert await asyncio.to_thread(deaths.bury_one, "closed", 5) == "killed"
    before = {row["id"]: row["status"] for row in ledger_rows(home)}
    await ledger.sweep()
    after = {row["id"]: row["status"] for row in ledger_rows(home)}
    assert (
        {id for id, status in before.items() if status == "settled"}
        == {id for id, status in after.items() if status == "settled"}
        != set()
    )
    await ledger.close()
    db.close()
