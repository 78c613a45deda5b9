"""Instance locks: held as long as the process lives, however it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oxlo_local.errors import LedgerUnavailable
from oxlo_local.instance import Instance, names

HOLD = """
import sys, time
from pathlib import Path
from oxlo_local.instance import Instance
print(Instance.begin(Path(sys.argv[1])).name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "locks"


@pytest.fixture
def holder(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process with its lock, and its name."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_a_lock_is_held_against_everybody(folder: Path) -> None:
    own = Instance.begin(folder)
    assert names(folder) == {own.name}
    assert Instance.claim(folder, own.name) is None
    own.remove()
    assert names(folder) == set()


def test_a_lock_ends_with_its_process(folder: Path, holder: tuple[subprocess.Popen[str], str]) -> None:
    process, name = holder
    assert Instance.claim(folder, name) is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names(folder) == {name}
    dead = Instance.claim(folder, name)
    assert dead is not None
    assert Instance.claim(folder, name) is None  # one process at a time sees to a dead one
    dead.remove()
    assert names(folder) == set()


def test_children_do_not_inherit_the_lock(folder: Path) -> None:
    own = Instance.begin(folder)
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as child:
        own.release()
        again = Instance.claim(folder, own.name)
        assert child.poll() is None
        assert again is not None
        again.remove()


def test_a_deleted_lock_file_is_made_again(folder: Path) -> None:
    own = Instance.begin(folder)
    (folder / f"{own.name}.lock").unlink()
    own.keep()
    assert names(folder) == {own.name}
    assert Instance.claim(folder, own.name) is None
    own.keep()
    own.remove()


def test_a_lock_on_a_file_without_a_name_does_not_count(folder: Path) -> None:
    """Opened just before its holder removed it: whoever comes next would lock another file of that name."""

    def contend(_: int) -> int:
        held = 0
        for _ in range(500):
            claimed = Instance.claim(folder, "i_contended")
            if claimed is not None:
                assert os.fstat(claimed._fd).st_nlink == 1
                held += 1
                claimed.remove()
        return held

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(contend, range(4))) > 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerUnavailable, match="cannot lock .*make its folder writable, or set OXLO_HOME"):
        Instance.begin(tmp_path / "file" / "locks")


def test_the_lock_is_its_owners_alone(folder: Path) -> None:
    own = Instance.begin(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / f"{own.name}.lock").stat().st_mode & 0o077 == 0
    own.remove()
