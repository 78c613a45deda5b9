import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from oxlo_local.errors import Unavailable
from oxlo_local.instance import Instance
from oxlo_local.uploads import Uploads
from tests.conftest import ROOT


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    return tmp_path / "locks"


def test_a_file_is_its_owners_only_and_goes_with_its_request(tmp_path: Path, locks: Path) -> None:
    uploads = Uploads(tmp_path / "uploads", "i_me", locks)
    upload = uploads.begin()
    for piece in (b"one ", b"two"):
        upload.write(piece)
    upload.finish()
    assert upload.path.read_bytes() == b"one two" and upload.size == 7
    assert stat.S_IMODE(upload.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(upload.path.parent.stat().st_mode) == 0o700
    other = uploads.begin()
    assert other.path != upload.path
    for each in (upload, other, other):  # the second is still open
        each.remove()
    assert not files(tmp_path / "uploads")
    uploads.close()
    assert not (tmp_path / "uploads" / "i_me").exists()


def test_it_may_be_purged_at_any_moment(tmp_path: Path, locks: Path) -> None:
    uploads = Uploads(tmp_path / "uploads", "i_me", locks)
    first = uploads.begin()
    subprocess.run(["rm", "-r", str(tmp_path / "uploads")], check=True)
    first.write(b"x")
    first.finish()
    first.remove()
    second = uploads.begin()
    second.write(b"y")
    second.remove()


def test_a_disk_that_takes_nothing_is_a_503(tmp_path: Path, locks: Path) -> None:
    (tmp_path / "uploads").write_text("not a folder")
    with pytest.raises(Unavailable, match="data folder"):
        Uploads(tmp_path / "uploads", "i_me", locks).begin()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full on this system")
def test_a_full_disk_is_a_503(tmp_path: Path, locks: Path) -> None:
    upload = Uploads(tmp_path / "uploads", "i_me", locks).begin()
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, upload._file.fileno())
    with pytest.raises(Unavailable, match="No space left"):
        upload.write(b"x" * 100_000)
    upload.write(b"x")
    with pytest.raises(Unavailable, match="No space left"):
        upload.finish()
    upload.remove()
    os.close(full)
    assert not files(tmp_path / "uploads")


SCRIPT = """
import sys, threading
from pathlib import Path
from oxlo_local.instance import Instance
from oxlo_local.uploads import Uploads
home = Path(sys.argv[1])
own = Instance.begin(home / "locks")
uploads = Uploads(home / "uploads", own.name, home / "locks")
for _ in range(3):
    uploads.begin().write(b"x" * 100_000)
print(own.name, flush=True)
threading.Event().wait()
"""


def test_what_a_killed_process_leaves_goes_once_its_lock_is_gone(tmp_path: Path, locks: Path) -> None:
    dying = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert dying.stdout is not None
    name = dying.stdout.readline().strip()
    own = Instance.begin(locks)
    uploads = Uploads(tmp_path / "uploads", own.name, locks)
    mine = uploads.begin()
    mine.finish()
    uploads.sweep()
    assert len(files(tmp_path / "uploads")) == 4  # it lives
    dying.send_signal(signal.SIGKILL)
    dying.wait()
    dying.stdout.close()
    dead = Instance.claim(locks, name)  # as the ledger's sweep does
    assert dead is not None
    dead.remove()
    uploads.sweep()
    assert files(tmp_path / "uploads") == [mine.path]
    own.remove()
