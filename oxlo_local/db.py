"""SQLite: one file, one writer thread with group commit, readers, numbered migrations.

SQLite lets one connection write at a time, so all writes of this process queue for one thread. It takes whatever has
queued up, opens one BEGIN IMMEDIATE transaction, runs each write in a savepoint of its own, commits once, and only
then tells the waiting tasks: a write that fails is rolled back alone, and one that was reported done is in the file.
Under load the cost of a commit (with `sync="full"` an fsync) is thus shared by everybody who waited for it.

The file is in WAL mode: readers, also in other processes, never wait for the writer and never hold it up. A write
that another process keeps out for `busy_seconds`, a full disk, a file that cannot be written or that is not at its path
any more is `LedgerUnavailable` with what is wrong, because nothing is served unmetered.
"""

import asyncio
import contextlib
import logging
import os
import queue
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from oxlo_local import pepper, wal
from oxlo_local.errors import LedgerUnavailable, OxloError
from oxlo_local.migrations import STEPS, Step

log = logging.getLogger(__name__)

Connection = sqlite3.Connection
Sync = Literal["normal", "full"]
T = TypeVar("T")

READERS: Final = 3
LARGEST_BATCH: Final = 128  # writes in one transaction: bounds how long the first of them waits for the last
OLDEST_SQLITE: Final = (3, 31, 0)
PAUSE_SECONDS: Final = 0.5  # without a write; then the WAL is copied


# -- what went wrong, in words that help ------------------------------------------------------------------------------


def _explain(error: sqlite3.Error, path: Path) -> Exception:
    """The error of SQLite as one of ours where the file or disk is at fault; a fault of our SQL stays as it is."""
    primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    retry_after = 30.0
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        advice = "is locked by another process; end what holds it (an sqlite3 shell, a backup, a copy)"
        retry_after = 2.0
    elif primary == sqlite3.SQLITE_FULL:
        advice = f"cannot grow, the disk is full ({_free(path)} free); make room"
    elif primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        advice = "cannot be written; make the file and its folder writable for this user, or set OXLO_HOME"
    elif primary == sqlite3.SQLITE_CANTOPEN:
        advice = "cannot be opened; look at the rights of the file and its folder, or set OXLO_HOME"
    elif primary == sqlite3.SQLITE_IOERR:
        advice = f"cannot be read or written, the disk reports an error ({_free(path)} free)"
    elif primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        advice = _damaged(path)
    else:
        return error
    return LedgerUnavailable(f"the ledger {path} {advice}. SQLite says: {error}", retry_after=retry_after)


def _free(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path.parent).free / 1e6:,.0f} MB"
    except OSError:
        return "unknown space"


def _damaged(path: Path) -> str:
    return (
        f"is damaged. Stop what uses it and keep a copy of it with its -wal file; then save what can be saved with "
        f"`umask 077; sqlite3 {path.name} .recover | sqlite3 recovered.db` and put recovered.db in its place, or move "
        f"the file away: the next start makes an empty one, without the keys and rows of the old"
    )


# -- opening ----------------------------------------------------------------------------------------------------------


