"""Servers on one ledger reserve, settle, refund, crash, restart, stop and sweep in any order: the sums hold."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from oxlo_local import statement
from oxlo_local.db import Database
from oxlo_local.ledger import Ask, Entry, EntryClosed, Ledger, Outcome
from tests.conftest import Clock, ledger_rows

ASK = Ask("k_1", "/v1/chat/completions", "oxlo-demo", 1, 2700, "2026-11", "req_1")


@dataclass
class Process:
    """A server as the ledger sees it: a lock and some entries. To crash is to lose the lock and nothing else."""

    ledger: Ledger
    file: Database
    open: list[Entry] = field(default_factory=list)

    def crash(self) -> None:
        self.file.close()
        self.ledger._own.release()


class AnyOrder(RuleBasedStateMachine):
    """Servers on one ledger reserve, settle, refund, crash, restart, stop and sweep in any order."""

    entries: Bundle[tuple[Process, Entry]] = Bundle("entries")

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.home = Path(self.folder.name)
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.expected: dict[str, tuple[str, str | None, int]] = {}  # id -> status, reason, price
        self.dead: list[Process] = []
        self.living = [self._start()]

    def _start(self) -> Process:
        file = Database.open(self.home / "ledger.db")
        return Process(self._run(Ledger.open(file, self.home / "locks", clock=self.clock)), file)

    def _run(self, work: Awaitable[Ledger]) -> Ledger:
        async def wait() -> Ledger:
            return await work

        return self.runner.run(wait())

    def _do(self, work: Callable[[], Awaitable[object]]) -> object:
        async def wait() -> object:
            return await work()

        return self.runner.run(wait())

    def _bury(self) -> None:
        """What a start or a sweep must do for the rows of all that have died."""
        for process in self.dead:
            for entry in process.open:
                self.expected[entry.id] = ("refunded", "crashed", entry.price_micros)
        self.dead = []

    @rule(target=entries, who=st.integers(0, 2), units=st.integers(1, 4), price=st.integers(0, 10**9))
    def reserve(self, who: int, units: int, price: int) -> tuple[Process, Entry]:
        process = self.living[who % len(self.living)]
        self.clock.advance(0.5)
        entry = self._do(lambda: process.ledger.reserve(replace(ASK, units=units, unit_price_micros=price)))
        assert isinstance(entry, Entry)
        process.open.append(entry)
        self.expected[entry.id] = ("open", None, units * price)
        return process, entry

    @rule(held=entries, close=st.sampled_from(["settle", "settle_some", "refund"]))
    def close_or_fail(self, held: tuple[Process, Entry], close: str) -> None:
        process, entry = held
        if process not in self.living:
            return
        works: dict[str, Callable[[], Awaitable[object]]] = {
            "settle": lambda: process.ledger.settle(entry, Outcome()),
            "settle_some": lambda: process.ledger.settle(entry, Outcome(), units=entry.units - 1),
            "refund": lambda: process.ledger.refund(entry, "timeout", Outcome()),
        }
        if entry not in process.open:
            with pytest.raises(EntryClosed):
                self._do(works[close])
            return
        self._do(works[close])
        process.open.remove(entry)
        some = (entry.units - 1) * entry.unit_price_micros
        self.expected[entry.id] = {
            "settle": ("settled", None, entry.price_micros),
            "settle_some": ("settled", None, some),
            "refund": ("refunded", "timeout", entry.price_micros),
        }[close]

    @rule(held=consumes(entries))
    def client_leaves_while_it_reserves(self, held: tuple[Process, Entry]) -> None:
        process, _ = held
        if process not in self.living:
            return

        async def cancelled() -> None:
            reserving = asyncio.create_task(process.ledger.reserve(ASK))
            await asyncio.sleep(0)
            reserving.cancel()
            await asyncio.gather(reserving, return_exceptions=True)
            await process.file.write(lambda connection: None)

        before = {row["id"] for row in ledger_rows(self.home)}
        self._do(cancelled)
        [left] = {row["id"] for row in ledger_rows(self.home)} - before
        self.expected[left] = ("refunded", "cancelled", ASK.unit_price_micros)

    @rule(who=st.integers(0, 2))
    def crash(self, who: int) -> None:
        process = self.living.pop(who % len(self.living))
        process.crash()
        self.dead.append(process)
        if not self.living:
            self.start()

    @rule(who=st.integers(0, 2))
    def stop(self, who: int) -> None:
        process = self.living.pop(who % len(self.living))
        self._do(process.ledger.close)
        process.file.close()
        for entry in process.open:
            self.expected[entry.id] = ("refunded", "crashed", entry.price_micros)
        if not self.living:
            self.start()

    @rule()
    def start(self) -> None:
        if len(self.living) < 3:
            self.living.append(self._start())
            self._bury()

    @rule(who=st.integers(0, 2))
    def sweep(self, who: int) -> None:
        closed = self._do(self.living[who % len(self.living)].ledger.sweep)
        assert closed == sum(len(process.open) for process in self.dead)
        self._bury()

    @invariant()
    def the_file_says_what_happened(self) -> None:
        found = {
            row["id"]: (row["status"], row["reason"], row["price_micros"]) for row in ledger_rows(self.home)
        }
        assert found == self.expected

    @invariant()
    def the_sums_agree(self) -> None:
        lines = self._do(lambda: statement.summary(self.living[0].file, "model"))
        assert isinstance(lines, list)
        total = statement.total(lines)
        states = [status for status, _, _ in self.expected.values()]
        assert (total.requests, total.open) == (len(states), states.count("open"))
        assert (total.settled, total.refunded) == (states.count("settled"), states.count("refunded"))
        assert total.spent_micros == sum(p for status, _, p in self.expected.values() if status != "refunded")

    def teardown(self) -> None:
        for process in self.living:
            self._do(process.ledger.close)
            process.file.close()
        self.runner.close()
        self.folder.cleanup()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
