"""Keys: their form, their secrecy, and that a revoked one is refused from the next request on."""

import asyncio
import hashlib
import os
import re
import sqlite3
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxlo_local.db import Database
from oxlo_local.errors import BadRequest, NotFound, OxloError, Unauthorized
from oxlo_local.keys import LONGEST_GRACE_MS, Keys, mint, well_formed
from oxlo_local.limits import Limits
from oxlo_local.pepper import load, path_beside
from tests.conftest import Clock

ALPHABET = string.ascii_letters + string.digits


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    database = Database.open(path)
    yield database
    database.close()


@pytest.fixture
def other(db: Database, path: Path) -> Iterator[Database]:
    """The same file, as another process has it open."""
    database = Database.open(path)
    yield database
    database.close()


# -- form -------------------------------------------------------------------------------------------------------------


def test_a_key_has_its_documented_form() -> None:
    secrets = {mint() for _ in range(200)}
    assert len(secrets) == 200
    for secret in secrets:
        assert secret.startswith("oxlo_") and len(secret) == 43 and set(secret[5:]) <= set(ALPHABET)
        assert well_formed(secret)


def test_the_checksum_never_changes_its_meaning() -> None:
    assert well_formed("oxlo_0123456789ABCDEFGHIJKLMNOPQRSTUV1ggZdL")


@given(place=st.integers(5, 42), character=st.sampled_from(ALPHABET))
def test_a_typo_is_told_without_a_database(place: int, character: str) -> None:
    secret = mint()
    typed = secret[:place] + character + secret[place + 1 :]
    assert well_formed(typed) == (typed == secret)


@given(text=st.text())
def test_anything_else_is_no_key(text: str) -> None:
    assert not well_formed(text)
    assert not well_formed("oxlo_" + text)


# -- verify -----------------------------------------------------------------------------------------------------------


async def test_a_key_is_known_by_its_secret(db: Database, clock: Clock) -> None:
    keys = Keys(db, clock)
    key, secret = await keys.create("laptop", "admin")
    assert await keys.verify(secret) == key
    assert (key.name, key.role, key.admin, key.created, key.revoked) == (
        "laptop",
        "admin",
        True,
        1000.0,
        None,
    )
    assert secret.startswith(key.hint) and len(key.hint) == 9


@pytest.mark.parametrize("secret", ["", "sk-123", "oxlo_", "Bearer x", "oxlo_" + "é" * 38, "oxlo_\udc80"])
async def test_what_is_no_key_is_refused_with_what_to_do(db: Database, secret: str) -> None:
    with pytest.raises(Unauthorized, match="no oxlo key, or it has a typo"):
        await Keys(db).verify(secret)


async def test_an_unknown_key_is_refused(db: Database) -> None:
    with pytest.raises(Unauthorized, match="unknown key: make one with `oxlo keys create NAME`"):
        await Keys(db).verify(mint())


async def test_a_revoked_key_is_refused_by_the_next_request(db: Database, clock: Clock) -> None:
    keys = Keys(db, clock)
    key, secret = await keys.create("laptop")
    await keys.verify(secret)
    clock.advance(5)
    revoked = await keys.revoke("laptop")
    assert (revoked.id, revoked.revoked) == (key.id, 1005.0)
    with pytest.raises(Unauthorized, match=f"key {key.id} has been revoked"):
        await keys.verify(secret)


async def test_what_another_process_does_is_in_force_at_once(db: Database, other: Database) -> None:
    here, there = Keys(db), Keys(other)
    assert not await here.any_made()
    key, secret = await there.create("laptop")
    assert await here.any_made()
    for _ in range(20):  # however often it has been accepted before
        assert await here.verify(secret) == key
    await there.revoke(key.id)
    with pytest.raises(Unauthorized, match="revoked"):
        await here.verify(secret)


async def test_keys_stay_in_force_when_all_are_revoked(db: Database, path: Path) -> None:
    key, _ = await Keys(db).create("only")
    await Keys(db).revoke(key.id)
    assert await Keys(db).any_made()
    with pytest.raises(sqlite3.IntegrityError, match="a key is revoked, never deleted"):
        await db.write(lambda connection: connection.execute("DELETE FROM keys") and None)
    assert await Keys(db).any_made()


