"""The database: group commit, errors that say what is wrong, file rights, reading beside writing."""

import asyncio
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

import oxlo_local.db
from oxlo_local.db import Connection, Database
from oxlo_local.errors import LedgerUnavailable, OxloError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "ledger.db"


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    """A database with a table `numbers` of its own."""
    database = Database.open(path, busy_seconds=0.05)
    beside(path).execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY)").connection.close()
    yield database
    database.close()


def beside(path: Path) -> Connection:
    """Another program's connection to the same file."""
    return sqlite3.connect(path, isolation_level=None, timeout=0)


def insert(connection: Connection, number: int) -> int:
    connection.execute("INSERT INTO numbers VALUES (?)", (number,))
    return number


def inserted(number: int, connection: Connection) -> int:
    return insert(connection, number)


def committed(path: Path) -> list[int]:
    """What any other program would see now."""
    other = beside(path)
    numbers = [row[0] for row in other.execute("SELECT n FROM numbers ORDER BY n")]
    other.close()
    return numbers


class Gate:
    """A write that keeps the writer busy until it is opened, so that others queue up behind it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, connection: Connection) -> None:
        self.entered.set()
        assert self.opened.wait(20)


async def test_queued_writes_share_one_commit(db: Database, path: Path) -> None:
    gate = Gate()
    first = db.submit(gate)
    await asyncio.to_thread(gate.entered.wait)
    seen: list[list[int]] = []

    def insert_and_look(number: int, connection: Connection) -> int:
        seen.append(committed(path))
        return insert(connection, number)

    writes = [db.submit(partial(insert_and_look, number)) for number in range(50)]
    gate.opened.set()
    await first
    assert await asyncio.gather(*writes) == list(range(50))
    assert seen == [[]] * 50  # nobody's row was in the file before the last one had been written
    assert committed(path) == list(range(50))


async def test_a_failing_write_fails_alone(db: Database, path: Path) -> None:
    gate = Gate()
    first = db.submit(gate)
    await asyncio.to_thread(gate.entered.wait)

    def half(connection: Connection) -> None:
        insert(connection, 100)
        raise OxloError("no more budget")

    def twice(connection: Connection) -> None:
        insert(connection, 101)
        insert(connection, 1)

    before = db.submit(lambda connection: insert(connection, 1))
    refused, doubled = db.submit(half), db.submit(twice)
    after = db.submit(lambda connection: insert(connection, 2))
    gate.opened.set()
    results = await asyncio.gather(first, before, refused, doubled, after, return_exceptions=True)
    assert (results[1], results[4]) == (1, 2)
    assert isinstance(results[2], OxloError) and results[2].message == "no more budget"
    assert isinstance(results[3], sqlite3.IntegrityError)  # a fault of our own SQL is not dressed up
    assert committed(path) == [1, 2]


async def test_nobody_is_told_of_a_write_that_sqlite_took_back(db: Database, path: Path) -> None:
    """Some faults (a full disk in the wrong place) make SQLite undo the transaction, not the statement alone."""
    await db.write(partial(inserted, 1))
    gate = Gate()
    first = db.submit(gate)
    await asyncio.to_thread(gate.entered.wait)
    before = db.submit(partial(inserted, 2))
    fatal = db.submit(lambda connection: connection.execute("INSERT OR ROLLBACK INTO numbers VALUES (1)"))
    after = db.submit(partial(inserted, 3))
    gate.opened.set()
    results = await asyncio.gather(first, before, fatal, after, return_exceptions=True)
    assert results[0] is None
    assert [type(result) for result in results[1:]] == [sqlite3.IntegrityError] * 3
    assert committed(path) == [1]
    assert await db.write(partial(inserted, 3)) == 3


async def test_a_cancelled_wait_does_not_undo_the_write(db: Database, path: Path) -> None:
    gate = Gate()
    first = db.submit(gate)
    await asyncio.to_thread(gate.entered.wait)
    waiting = asyncio.create_task(db.write(lambda connection: insert(connection, 7)))
    await asyncio.sleep(0)
    waiting.cancel()
    gate.opened.set()
    await first
    await db.write(lambda connection: None)
    assert waiting.cancelled()
    assert committed(path) == [7]


async def test_reading_neither_waits_for_the_writer_nor_sees_half_of_a_write(db: Database) -> None:
    gate = Gate()

    def insert_and_wait(connection: Connection) -> None:
        insert(connection, 1)
        gate(connection)

    count = "SELECT count(*) FROM numbers"
    writing = db.submit(insert_and_wait)
    await asyncio.to_thread(gate.entered.wait)
    assert await db.read(lambda connection: connection.execute(count).fetchone()[0]) == 0
    gate.opened.set()
    await writing
    assert await db.read(lambda connection: connection.execute(count).fetchone()[0]) == 1


async def test_a_look_up_never_waits_behind_surveys(db: Database, path: Path) -> None:
    gates = [Gate() for _ in range(oxlo_local.db.READERS + 2)]
    surveys = [asyncio.ensure_future(db.survey(gate)) for gate in gates]
    assert await asyncio.to_thread(gates[0].entered.wait, 20)
    assert await asyncio.wait_for(db.read(lambda connection: 1), 20) == 1
    assert not any(gate.entered.is_set() for gate in gates[1:])  # one at a time
    for gate in gates:
        gate.opened.set()
    await asyncio.gather(*surveys)


async def test_a_reader_cannot_write(db: Database) -> None:
    with pytest.raises(LedgerUnavailable, match="cannot be written"):
        await db.read(lambda connection: insert(connection, 1))


async def test_a_lock_held_by_another_program_is_named_and_passes(db: Database, path: Path) -> None:
    other = beside(path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="locked by another process") as failure:
        await db.write(lambda connection: insert(connection, 1))
    assert (failure.value.status, failure.value.retryable, failure.value.retry_after) == (503, True, 2.0)
    other.execute("ROLLBACK")
    assert await db.write(lambda connection: insert(connection, 1)) == 1
    other.close()


async def test_a_full_disk_is_named_and_keeps_what_was_committed(db: Database, path: Path) -> None:
    await db.write(lambda connection: insert(connection, 1))

    def limit_pages(connection: Connection, pages: int) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    def grow(connection: Connection) -> None:
        connection.execute("CREATE TABLE large AS SELECT zeroblob(1000000) AS filling")

    await db.write(
        lambda connection: limit_pages(connection, 1)
    )  # SQLite: no smaller than it is, so full from now on
    with pytest.raises(LedgerUnavailable, match=r"the disk is full \([0-9,]+ MB free\); make room"):
        await db.write(grow)
    assert await db.write(lambda connection: insert(connection, 2)) == 2  # what fits is still written
    await db.write(lambda connection: limit_pages(connection, 1_000_000))
    await db.write(grow)
    assert committed(path) == [1, 2]


async def test_a_disk_that_turns_read_only_is_named(db: Database) -> None:
    await db.write(lambda connection: connection.execute("PRAGMA query_only = ON") and None)
    with pytest.raises(LedgerUnavailable, match="cannot be written; make the file and its folder writable"):
        await db.write(lambda connection: insert(connection, 1))


@pytest.mark.parametrize("fate", ["moved", "removed", "replaced"])
async def test_a_file_that_has_lost_its_name_takes_no_more_rows(db: Database, path: Path, fate: str) -> None:
    elsewhere = path.with_name("elsewhere.db")
    os.rename(path, elsewhere)
    if fate == "replaced":
        shutil.copy(elsewhere, path)
    with pytest.raises(LedgerUnavailable, match="has been moved, removed or replaced while it was in use"):
        await db.write(lambda connection: None)
    if fate == "moved":
        os.rename(elsewhere, path)
        await db.write(lambda connection: None)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        LedgerUnavailable, match="cannot be made: .*; make its folder writable, or set OXLO_HOME"
    ):
        Database.open(tmp_path / "file" / "ledger.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(LedgerUnavailable, match="Permission denied"):
        Database.open(tmp_path / "ledger.db")


def test_a_locked_file_stops_the_start(path: Path) -> None:
    Database.open(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="locked by another process"):
        Database.open(path, busy_seconds=0.05)
    other.close()


def test_a_file_that_is_no_database_stops_the_start_with_what_to_do(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"these bytes were a ledger once " * 500)
    with pytest.raises(LedgerUnavailable, match=r"is damaged\. .*\.recover \| sqlite3 recovered\.db"):
        Database.open(path)


async def test_a_damaged_page_is_found_by_the_check(path: Path) -> None:
    database = Database.open(path)
    await database.check()
    database.close()
    with path.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)  # an index that no start reads
        file.write(os.urandom(4096))
    database = Database.open(path)
    with pytest.raises(LedgerUnavailable, match="is damaged"):
        await database.check()
    database.close()


def test_a_file_of_another_program_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    other = beside(path)
    other.execute("CREATE TABLE bookmarks (url TEXT)").connection.close()
    before = path.read_bytes()
    with pytest.raises(OxloError, match=r"file of another program \(bookmarks\); set OXLO_HOME"):
        Database.open(path)
    other = beside(path)
    assert [row[0] for row in other.execute("SELECT name FROM sqlite_master")] == ["bookmarks"]
    other.close()
    assert len(before) == path.stat().st_size


def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    Database.open(path).close()
    beside(path).execute("INSERT INTO migrations VALUES (999, 'later', 0)").connection.close()
    with pytest.raises(OxloError, match=r"a newer oxlo \(schema 999, this one knows \d+\); upgrade"):
        Database.open(path)


@pytest.fixture
def open_umask() -> Iterator[None]:
    """A umask that takes nothing away."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
