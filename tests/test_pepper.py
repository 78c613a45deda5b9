"""The pepper: made once, for its owner only, and a file that is not whole is never taken for one."""

import os
from pathlib import Path

import pytest

from oxlo_local.errors import LedgerUnavailable
from oxlo_local.pepper import LENGTH, Pepper, load, make, path_beside


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return path_beside(tmp_path / "ledger.db")


def test_it_is_made_once_and_stays(path: Path) -> None:
    assert load(path) is None
    made = make(path)
    assert made == make(path) == load(path) and len(made.secret) == LENGTH
    assert [file.name for file in path.parent.iterdir()] == ["keys.pepper"]
    path.unlink()
    assert make(path) != made


def test_it_is_its_owners_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        make(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    load(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_does_not_show_itself(path: Path) -> None:
    found = make(path)
    shown = repr(found) + str(found) + found.name
    assert repr(found.secret) not in shown and found.secret.hex()[:8] not in shown


def test_a_hash_depends_on_the_key_and_the_pepper() -> None:
    one, other = Pepper(bytes(32)), Pepper(b"1" * 32)
    hashes = {pepper.hash(key) for pepper in (one, other) for key in ("a", "b")}
    assert len(hashes) == 4 and {len(each) for each in hashes} == {32}
    assert one.name != other.name and one.hash("a") == Pepper(bytes(32)).hash("a")


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33)])
def test_a_file_that_is_not_whole_is_named(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for use in (load, make):
        with pytest.raises(LedgerUnavailable, match=f"is damaged: it has {len(content)} bytes instead of 32"):
            use(path)


def test_what_cannot_be_read_or_made_is_named(path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match="cannot be made: No such file or directory"):
        make(path.parent / "none" / "keys.pepper")
    path.mkdir()
    with pytest.raises(LedgerUnavailable, match="cannot be read: Is a directory"):
        load(path)