async def test_a_revocation_is_never_taken_back(db: Database) -> None:
    keys = Keys(db)
    await keys.create("laptop")
    await keys.revoke("laptop")
    with pytest.raises(sqlite3.IntegrityError, match="a revoked key is never edited"):
        await db.write(lambda connection: connection.execute("UPDATE keys SET revoked_ms = NULL") and None)
    with pytest.raises(BadRequest, match="has been revoked already"):
        await keys.revoke("laptop")


async def test_the_secret_is_in_no_file(db: Database, path: Path) -> None:
    _, secret = await Keys(db).create("laptop")
    stored = b"".join(file.read_bytes() for file in path.parent.iterdir() if file.is_file())
    assert b"laptop" in stored
    assert secret.encode() not in stored
    assert secret[9:].encode() not in stored


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", " ", " laptop", "a\nb", "x" * 65, "k_laptop", "local"])
async def test_a_bad_name_is_refused(db: Database, name: str) -> None:
    with pytest.raises(BadRequest) as failure:
        await Keys(db).create(name)
    assert failure.value.param == "name"
    assert await Keys(db).list() == []


async def test_a_name_is_taken_until_its_key_is_revoked(db: Database, clock: Clock) -> None:
    keys = Keys(db, clock)
    first, _ = await keys.create("laptop")
    with pytest.raises(BadRequest, match=f"key {first.id} has the name 'laptop' already"):
        await keys.create("laptop")
    await keys.revoke("laptop")
    clock.advance(1)
    second, _ = await keys.create("laptop")
    assert await keys.find("laptop") == second  # the living one
    assert (await keys.find(first.id)).id == first.id
    assert [key.id for key in await keys.list()] == [first.id, second.id]
    await keys.revoke("laptop")
    assert (await keys.find("laptop")).id in (first.id, second.id)


@pytest.mark.parametrize("action", ["find", "revoke"])
async def test_an_unknown_name_is_not_found(db: Database, action: str) -> None:
    with pytest.raises(NotFound, match="no key with the id or name 'nobody'"):
        await getattr(Keys(db), action)("nobody")


async def test_of_servers_that_start_at_once_one_makes_the_first_key(db: Database, other: Database) -> None:
    made = await asyncio.gather(*(Keys(file).create_first("admin") for file in (db, other) for _ in range(3)))
    found = [pair for pair in made if pair is not None]
    assert len(found) == 1
    key, secret = found[0]
    assert await Keys(db).list() == [key] and key.admin
    assert await Keys(other).verify(secret) == key
    await Keys(db).revoke("admin")
    assert await Keys(db).create_first("admin") is None  # a revoked key is a key that has been made


# -- limits and rotation ----------------------------------------------------------------------------------------------


async def test_limits_are_in_force_at_once_in_every_process(db: Database, other: Database) -> None:
    key, secret = await Keys(db).create("laptop", limits=Limits(models=("a*",)))
    assert (await Keys(other).verify(secret)).limits == Limits(models=("a*",))
    changed = await Keys(other).limit(key.id, lambda limits: Limits(models=limits.models, rate=5))
    assert changed.limits == (await Keys(db).verify(secret)).limits == Limits(models=("a*",), rate=5)
    await Keys(db).revoke("laptop")
    for change in (Keys(db).limit("laptop", lambda limits: limits), Keys(db).rotate("laptop", 0)):
        with pytest.raises(BadRequest, match="has been revoked already"):
            await change


async def test_a_key_expires_to_the_millisecond(db: Database, clock: Clock) -> None:
    keys = Keys(db, clock)
    key, secret = await keys.create("laptop", limits=Limits(expires_ms=1_005_000))
    clock.now = 1004.999
    await keys.verify(secret)
    clock.now = 1005.0
    with pytest.raises(Unauthorized, match=f"key {key.id} has expired"):
        await keys.verify(secret)


async def test_old_secrets_are_valid_for_their_time_of_grace(db: Database, clock: Clock) -> None:
    keys = Keys(db, clock)
    key, first = await keys.create("laptop")
    rotated, second = await keys.rotate("laptop", 10_000)
    assert rotated.id == key.id and second.startswith(rotated.hint) and first != second
    clock.advance(4)
    _, third = await keys.rotate("laptop", 10_000)
    for secret in (first, second, third):
        assert (await keys.verify(secret)).id == key.id
    clock.advance(6)
    with pytest.raises(Unauthorized, match="unknown key"):
        await keys.verify(first)
    await keys.verify(second)
    await keys.revoke("laptop")
    for secret in (second, third):  # a revocation ends the old ones too
        with pytest.raises(Unauthorized, match="has been revoked"):
            await keys.verify(secret)


