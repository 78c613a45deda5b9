"""Where the clients live: virtual environments and a node_modules of their own, exactly as the lock files say.

They are made the first time and whenever a lock file has changed; a stamp that is written last says which it was.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENVS = HERE.parent.parent / ".venv-suites"
PYTHON, NODE = HERE / "python", HERE / "node"
NODE_FROM = 20  # the first version whose test runner writes JUnit's form


class Missing(Exception):
    """A client cannot be installed; the message says what to do."""


def python_room(suite: str) -> Path:
    """The Python that has a suite's clients, made if need be. Raises Missing."""
    lock = (
        PYTHON / f"requirements-{suite}.txt"
    )  # of a client that cannot share an environment with the others
    lock = lock if lock.is_file() else PYTHON / "requirements.txt"
    venv = VENVS / lock.stem
    if not _is_stamped(venv, lock):
        print(f"making {venv.relative_to(VENVS.parent)}: Python clients, about 0.4 GB", file=sys.stderr)
        _run([sys.executable, "-m", "venv", "--clear", str(venv)])
        _run([str(venv / "bin" / "python"), "-m", "pip", "install", "-q", "--no-deps", "-r", str(lock)])
        _stamp(venv, lock)
    return venv / "bin" / "python"


def node_room() -> Path:
    """The node that finds the clients, which are installed if need be. Raises Missing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Missing(f"node {NODE_FROM} or newer and npm are needed (Debian: apt install nodejs npm)")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().lstrip("v").partition(".")[0]) < NODE_FROM:
        raise Missing(f"node {NODE_FROM} or newer is needed; this one is {version.strip()}")
    modules, lock = NODE / "node_modules", NODE / "package-lock.json"
    if not _is_stamped(modules, lock):
        print("making node_modules: the JavaScript clients, about 50 MB", file=sys.stderr)
        _run([npm, "ci", "--silent", "--no-audit", "--no-fund"], cwd=NODE)
        _stamp(modules, lock)
    return Path(node)


def _run(command: Sequence[str], cwd: Path = HERE) -> None:
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
        raise Missing(f"{' '.join(command[:4])} failed:\n{tail}")


def _print(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes() + str(lock).encode()).hexdigest()


def _is_stamped(room: Path, lock: Path) -> bool:
    stamp = room / "installed"
    return stamp.is_file() and stamp.read_text() == _print(lock)


def _stamp(room: Path, lock: Path) -> None:
    (room / "installed").write_text(_print(lock))
