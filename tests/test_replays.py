"""Kept answers: turns inside a process, files on the disk, and what is forgotten when."""

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from oxlo_local.claims import Demand
from oxlo_local.config import Settings
from oxlo_local.db import Database, Sync
from oxlo_local.errors import IdempotencyConflict, IdempotencyExpired, LedgerUnavailable, ShuttingDown
from oxlo_local.ledger import Ask, Entry, Ledger, Outcome
from oxlo_local.replays import SCAN_SECONDS, Answer, Claim, Replays
from tests.conftest import Clock


def demand(key: str = "order-7", body: str = "body") -> Demand:
    return Demand(hashlib.sha256(key.encode()).digest(), hashlib.sha256(body.encode()).digest())


def answer_of(entry: Entry, body: bytes = b"{}") -> Answer:
    headers = [(b"content-type", b"application/json")]
    return Answer(200, headers, body, ["mind"], "m", entry.id, 1, 1000, entry.opened)


class Desk:
    """A process: its ledger and its replays, over a file that it may share with another."""

    def __init__(self, home: Path, clock: Clock, ledger_sync: Sync = "normal") -> None:
        self.settings = Settings(
            home=home,
            config=home,
            idempotency_max_bytes=10_000,
            idempotency_total_bytes=2000,
            ledger_sync=ledger_sync,
        )
        self.clock = clock

    async def open(self) -> "Desk":
        self.db = Database.open(self.settings.ledger_path)
        self.ledger = await Ledger.open(self.db, self.settings.locks_dir, clock=self.clock)
        self.replays = Replays(self.db, self.ledger.instance_id, self.settings, self.clock)
        return self

    async def close(self) -> None:
        await self.ledger.close()
        self.db.close()

    async def reserve(self, claim: Claim) -> Entry:
        return await self.ledger.reserve(Ask("k", "/", "m", 1, 1000, "v", "r", claim_id=claim.id))

    async def carry_out(self, claim: Claim, body: bytes = b"{}") -> Entry:
        """What a request does: reserve, answer, settle, end."""
        entry = await self.reserve(claim)
        await self.replays.keep(answer_of(entry, body))
        await self.ledger.settle(entry, Outcome())
        self.replays.end(claim)
        return entry

    async def claimed(self, wanted: Demand) -> Claim:
        found = await self.replays.claim(wanted)
        assert isinstance(found, Claim)
        return found

    def file(self, entry: Entry) -> Path:
        return self.settings.replays_dir / entry.id


@pytest_asyncio.fixture
async def desk(home: Path, clock: Clock) -> AsyncIterator[Desk]:
    made = await Desk(home, clock).open()
    yield made
    await made.close()


async def test_an_answer_comes_back_as_it_was(desk: Desk) -> None:
    entry = await desk.carry_out(await desk.claimed(demand()), b"said\x00\xff")
    found = await desk.replays.claim(demand())
    assert found == answer_of(entry, b"said\x00\xff") and isinstance(found, Answer)
    assert (found.entry.id, found.entry.price_micros, found.entry.opened) == (entry.id, 1000, entry.opened)
    assert desk.file(entry).stat().st_mode & 0o777 == 0o600
    assert desk.settings.replays_dir.stat().st_mode & 0o777 == 0o700
    with pytest.raises(IdempotencyConflict):
        await desk.replays.claim(demand(body="other"))


async def test_those_who_wait_get_the_answer(desk: Desk) -> None:
    claim = await desk.claimed(demand())
    waiting = [asyncio.create_task(desk.replays.claim(demand())) for _ in range(5)]
    entry = await desk.reserve(claim)
    await desk.replays.keep(answer_of(entry))
    with pytest.raises(IdempotencyConflict):
        await desk.replays.claim(demand(body="other"))
    assert not any(task.done() for task in waiting)
    await desk.ledger.settle(entry, Outcome())
    desk.replays.end(claim)
    assert await asyncio.gather(*waiting) == [answer_of(entry)] * 5