async def test_a_rotation_without_grace_ends_every_secret_before_it(db: Database, clock: Clock) -> None:
    keys = Keys(db, clock)
    _, leaked = await keys.create("laptop")
    _, second = await keys.rotate("laptop", 86_400_000)  # before anybody knew of the leak
    await keys.verify(leaked)
    _, third = await keys.rotate("laptop", 60_000)
    clock.advance(60)
    for secret in (leaked, second):
        with pytest.raises(Unauthorized, match="unknown key"):
            await keys.verify(secret)
    _, fourth = await keys.rotate("laptop", 0)
    with pytest.raises(Unauthorized, match="unknown key"):
        await keys.verify(third)
    await keys.verify(fourth)


@pytest.mark.parametrize("grace_ms", [-1, LONGEST_GRACE_MS + 1])
async def test_a_grace_has_an_end(db: Database, grace_ms: int) -> None:
    await Keys(db).create("laptop")
    with pytest.raises(BadRequest, match="at most 90d"):
        await Keys(db).rotate("laptop", grace_ms)


async def test_a_secret_is_in_no_file_after_a_rotation_either(db: Database, path: Path) -> None:
    _, first = await Keys(db).create("laptop")
    _, second = await Keys(db).rotate("laptop", 1000)
    stored = b"".join(file.read_bytes() for file in path.parent.iterdir() if file.is_file())
    for secret in (first, second):
        assert secret[9:].encode() not in stored


# -- the pepper -------------------------------------------------------------------------------------------------------


async def test_the_ledger_holds_a_hash_that_only_its_pepper_can_make(db: Database, path: Path) -> None:
    key, secret = await Keys(db).create("laptop")
    _, old = await Keys(db).rotate("laptop", 1000)
    stored = "SELECT hash FROM keys UNION SELECT hash FROM old_secrets"
    kept = {row[0] for row in await db.read(lambda connection: connection.execute(stored).fetchall())}
    assert kept == {
        found.hash(text) for found in [load(path_beside(path))] if found for text in (secret, old)
    }
    assert not kept & {hashlib.sha256(text.encode()).digest() for text in (secret, old)}


async def test_a_server_learns_of_the_pepper_that_another_process_has_made(
    db: Database, other: Database
) -> None:
    here = Keys(db)
    await here.check()
    _, secret = await Keys(other).create("laptop")
    assert (await here.verify(secret)).name == "laptop"


async def test_a_server_keeps_its_pepper_when_the_file_goes(db: Database, path: Path) -> None:
    keys = Keys(db)
    _, secret = await keys.create("laptop")
    os.remove(path_beside(path))
    assert (await keys.verify(secret)).name == "laptop"


@pytest.mark.parametrize("lost", ["is missing", "is not the file that they were made with"])
async def test_a_lost_pepper_is_named_with_its_keys_and_the_way_out(
    db: Database, path: Path, lost: str
) -> None:
    _, first = await Keys(db).create("laptop")
    await Keys(db).create("ci")
    await Keys(db).create("gone")
    await Keys(db).revoke("gone")
    file = path_beside(path)
    os.rename(file, kept := f"{file}.kept")
    if lost != "is missing":
        file.write_bytes(bytes(32))
    words = f"these keys cannot be checked: ci, laptop. {file} {lost}. Put it back from your backup"
    for refused in (Keys(db).check(), Keys(db).create("new")):
        with pytest.raises(OxloError, match=re.escape(words)):
            await refused
    assert (lost == "is missing") is not await asyncio.to_thread(file.exists)  # nothing took its place
    with pytest.raises(Unauthorized):
        await Keys(db).verify(first)
    os.rename(kept, file)
    await Keys(db).check()
    assert (await Keys(db).verify(first)).name == "laptop"
    os.remove(file)
    with pytest.raises(BadRequest, match="rotate the key with --grace 0s"):
        await Keys(db).rotate("laptop", 1000)
    assert not await asyncio.to_thread(file.exists)
    _, second = await Keys(db).rotate("laptop", 0)
    with pytest.raises(OxloError, match="cannot be checked: ci. .* is not the file that they were made with"):
        await Keys(db).check()
    await Keys(db).revoke("ci")
    await Keys(db).check()
    assert (await Keys(db).verify(second)).name == "laptop"
