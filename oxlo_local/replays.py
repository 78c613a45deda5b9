"""Answers kept for requests that are sent again under the same Idempotency-Key, and who may run such a request.

Of all requests under one key and body, in all processes of one OXLO_HOME, one at a time runs; the others wait for it.
If its entry is settled they get its answer, else the next of them runs. Inside a process they queue here; between
processes the claim in the ledger's file decides (claims.py), and waiting is looking again.

The order of writes is what makes a crash harmless:

    claim | entry reserved, with the claim | answer in its file | entry settled | last bytes to the client

Whatever dies before the settlement is refunded and runs again; whatever dies after it is repeated. There is no moment
at which a request is charged whose answer is not kept, except for those that are not to be kept: too long, turned off,
or evicted. They are never run again either: 409.

A file holds what one client was answered, so it is for its owner only (0600), is removed when its time is over, when
the folder is too large, and by `oxlo purge`, which may happen at any moment.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from oxlo_local import claims, instance
from oxlo_local.claims import FREE, HELD, Demand, Found
from oxlo_local.config import Settings
from oxlo_local.db import Connection, Database
from oxlo_local.errors import IdempotencyExpired, LedgerUnavailable, ShuttingDown
from oxlo_local.ids import SortableIds
from oxlo_local.ledger import Entry
from oxlo_local.pepper import sync_folder

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.1  # between two looks at a request that another process runs
SCAN_SECONDS: Final = 600.0  # between two walks through the folder, unless it grows too large before
DRAFT_SECONDS: Final = 3600.0  # a file that has been half written for so long has lost its process
ROOM_MADE: Final = 0.9  # of the largest size, so that not every answer begins a walk


@dataclass(frozen=True)
class Claim:
    """The right to run a request; whoever has it must give it back by `Replays.end`."""

    id: str
    demand: Demand


class Answer(Struct, frozen=True):
    """What a client was answered, and what the headers that every answer has are made of."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    warnings: list[str]
    model: str
    entry_id: str
    units: int
    unit_price_micros: int
    opened: float

    @property
    def entry(self) -> Entry:
        """Its row in the ledger, as it was reserved."""
        return Entry(self.entry_id, self.units, self.unit_price_micros, self.opened)


