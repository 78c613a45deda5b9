"""The ledger: a row before any work starts, closed exactly once after it.

    reserve -> open --settle--> settled     the answer was delivered: the price stands
                    `-refund--> refunded    it was not, for a reason: the price never counts

`reserve` writes the row in one transaction; what the key may spend is checked in that same one (allowance.py), so no
two requests can pass on the same last cent. `settle` and `refund` change a row only while it is open, so the second of
two closes fails, and a trigger in the file refuses any edit of a closed row. Prices are whole micro-dollars.

Three ways in which a row could stay open for ever are closed off here:
- the task that waits in `reserve` is cancelled: its row, if it gets written, is refunded right behind it;
- the file cannot be written when a request ends: the close is remembered, and `sweep` writes it;
- the process dies: its lock (instance.py) ends with it, and the `sweep` of any other process refunds its rows as
  `crashed`. Rows of an instance that holds its lock are never touched by another.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Final, Literal

from oxlo_local import audit, claims, instance
from oxlo_local.allowance import Account
from oxlo_local.db import Connection, Database
from oxlo_local.errors import LedgerUnavailable, OxloError, Standing
from oxlo_local.ids import SortableIds
from oxlo_local.instance import Instance
from oxlo_local.limits import price_of, usd, version_of

__all__ = ["AddressClass", "Ask", "Entry", "EntryClosed", "Ledger", "Outcome", "Status", "usd"]

log = logging.getLogger(__name__)

AddressClass = Literal["loopback", "private", "public"]
Status = Literal["open", "settled", "refunded"]

VERIFIED_BYTES: Final = 64 << 20  # some 350,000 rows, read and verified in under half a second
CRASHED: Final = "crashed"  # the reason of rows whose process died
CLIENT_GONE: Final = "cancelled"  # the reason of rows whose client left before they were reserved


class EntryClosed(OxloError):
    """A second close of one row: a fault of ours, and the first close stands."""


@dataclass(frozen=True)
class Ask:
    """What a request wants to reserve. `key_id` is "local" without a key; the price is `units * unit_price_micros`.

    The unit price is the list's; a key with a price of its own for this model pays that one.
    """

    key_id: str
    endpoint: str
    model: str
    units: int
    unit_price_micros: int
    price_version: str
    request_id: str
    chain_id: str | None = None
    metadata: Mapping[str, str] | None = None
    address_class: AddressClass = "loopback"
    job_id: str | None = None
    claim_id: str | None = None  # of its Idempotency-Key


@dataclass(frozen=True)
class Entry:
    """A reserved row, to be settled or refunded once. `opened` is seconds since 1970.

    `standings` are the limits of its key with this row counted: none for a key without limits.
    """

    id: str
    units: int
    unit_price_micros: int
    opened: float
    standings: tuple[Standing, ...] = ()

    @property
    def price_micros(self) -> int:
        """The reserved sum."""
        return self.units * self.unit_price_micros


@dataclass(frozen=True)
class Outcome:
    """What a request turned out to need; None = does not apply. The fields are columns of the row."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_seconds: float | None = None
    language: str | None = None  # of the audio
    real_time_factor: float | None = None  # seconds of audio for each second of work
    images: int | None = None
    steps: int | None = None  # of each image
    size: str | None = None  # of the images: 1024x1024
    draw_seconds: float | None = None  # of work on all of them
    queue_ms: float | None = None
    first_output_ms: float | None = None
    total_ms: float | None = None
    error_code: str | None = None


_COLUMNS: Final = attrgetter(*(field.name for field in fields(Outcome)))
_RESERVE: Final = (
    "INSERT INTO entries (id, opened_ms, instance, status, key_id, endpoint, model, units, unit_price_micros,"
    " price_micros, price_version, request_id, chain_id, metadata, address_class, job_id, number)"
    " VALUES (?, ?, ?, 'open', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT opened + 1 FROM sums WHERE key_id = ''))"
)
_CLOSE: Final = (
    "UPDATE entries SET status = ?, reason = ?, closed_ms = ?, units = ?, price_micros = ? * unit_price_micros, "
    + ", ".join(f"{field.name} = ?" for field in fields(Outcome))
    + " WHERE id = ? AND status = 'open'"
)
_REFUND_CRASHED: Final = (
    "UPDATE entries INDEXED BY entries_open SET status = 'refunded', reason = ?, closed_ms = ?"
    " WHERE instance = ? AND status = 'open'"
)


