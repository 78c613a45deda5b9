"""The write-ahead log: copied beside the writer and in its pauses, and as long at the start as it will be."""

import asyncio
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from oxlo_local import wal
from oxlo_local.db import Database
from tests.test_db import beside, committed, inserted


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    """A database with a table `numbers` of its own."""
    database = Database.open(path, busy_seconds=0.05)
    beside(path).execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY)").connection.close()
    yield database
    database.close()


def header(log: Path) -> bytes:
    """The first bytes of a WAL: they have new salt each time it starts over."""
    with log.open("rb") as file:
        return file.read(32)


async def test_commits_that_wait_for_the_disk_never_lengthen_the_wal(path: Path) -> None:
    log = path.with_name("ledger.db-wal")
    database = Database.open(path, sync="full")
    whole = log.stat().st_size
    assert whole >= wal.WRITES_A_COPY * 4 * (4096 + 24)
    await database.write(lambda connection: connection.execute("CREATE TABLE numbers (n INTEGER)") and None)
    for number in range(50):
        await database.write(partial(inserted, number))
    assert log.stat().st_size == whole
    assert committed(path) == list(range(50))
    database.close()
    assert not log.exists()


async def test_a_lengthened_wal_survives_a_kill_and_another_one(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "WHOLE", 1 << 20)
    database = Database.open(path, sync="full")
    await database.write(lambda connection: connection.execute("CREATE TABLE numbers (n INTEGER)") and None)
    for number in range(20):
        await database.write(partial(inserted, number))
    killed = tmp_path / "killed.db"  # the files as a kill leaves them, without the shared memory
    for end in ("", "-wal"):
        shutil.copy(f"{path}{end}", f"{killed}{end}")
    database.close()
    for number in range(20, 23):
        database = Database.open(killed, sync="full")
        await database.write(partial(inserted, number))
        again = tmp_path / f"killed-{number}.db"
        for end in ("", "-wal"):
            shutil.copy(f"{killed}{end}", f"{again}{end}")
        database.close()
        killed = again
    assert committed(killed) == list(range(23))


async def test_a_disk_with_little_room_keeps_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "WHOLE", 1 << 50)
    database = Database.open(path, sync="full")
    await database.write(lambda connection: connection.execute("CREATE TABLE numbers (n INTEGER)") and None)
    await database.write(partial(inserted, 1))
    assert path.with_name("ledger.db-wal").stat().st_size < 1 << 20
    assert committed(path) == [1]
    database.close()


async def test_the_wal_is_copied_beside_the_writer(
    db: Database, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "WRITES_A_COPY", 500)
    for start in range(0, 4 * wal.WRITES_A_COPY, 100):
        await asyncio.gather(*(db.submit(partial(inserted, start + k)) for k in range(100)))
    db._copies.close()
    copy = shutil.copy(path, tmp_path / "without-its-wal.db")
    assert len(committed(Path(copy))) >= wal.WRITES_A_COPY


async def test_a_pause_is_used_to_copy_the_wal(
    db: Database, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "WORTH_A_COPY", 20)
    copied = tmp_path / "without-its-wal.db"

    async def rows_in_the_file() -> int:
        shutil.copy(path, copied)
        tables = (
            beside(copied).execute("SELECT count(*) FROM sqlite_master WHERE name = 'numbers'").fetchone()
        )
        return len(committed(copied)) if tables[0] else 0

    for number in range(20):
        assert await rows_in_the_file() == 0
        await db.write(partial(inserted, number))
    async with asyncio.timeout(30):
        while await rows_in_the_file() < 20:  # noqa: ASYNC110  # another thread copies, it tells nobody
            await asyncio.sleep(0.05)


async def test_the_wal_starts_over_under_steady_load(
    db: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "LONGEST", 200)
    monkeypatch.setattr(wal, "WRITES_A_COPY", 50)
    await db.write(partial(inserted, -1))
    log = path.with_name("ledger.db-wal")
    first = header(log)
    for number in range(20_000):
        await db.write(partial(inserted, number))
        if header(log) != first:
            return
    raise AssertionError("the WAL has only grown")
