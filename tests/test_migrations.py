"""The steps of the schema: old ones are never edited, and every old file reaches the same schema as a new one."""

import asyncio
import hashlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oxlo_local.db import Connection, Database, migrate
from oxlo_local.errors import Unauthorized
from oxlo_local.keys import Keys, mint
from oxlo_local.migrations import STEPS, Step

# Released steps. A failure here means that history was edited: write a new step at the end instead.
HASHES = {
    1: "bdc093518d94bef27f70133e86d48475e2f9707882cc74b96325ba584ef56c90",
    2: "837282d8d8b5262e1a6ab7817944da694457a1112ac6270b8b5d850239b57361",
    3: "4c629cc3e0df6184becc019a08514b9f682836361da6dbfdbfd7838e7a7d4642",
    4: "1d0d6af63f87220e4db9de9297ee49384c4311ee86c3d433e8258bca7b13da5c",
    5: "8b291a1ae9d0cc7c6ec8f63d87bf0a0a6d1ebd61b36e32499c92f14875a6ecf7",
    6: "c0b20ea7507cfec72957a27f60e674b523b3e2cdcf251744e390ee778202bd3c",
    7: "a47283206af6e681a98042c4120a378f46aa1f6f9f280345e016ced5d7ec305e",
    8: "afafcbd8f6af69f8132c8f8f64b14a3abf1578d7ad070ecb62056a4a7d3d3bbc",
}


def test_released_steps_are_never_edited() -> None:
    assert {step.number: step.sha256() for step in STEPS} == HASHES


def test_steps_are_numbered_in_order() -> None:
    assert [step.number for step in STEPS] == list(range(1, len(STEPS) + 1))


def connect(path: Path) -> Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=10)


def schema(connection: Connection) -> list[tuple[str, str]]:
    return connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


@pytest.mark.parametrize("version", range(len(STEPS)))
def test_every_old_version_reaches_the_schema_of_a_new_file(tmp_path: Path, version: int) -> None:
    old, blank = connect(tmp_path / "old.db"), connect(tmp_path / "blank.db")
    migrate(old, tmp_path / "old.db", 1000, STEPS[:version] or STEPS[:1])
    migrate(old, tmp_path / "old.db", 2000)
    migrate(blank, tmp_path / "blank.db", 2000)
    assert schema(old) == schema(blank)
    assert [row[0] for row in old.execute("SELECT number FROM migrations")] == [step.number for step in STEPS]
    for connection in (old, blank):
        connection.close()


async def test_keys_of_a_first_version_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    old = connect(path)
    migrate(old, path, 1000, STEPS[:1])
    old.execute("INSERT INTO keys VALUES ('k_1', 'laptop', 'user', zeroblob(32), 'oxlo_abcd', 1000, NULL)")
    old.close()
    database = Database.open(path)
    names = "SELECT name FROM keys"
    assert await database.read(lambda connection: connection.execute(names).fetchall()) == [("laptop",)]
    database.close()


async def test_keys_and_old_secrets_of_plain_hashes_go_on_being_known(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    secrets = [mint() for _ in range(3)]
    plain = [hashlib.sha256(secret.encode()).digest() for secret in secrets]
    old = connect(path)
    migrate(old, path, 1000, STEPS[:4])
    columns = "(id, name, role, hash, hint, created_ms, revoked_ms)"
    insert = f"INSERT INTO keys {columns} VALUES (?, ?, 'user', ?, '', 1000, ?)"
    old.execute(insert, ("k_1", "laptop", plain[0], None))
    old.execute(insert, ("k_2", "lost", plain[1], 2000))
    old.execute("INSERT INTO old_secrets VALUES (?, 'k_1', 1 << 60)", (plain[2],))
    old.close()
    database = Database.open(path)
    keys = Keys(database)
    await keys.check()
    assert [(await keys.verify(secret)).id for secret in (secrets[0], secrets[2])] == ["k_1", "k_1"]
    with pytest.raises(Unauthorized, match="key k_2 has been revoked"):
        await keys.verify(secrets[1])
    stored = "SELECT hash FROM keys UNION SELECT hash FROM old_secrets"
    kept = await database.read(lambda connection: [row[0] for row in connection.execute(stored)])
    assert len(kept) == 3 and not set(kept) & set(plain)
    database.close()


def test_a_step_is_recorded_with_its_time_and_runs_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    connection = connect(path)
    assert migrate(connection, path, 1234) == [step.number for step in STEPS]
    assert migrate(connection, path, 5678) == []
    rows = connection.execute("SELECT number, name, applied_ms FROM migrations").fetchall()
    assert rows == [(step.number, step.name, 1234) for step in STEPS]
    connection.close()


def test_a_step_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    connection = connect(path)
    migrate(connection, path, 0)
    before = schema(connection)
    broken = Step(
        len(STEPS) + 1, "broken", ("CREATE TABLE half (n INTEGER)", "CREATE TABLE keys (n INTEGER)")
    )
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        migrate(connection, path, 0, (*STEPS, broken))
    assert schema(connection) == before
    assert migrate(connection, path, 0) == []
    connection.close()


def test_two_processes_may_migrate_the_same_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"

    def open_and_count(_: int) -> int:
        database = Database.open(path)
        rows = asyncio.run(
            database.read(lambda c: c.execute("SELECT count(*) FROM migrations").fetchone()[0])
        )
        database.close()
        return int(rows)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(open_and_count, range(8))) == [len(STEPS)] * 8