def _make_file(path: Path) -> None:
    """Create the file readable by its owner alone; SQLite gives its -wal and -shm the same rights, but those that came
    with a copied file keep theirs.

    An existing file is never opened here: closing it would drop the POSIX locks that SQLite holds in this process.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            for end in ("", "-wal", "-shm"):
                _narrow(path.with_name(path.name + end))
    except OSError as error:
        raise LedgerUnavailable(
            f"the ledger {path} cannot be made: {error.strerror}; make its folder writable, or set OXLO_HOME"
        ) from error


def _narrow(file: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # whoever is the last to close takes -wal and -shm away
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)


def _connect(path: Path, busy_seconds: float) -> Connection:
    # Connections are made in one thread and closed in another, but never used by two at a time.
    return sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)


def _prepare(connection: Connection, path: Path, sync: Sync) -> None:
    """Settings that hold for the file (WAL) and for the writing connection."""
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise LedgerUnavailable(
            f"the ledger {path} is on a file system without the shared memory that SQLite's WAL needs "
            f"(journal mode stays {mode}); set OXLO_HOME to a local disk"
        )
    connection.execute(f"PRAGMA synchronous = {sync.upper()}")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # see wal.Copies


def migrate(connection: Connection, path: Path, now_ms: int, steps: Sequence[Step] = STEPS) -> list[int]:
    """Run the steps that this file has not seen; returns their numbers.

    Each step is one transaction with the row that records it, and looks again inside it: another process may be
    migrating the same file. Raises OxloError for a file of a newer version, or of another program.
    """
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if names and "migrations" not in names:
        raise OxloError(
            f"{path} is a SQLite file of another program ({', '.join(sorted(names))}); set OXLO_HOME"
        )
    connection.execute(
        "CREATE TABLE IF NOT EXISTS migrations"
        " (number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_ms INTEGER NOT NULL)"
    )
    seen = {row[0] for row in connection.execute("SELECT number FROM migrations")}
    if seen - {step.number for step in steps}:
        raise OxloError(
            f"the ledger {path} was written by a newer oxlo (schema {max(seen)}, this one knows "
            f"{steps[-1].number}); upgrade oxlo-local, or set OXLO_HOME to another folder"
        )
    secret = pepper.path_beside(path)
    connection.create_function("peppered", 1, lambda digest: pepper.make(secret).over(digest))
    connection.create_function("pepper_name", 0, lambda: pepper.make(secret).name)
    ran: list[int] = []
    for step in (step for step in steps if step.number not in seen):
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not connection.execute("SELECT 1 FROM migrations WHERE number = ?", (step.number,)).fetchone():
                for statement in step.statements:
                    connection.execute(statement)
                connection.execute(
                    "INSERT INTO migrations VALUES (?, ?, ?)", (step.number, step.name, now_ms)
                )
                ran.append(step.number)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return ran


# -- the writer -------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Write:
    """One queued write, and where its outcome goes."""

    work: Callable[[Connection], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None


class _Writer(threading.Thread):
    """Takes queued writes in order and commits them in groups."""

    def __init__(self, connection: Connection, path: Path, copies: wal.Copies) -> None:
        super().__init__(name="ledger-writer", daemon=True)
        self._connection = connection
        self._path = path
        self._file = path.stat()
        self._copies = copies
        self.queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()  # None = no more will come

    def run(self) -> None:
        """Until the queue says that no more will come."""
        more = True
        while more:
            batch: list[_Write] = []
            write = self._next()
            while write is not None:
                batch.append(write)
                if len(batch) == LARGEST_BATCH:
                    break
                try:
                    write = self.queue.get_nowait()
                except queue.Empty:
                    break
            more = write is not None
            if batch:
                self._commit(batch)
                _answer(batch)
                self._copies.written(len(batch), self._connection)

    def _next(self) -> _Write | None:
        try:
            return self.queue.get(timeout=PAUSE_SECONDS)
        except queue.Empty:
            self._copies.paused()
            return self.queue.get()

    def _commit(self, batch: Sequence[_Write]) -> None:
        try:
            self._refuse_another_file()
            self._connection.execute("BEGIN IMMEDIATE")
            if len(batch) == 1:  # stands or falls with the transaction
                batch[0].result = batch[0].work(self._connection)
            else:
                for write in batch:
                    self._perform(write)
            self._connection.execute("COMMIT")
        except Exception as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            reason = _explain(error, self._path) if isinstance(error, sqlite3.Error) else error
            for write in batch:
                write.error = write.error or reason

    def _refuse_another_file(self) -> None:
        """SQLite would go on writing to a file that has lost its name, where nobody would ever find the rows."""
        with contextlib.suppress(OSError):
            if os.path.samestat(self._file, self._path.stat()):
                return
        raise LedgerUnavailable(
            f"the ledger {self._path} has been moved, removed or replaced while it was in use; put it back, or end "
            "the server before another file takes its place",
            retry_after=30.0,
        )

    def _perform(self, write: _Write) -> None:
        """One write in its savepoint. Raises only when SQLite has given up the whole transaction (disk full)."""
        self._connection.execute("SAVEPOINT one_write")
        try:
            write.result = write.work(self._connection)
        except Exception as error:
            if not self._connection.in_transaction:
                raise
            write.error = _explain(error, self._path) if isinstance(error, sqlite3.Error) else error
            self._connection.execute("ROLLBACK TO one_write")
        self._connection.execute("RELEASE one_write")


def _answer(batch: Sequence[_Write]) -> None:
    """Hand the outcomes to their event loops: one wake-up a loop, not one a write."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Write]] = {}
    for write in batch:
        by_loop.setdefault(write.future.get_loop(), []).append(write)
    for loop, writes in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(_resolve, writes)