async def test_after_a_refund_one_of_those_who_wait_runs(desk: Desk) -> None:
    claim = await desk.claimed(demand())
    waiting = {asyncio.create_task(desk.replays.claim(demand())) for _ in range(3)}
    await desk.ledger.refund(await desk.reserve(claim), "server_error", Outcome())
    desk.replays.end(claim)
    (first,), waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    second = first.result()
    assert isinstance(second, Claim) and second.id != claim.id
    assert not any(task.done() for task in waiting)
    entry = await desk.carry_out(second)
    assert await asyncio.gather(*waiting) == [answer_of(entry)] * 2


async def test_one_who_stops_waiting_leaves_nothing_behind(desk: Desk) -> None:
    for point in range(8):  # of its way
        claiming = asyncio.create_task(desk.replays.claim(demand("cut")))
        for _ in range(point):
            await asyncio.sleep(0)
        claiming.cancel()
        await asyncio.wait([claiming])
        if not claiming.cancelled():
            found = claiming.result()
            assert isinstance(found, Claim)
            desk.replays.end(found)
    desk.replays.end(await desk.claimed(demand("cut")))
    await desk.db.write(lambda connection: None)  # behind all that was queued
    count = "SELECT count(*) FROM claims"
    assert await desk.db.read(lambda connection: connection.execute(count).fetchone()) == (0,)


async def test_two_processes_wait_for_each_other(desk: Desk, home: Path, clock: Clock) -> None:
    other = await Desk(home, clock).open()
    try:
        claim = await desk.claimed(demand())
        waiting = asyncio.create_task(other.replays.claim(demand()))
        entry = await desk.carry_out(claim)
        assert await waiting == answer_of(entry)
        with pytest.raises(IdempotencyConflict):
            await other.replays.claim(demand(body="other"))
        refunded = await desk.claimed(demand("order-9"))
        waiting = asyncio.create_task(other.replays.claim(demand("order-9")))
        await desk.ledger.refund(await desk.reserve(refunded), "server_error", Outcome())
        desk.replays.end(refunded)
        assert isinstance(await waiting, Claim)
    finally:
        await other.close()


async def test_nobody_waits_for_another_process_beyond_the_end_of_this_one(
    desk: Desk, home: Path, clock: Clock
) -> None:
    other = await Desk(home, clock).open()
    claim = await desk.claimed(demand())
    waiting = [asyncio.create_task(other.replays.claim(demand())) for _ in range(3)]
    other.replays.stop()
    async with asyncio.timeout(10):
        ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(end) for end in ends] == [ShuttingDown] * 3
    entry = await desk.carry_out(claim)
    assert await other.replays.claim(demand()) == answer_of(entry)
    await other.close()


async def test_a_conflict_is_told_to_the_one_who_is_wrong(desk: Desk) -> None:
    entry = await desk.carry_out(await desk.claimed(demand()))
    bodies = ["other", "body", "other", "body", "third"]  # each comes while the one before it is looked at
    found = await asyncio.gather(
        *(desk.replays.claim(demand(body=body)) for body in bodies), return_exceptions=True
    )
    for body, result in zip(bodies, found, strict=True):
        assert result == answer_of(entry) if body == "body" else isinstance(result, IdempotencyConflict)


async def test_a_claim_of_a_dead_process_is_free(desk: Desk, home: Path, clock: Clock) -> None:
    dead = await Desk(home, clock).open()
    await dead.claimed(demand("before its entry"))
    await dead.reserve(await dead.claimed(demand("with an entry")))
    dead.ledger._own.release()  # as the kernel does it
    dead.db.close()
    assert await desk.ledger.sweep() == 1
    for key in ("before its entry", "with an entry"):
        await desk.claimed(demand(key))