@dataclass
class _Turn:
    """A request under way in this process. Its body is the key's once it is `known` that no other was before it."""

    body: bytes
    known: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Replays:
    """The claims of one instance and the folder of answers. Methods are for one event loop."""

    def __init__(
        self, db: Database, instance_id: str, settings: Settings, clock: Callable[[], float] = time.time
    ) -> None:
        self.largest = settings.idempotency_max_bytes
        self._db = db
        self._instance = instance_id
        self._settings = settings
        self._folder = settings.replays_dir
        self._clock = clock
        self._ids = SortableIds("c")
        self._turns: dict[bytes, _Turn] = {}
        self._stopping = False
        self._owed: list[str] = []  # claims that could not be given back yet
        self._size = 0  # bytes in the folder, as far as known
        self._scanned: float | None = None

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _since_ms(self) -> int:
        return self._now_ms() - round(self._settings.idempotency_hours * 3_600_000)

    def _lives(self, name: str) -> bool:
        """Whether a claim without an entry may be running. Of this process none is: its turn would be taken."""
        return name != self._instance and name in instance.names(self._settings.locks_dir)

    # -- claims --------------------------------------------------------------------------------------------------------

    async def claim(self, demand: Demand) -> Claim | Answer:
        """The right to run this request, or the answer that it has had; waits while another runs it.

        Raises IdempotencyConflict, IdempotencyExpired, ShuttingDown, LedgerUnavailable.
        """
        while (running := self._turns.get(demand.scope)) is not None:
            await running.known.wait()
            if running.body != demand.body and not running.over.is_set():
                raise claims.conflict()
            await running.over.wait()
        turn = self._turns[demand.scope] = _Turn(demand.body)
        try:
            claim = Claim(self._ids.next(self._now_ms()), demand)
            found = await self._take(claim, turn)
            if found is FREE:
                return claim
            answer = await asyncio.to_thread(self._read, found.entry_id)
        except BaseException:
            self._pass_on(demand)
            raise
        self._pass_on(demand)
        return answer

    async def _take(self, claim: Claim, turn: _Turn) -> Found:
        """Claim the key, once no other process holds it; FREE if this has been done."""
        while True:
            moment = (self._now_ms(), self._since_ms())
            taking = self._db.submit(partial(self._claim_in, claim, *moment))
            try:
                found = await asyncio.shield(taking)
            except asyncio.CancelledError:
                self._drop(claim)  # behind the write that may have taken it
                raise
            turn.known.set()
            if found is not HELD:
                return found
            while found is HELD:
                if self._stopping:
                    raise ShuttingDown("the server is shutting down; another one runs this request")
                await asyncio.sleep(LOOK_SECONDS)
                found = await self._db.read(partial(self._look_in, claim.demand, self._since_ms()))

    def _claim_in(self, claim: Claim, now_ms: int, since_ms: int, connection: Connection) -> Found:
        return claims.take(connection, claim.demand, claim.id, self._instance, now_ms, since_ms, self._lives)

    def _look_in(self, demand: Demand, since_ms: int, connection: Connection) -> Found:
        return claims.look(connection, demand, since_ms, self._lives)

    def stop(self) -> None:
        """The server ends: nobody waits any longer for what another process runs."""
        self._stopping = True

    def end(self, claim: Claim) -> None:
        """The request is over, and its entry closed: its answer stands, or whoever waits for it may run."""
        self._drop(claim).add_done_callback(lambda _: self._pass_on(claim.demand))

    def _drop(self, claim: Claim) -> asyncio.Future[None]:
        dropping = self._db.submit(partial(claims.drop, claim.id))
        dropping.add_done_callback(partial(self._note, claim.id))
        return dropping

    def _note(self, claim_id: str, dropping: asyncio.Future[None]) -> None:
        if not dropping.cancelled() and isinstance(dropping.exception(), LedgerUnavailable):
            self._owed.append(claim_id)

    def _pass_on(self, demand: Demand) -> None:
        turn = self._turns.pop(demand.scope)
        turn.over.set()
        turn.known.set()

    # -- answers -------------------------------------------------------------------------------------------------------

    async def keep(self, answer: Answer) -> None:
        """Write the answer to its file; to be called before its entry is settled. What cannot be written is lost."""
        if len(answer.body) > self.largest:
            return
        try:
            self._size += await asyncio.to_thread(self._write, answer)
        except OSError as error:
            log.warning("the answer of %s is not kept for a replay: %s", answer.entry_id, error.strerror)

    def _write(self, answer: Answer) -> int:
        data = msgspec.msgpack.encode(answer)
        lasting = self._settings.ledger_sync == "full"
        if not self._folder.exists():
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if lasting:
                sync_folder(self._folder.parent)
        path = self._folder / answer.entry_id
        draft = path.with_suffix(".draft")
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
                if lasting:
                    file.flush()
                    os.fsync(file.fileno())
            os.utime(draft, (self._clock(), self._clock()))
            draft.replace(path)
            if lasting:
                sync_folder(self._folder)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return len(data)

    def _read(self, entry_id: str) -> Answer:
        """What `_write` wrote. Raises IdempotencyExpired if it is not there any more, or not whole."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            data = (self._folder / entry_id).read_bytes()
            if hashlib.sha256(data[32:]).digest() == data[:32]:
                return msgspec.msgpack.decode(data[32:], type=Answer)
        raise IdempotencyExpired(
            f"This request has been carried out and charged as {entry_id}, but its answer is not kept: it was larger "
            "than idempotency_max_bytes, its client left in the middle of it, or it has been removed to make room. "
            "Send the request with another Idempotency-Key to have it carried out, and charged, again."
        )

    # -- keeping house -------------------------------------------------------------------------------------------------

    async def tidy(self) -> None:
        """Forget what is over: claims, answers, and what could not be given back. To be called every few seconds.

        Raises LedgerUnavailable while the file cannot be written.
        """
        while self._owed:
            await self._db.write(partial(claims.drop, self._owed[0]))
            self._owed.pop(0)
        since_ms = self._since_ms()
        if await self._db.read(lambda connection: claims.any_before(connection, since_ms)):
            await self._db.write(lambda connection: claims.forget(connection, since_ms))
        due = self._scanned is None or self._clock() >= self._scanned + SCAN_SECONDS
        if due or self._size > self._settings.idempotency_total_bytes:
            self._size = await asyncio.to_thread(self._scan, since_ms / 1000)
            self._scanned = self._clock()

    def _scan(self, since: float) -> int:
        """Remove the files from before then, and the oldest while there are too many; returns the bytes that stay."""
        found: list[tuple[float, int, Path]] = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as files:
            for file in files:
                with contextlib.suppress(OSError):
                    stat = file.stat(follow_symlinks=False)
                    if file.is_file(follow_symlinks=False):
                        found.append((stat.st_mtime, stat.st_size, Path(file.path)))
        total = sum(size for _, size, _ in found)
        most = self._settings.idempotency_total_bytes
        room = round(most * ROOM_MADE) if total > most else most
        half_written = self._clock() - DRAFT_SECONDS
        for written, size, path in sorted(found):
            if written < since or total > room or (path.suffix and written < half_written):
                with contextlib.suppress(OSError):  # `oxlo purge` may have been quicker
                    path.unlink()
                    total -= size
        return total