def _resolve(writes: Sequence[_Write]) -> None:
    for write in writes:
        if write.future.done():  # whoever waited has been cancelled; the write stands all the same
            continue
        if write.error is not None:
            write.future.set_exception(write.error)
        else:
            write.future.set_result(write.result)


# -- the database -----------------------------------------------------------------------------------------------------


class Database:
    """An open ledger file. Methods are for an event loop, except `open` and `close`."""

    def __init__(self, path: Path, connection: Connection, busy_seconds: float) -> None:
        self.path = path
        self._busy_seconds = busy_seconds
        self._connection = connection
        self._copies = wal.Copies(_connect(path, busy_seconds))
        self._copies.start()
        self._writer = _Writer(connection, path, self._copies)
        self._writer.start()
        self._local = threading.local()
        self._reading: list[Connection] = []
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="ledger-reader")
        self._surveyor = ThreadPoolExecutor(1, thread_name_prefix="ledger-surveyor")
        self._closed = False

    @classmethod
    def open(cls, path: Path, *, sync: Sync = "normal", busy_seconds: float = 5.0) -> "Database":
        """Open the file, made and migrated where needed.

        `busy_seconds` is how long a write waits for another process. Raises LedgerUnavailable (locked, full,
        read-only, damaged: with what to do), OxloError (of another program, or of a newer version).
        """
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise OxloError(
                f"this Python has SQLite {sqlite3.sqlite_version}; the ledger needs 3.31 or newer"
            )
        _make_file(path)
        connection = _connect(path, busy_seconds)
        try:
            _prepare(connection, path, sync)
            migrate(connection, path, int(time.time() * 1000))
            if sync == "full":
                wal.lengthen(connection, path)
        except sqlite3.Error as error:
            connection.close()
            raise _explain(error, path) from error
        except BaseException:
            connection.close()
            raise
        return cls(path, connection, busy_seconds)

    def submit(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Queue a write at once; writes happen in the order of these calls, one after the other.

        `work` runs in the writer's thread inside a transaction: it must not commit, and what it raises undoes it
        alone and comes out of the future. A cancelled future does not undo the write.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_exception(LedgerUnavailable("the ledger is closed: the server is going down"))
        else:
            self._writer.queue.put(_Write(work, future))
        return future

    async def write(self, work: Callable[[Connection], T]) -> T:
        """`submit`, and wait for the commit."""
        return await self.submit(work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a reader's thread, on a connection that cannot write. Sees every write already reported."""
        return await self._read_in(self._readers, work)

    async def survey(self, work: Callable[[Connection], T]) -> T:
        """`read` for what looks at many rows: one at a time, because every request's look-up of its key is a `read`."""
        return await self._read_in(self._surveyor, work)

    async def _read_in(self, threads: ThreadPoolExecutor, work: Callable[[Connection], T]) -> T:
        if self._closed:
            raise LedgerUnavailable("the ledger is closed: the server is going down")
        return await asyncio.get_running_loop().run_in_executor(threads, self._perform_read, work)

    def _perform_read(self, work: Callable[[Connection], T]) -> T:
        try:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = _connect(self.path, self._busy_seconds)
                connection.execute("PRAGMA query_only = ON")
                self._local.connection = connection
                self._reading.append(connection)
            return work(connection)
        except sqlite3.Error as error:
            raise _explain(error, self.path) from error

    async def check(self, *, constraints: bool = True) -> None:
        """Read the whole file and verify its structure, and that its rows keep the CHECKs of their tables.

        Raises LedgerUnavailable, with what to do, if it is damaged.
        """

        def quick_check(connection: Connection) -> str:
            connection.execute(f"PRAGMA ignore_check_constraints = {int(not constraints)}")
            return str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])

        verdict = await self.read(quick_check)
        if verdict != "ok":
            raise LedgerUnavailable(f"the ledger {self.path} {_damaged(self.path)}. SQLite says: {verdict}")

    def close(self) -> None:
        """Finish the queued writes and close the file; harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        self._writer.queue.put(None)
        self._writer.join()
        self._copies.close()
        self._readers.shutdown()
        self._surveyor.shutdown()
        for connection in self._reading:
            connection.close()
        self._connection.close()