@pytest.mark.parametrize("lost", ["removed", "cut short", "changed", "too large"])
async def test_an_answer_that_is_not_kept_is_not_made_again(desk: Desk, lost: str) -> None:
    entry = await desk.carry_out(
        await desk.claimed(demand()), b"x" * (10_001 if lost == "too large" else 100)
    )
    file = desk.file(entry)
    assert file.exists() == (lost != "too large")
    if lost == "removed":
        file.unlink()
    elif lost != "too large":
        data = file.read_bytes()
        file.write_bytes(data[:-1] if lost == "cut short" else data[:-1] + b"?")
    for _ in range(2):
        with pytest.raises(IdempotencyExpired, match=entry.id):
            await desk.replays.claim(demand())


async def test_an_answer_that_cannot_be_written_is_not_kept(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.settings.replays_dir.write_text("no folder")
    entry = await desk.carry_out(await desk.claimed(demand()), b"secret-word")
    assert entry.id in caplog.text and "secret-word" not in caplog.text
    with pytest.raises(IdempotencyExpired):
        await desk.replays.claim(demand())


async def test_an_answer_outlives_a_loss_of_power_where_its_row_does(
    home: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(file: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
        fsync(file)

    desk = await Desk(home, clock, ledger_sync="full").open()
    claim = await desk.claimed(demand())
    entry = await desk.reserve(claim)
    monkeypatch.setattr(os, "fsync", noted)
    await desk.replays.keep(answer_of(entry))
    assert synced == ["folder", "file", "folder"]  # the folder's own name, the bytes of the answer, its name
    desk.replays.end(claim)
    await desk.close()


async def test_after_its_hours_a_key_is_new_and_its_answer_gone(desk: Desk, clock: Clock) -> None:
    clock.now = 1_700_000_000.0
    entry = await desk.carry_out(await desk.claimed(demand()))
    clock.advance(24 * 3600 - 1)
    await desk.replays.tidy()
    assert isinstance(await desk.replays.claim(demand()), Answer) and desk.file(entry).exists()
    clock.advance(2)
    desk.replays.end(await desk.claimed(demand("order-7", "any body")))
    clock.advance(SCAN_SECONDS)
    await desk.replays.tidy()
    assert not desk.file(entry).exists()


async def test_the_oldest_answers_make_room(desk: Desk, clock: Clock) -> None:
    clock.now = 1_700_000_000.0
    await desk.replays.tidy()
    entries = []
    for number in range(8):
        entries.append(await desk.carry_out(await desk.claimed(demand(f"order-{number}")), b"x" * 300))
        clock.advance(1)
    await desk.replays.tidy()
    left = [desk.file(entry).exists() for entry in entries]
    assert left == sorted(left) and 0 < left.count(True) < 8
    assert sum(file.stat().st_size for file in desk.settings.replays_dir.iterdir()) <= 2000
    with pytest.raises(IdempotencyExpired):
        await desk.replays.claim(demand("order-0"))


async def test_half_written_files_of_dead_processes_are_removed(desk: Desk, clock: Clock) -> None:
    clock.now = 1_700_000_000.0
    desk.settings.replays_dir.mkdir()
    old, young = (desk.settings.replays_dir / f"e_{name}.draft" for name in ("old", "young"))
    for file, age in ((old, 3601), (young, 60)):
        file.touch()
        os.utime(file, (clock.now - age,) * 2)
    strange = desk.settings.replays_dir / "e_folder"
    strange.mkdir()
    os.utime(strange, (0, 0))
    await desk.replays.tidy()
    assert not old.exists() and young.exists() and strange.is_dir()


async def test_what_could_not_be_given_back_is_given_back_later(desk: Desk, home: Path) -> None:
    claim = await desk.claimed(demand())
    desk.db._connection.execute("PRAGMA query_only = ON")  # the writer's own: nothing can be written
    desk.replays.end(claim)
    with pytest.raises(LedgerUnavailable):
        await desk.replays.claim(demand())
    with pytest.raises(LedgerUnavailable):
        await desk.replays.tidy()
    desk.db._connection.execute("PRAGMA query_only = OFF")
    await desk.replays.tidy()
    other = await Desk(home, desk.clock).open()
    assert isinstance(await other.replays.claim(demand()), Claim)
    await other.close()