@dataclass(frozen=True)
class _Close:
    """A close on its way to the file."""

    entry_id: str
    status: Status
    reason: str | None
    closed_ms: int
    units: int
    outcome: Outcome

    def apply(self, connection: Connection) -> None:
        """Raises EntryClosed unless the row is open."""
        state = (self.status, self.reason, self.closed_ms, self.units, self.units)
        if connection.execute(_CLOSE, (*state, *_COLUMNS(self.outcome), self.entry_id)).rowcount != 1:
            row = connection.execute("SELECT status FROM entries WHERE id = ?", (self.entry_id,)).fetchone()
            raise EntryClosed(
                f"entry {self.entry_id} is {row[0] if row else 'not there'}: it cannot be {self.status}"
            )


def _touch(connection: Connection) -> None:
    """Write the file's first page as it is."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.execute(f"PRAGMA user_version = {version}")


class _Undone(Exception):
    """Raised inside a write that is to leave nothing behind."""


class Ledger:
    """The rows of this process. Methods are for one event loop."""

    def __init__(self, db: Database, own: Instance, locks_dir: Path, clock: Callable[[], float]) -> None:
        self._db = db
        self._own = own
        self._locks_dir = locks_dir
        self._clock = clock
        self._ids = SortableIds("e")
        self._owed: list[_Close] = []  # closes that could not be written yet
        self._closing: set[asyncio.Future[None]] = set()

    @classmethod
    async def open(cls, db: Database, locks_dir: Path, *, clock: Callable[[], float] = time.time) -> "Ledger":
        """Take this process' lock and refund the rows of dead ones. Raises LedgerUnavailable, also if the file is
        damaged; one of over VERIFIED_BYTES is believed until the damage is met, so that a start stays short.
        """
        if db.path.stat().st_size <= VERIFIED_BYTES:
            await db.check()
        ledger = cls(db, Instance.begin(locks_dir), locks_dir, clock)
        try:
            await ledger.sweep()
            await ledger._try()
        except BaseException:
            ledger._own.remove()
            raise
        return ledger

    async def _try(self) -> None:
        """Open and close a row and undo both, then write a page as it is: a file that takes no rows is known at the
        start, and the first request finds the statements prepared and the WAL begun. What is undone never reaches it.
        """
        now_ms = self._now_ms()
        entry = Entry(self._ids.next(now_ms), 1, 0, now_ms / 1000)
        ask = Ask("local", "", "", 1, 0, "", "", None, None, "loopback")
        close = _Close(entry.id, "refunded", CRASHED, now_ms, 1, Outcome())

        def rows(connection: Connection) -> None:
            self._insert(ask, entry, now_ms, connection)
            close.apply(connection)
            raise _Undone

        with contextlib.suppress(_Undone):
            await self._db.write(rows)
        await self._db.write(_touch)

    @property
    def instance_id(self) -> str:
        """What the rows of this process carry."""
        return self._own.name

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    async def announce(self, prices: Mapping[str, int], who: str) -> str:
        """Put a price list into force; returns its version, which rows carry. A list that differs from the last one
        is an event. Keys are "MODEL" and "MODEL@ENDPOINT". Raises LedgerUnavailable.
        """
        return await self._db.write(
            lambda connection: audit.announce(connection, self._now_ms(), who, prices)
        )

    async def standings(self, key_id: str) -> tuple[Standing, ...]:
        """How the limits of a key stand now. Raises LedgerUnavailable."""
        now_ms = self._now_ms()
        return await self._db.read(lambda connection: Account.of(connection, key_id, now_ms).standings())

    async def reserve(self, ask: Ask) -> Entry:
        """Write an open row; when this returns, work may start.

        Raises InsufficientQuota, RateLimitExceeded, Unauthorized (revoked or expired meanwhile), LedgerUnavailable,
        Unavailable (another server has taken over its Idempotency-Key).
        """
        opened_ms = self._now_ms()
        draft = Entry(self._ids.next(opened_ms), ask.units, ask.unit_price_micros, opened_ms / 1000)
        writing = self._db.submit(partial(self._insert, ask, draft, opened_ms))
        try:
            return await writing
        except asyncio.CancelledError:
            # The write happens all the same, and writes happen in order: this one finds the row if there is one.
            self._close(draft, "refunded", CLIENT_GONE, Outcome(), draft.units)
            raise

    def _insert(self, ask: Ask, draft: Entry, opened_ms: int, connection: Connection) -> Entry:
        """Runs inside the writer's transaction: what the key may spend is checked, then the row is written."""
        account = Account.of(connection, ask.key_id, opened_ms, writable=True)
        unit_price, version = ask.unit_price_micros, ask.price_version
        own = price_of(account.limits.prices, ask.model, ask.endpoint)
        if own is not None:
            unit_price, version = own, version_of(account.limits.prices)
        standings = account.take(ask.units * unit_price)
        entry = replace(draft, unit_price_micros=unit_price, standings=standings)
        metadata = json.dumps(dict(ask.metadata), ensure_ascii=False) if ask.metadata else None
        who = (ask.key_id, ask.endpoint, ask.model)
        price = (entry.units, unit_price, entry.price_micros, version)
        origin = (ask.request_id, ask.chain_id, metadata, ask.address_class, ask.job_id)
        connection.execute(_RESERVE, (entry.id, opened_ms, self._own.name, *who, *price, *origin))
        if ask.claim_id is not None:
            claims.link(connection, ask.claim_id, entry.id)
        return entry

    async def settle(self, entry: Entry, outcome: Outcome, units: int | None = None) -> None:
        """Close the row at its price, or that of the `units` delivered (some of n images).

        Lands also when the awaiting task is cancelled, and later if the file cannot be written now.
        Raises EntryClosed.
        """
        delivered = entry.units if units is None else units
        if not 0 <= delivered <= entry.units:
            raise ValueError(f"{delivered} units delivered of {entry.units} reserved")
        await self._wait(self._close(entry, "settled", None, outcome, delivered))

    async def refund(self, entry: Entry, reason: str, outcome: Outcome) -> None:
        """Close the row without a charge; `reason` is an error code or "cancelled". Lands as `settle` does."""
        await self._wait(self._close(entry, "refunded", reason, outcome, entry.units))

    def _close(
        self, entry: Entry, status: Status, reason: str | None, outcome: Outcome, units: int
    ) -> asyncio.Future[None]:
        close = _Close(entry.id, status, reason, self._now_ms(), units, outcome)
        closing = self._db.submit(close.apply)
        self._closing.add(closing)
        closing.add_done_callback(partial(self._note, close))
        return closing

    def _note(self, close: _Close, closing: asyncio.Future[None]) -> None:
        """A close has ended, whether or not anybody waits for it: keep it if the file could not be written."""
        self._closing.discard(closing)
        error = closing.exception()
        if isinstance(error, LedgerUnavailable):
            log.error("entry %s will be %s later: %s", close.entry_id, close.status, error)
            self._owed.append(close)
        elif error is not None and not isinstance(error, EntryClosed):  # perhaps nobody else hears of it
            log.error("entry %s stays open until this process ends", close.entry_id, exc_info=error)

    async def _wait(self, closing: asyncio.Future[None]) -> None:
        try:
            await asyncio.shield(closing)
        except LedgerUnavailable:
            pass  # `_note` has kept it: the answer is out, and its row follows

    async def sweep(self) -> int:
        """Write what is owed and refund the rows of dead instances; returns how many rows that closed.

        To be called every few seconds by whoever serves. Raises LedgerUnavailable while the file cannot be written.
        """
        self._own.keep()
        closed = await self._write_owed()
        for name in await self._db.read(_instances_with_open_rows) | instance.names(self._locks_dir):
            if name != self._own.name:
                closed += await self._bury(name)
        return closed

    async def _write_owed(self) -> int:
        written = 0
        while self._owed:
            close = self._owed[0]
            try:
                await self._db.write(close.apply)
                written += 1
            except EntryClosed:
                pass  # it had landed after all
            self._owed.remove(close)
        return written

    async def _bury(self, name: str) -> int:
        """Refund the rows of an instance if it is dead, then remove its lock file, all under its lock."""
        dead = Instance.claim(self._locks_dir, name)
        if dead is None:
            return 0
        values = (CRASHED, self._now_ms(), name)
        try:
            rows = await self._db.write(
                lambda connection: connection.execute(_REFUND_CRASHED, values).rowcount
            )
        except BaseException:
            dead.release()
            raise
        dead.remove()
        if rows:
            log.warning("refunded %d open entries of instance %s, which is gone", rows, name)
        return rows

    async def close(self) -> None:
        """Wait for the closes under way and give up the lock. The Database stays open.

        Rows still open belong to requests that nobody will end any more: they are refunded as `crashed`. If that
        cannot be written, the lock file stays and the next process' sweep does it.
        """
        await asyncio.gather(*self._closing, return_exceptions=True)
        values = (CRASHED, self._now_ms(), self._own.name)
        try:
            await self._write_owed()
            await self._db.write(lambda connection: connection.execute(_REFUND_CRASHED, values))
        except LedgerUnavailable as error:
            self._own.release()
            log.error("open entries stay for the next start to refund: %s", error)
        else:
            self._own.remove()


def _instances_with_open_rows(connection: Connection) -> set[str]:
    sql = "SELECT DISTINCT instance FROM entries INDEXED BY entries_open WHERE status = 'open'"
    return {row[0] for row in connection.execute(sql)}