async def test_files_are_their_owners_alone_from_the_start(path: Path) -> None:
    database = Database.open(path)
    await database.write(lambda connection: None)
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700
    database.close()


def test_rights_that_were_too_wide_are_taken_back(path: Path) -> None:
    first = Database.open(path)
    files = [path, *(path.with_name(f"{path.name}-{end}") for end in ("wal", "shm"))]
    for file in files:  # as `cp` leaves a backup that was taken back while nobody looked at its rights
        file.chmod(0o644)
    second = Database.open(path)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    for database in (second, first):
        database.close()


@pytest.mark.parametrize("sync", ["normal", "full"])
async def test_sync_is_what_was_asked_for(path: Path, sync: oxlo_local.db.Sync) -> None:
    database = Database.open(path, sync=sync)
    level = await database.write(lambda connection: connection.execute("PRAGMA synchronous").fetchone()[0])
    assert level == {"normal": 1, "full": 2}[sync]
    assert beside(path).execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    database.close()


async def test_a_backup_taken_beside_a_writer_can_be_put_back(db: Database, path: Path) -> None:
    await db.write(partial(inserted, 1))
    copy = path.with_name("copy.db")
    with closing(beside(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)  # what `.backup` of the sqlite3 shell does
    await db.write(partial(inserted, 2))
    db.close()
    os.replace(copy, path)
    back = Database.open(path)
    await back.check()
    assert committed(path) == [1] and os.stat(path).st_mode & 0o777 == 0o600
    back.close()


async def test_close_finishes_what_is_queued_and_refuses_the_rest(path: Path) -> None:
    database = Database.open(path)
    await database.write(lambda connection: connection.execute("CREATE TABLE numbers (n INTEGER)") and None)
    writes = [database.submit(partial(inserted, number)) for number in range(300)]
    database.close()
    database.close()
    assert await asyncio.gather(*writes) == list(range(300))
    assert committed(path) == list(range(300))
    with pytest.raises(LedgerUnavailable, match="closed"):
        await database.write(lambda connection: insert(connection, 1))
    with pytest.raises(LedgerUnavailable, match="closed"):
        await database.read(lambda connection: None)
