"""Proof of life: every process that opens ledger rows holds an OS lock, which ends with it however it ends.

A file `NAME.lock` in OXLO_HOME/locks is locked with flock for as long as its process lives. The kernel lets go of the
lock also after SIGKILL, and no process id can be mistaken for that of a later program. So whoever gets the lock of
another instance knows that it is dead, and while it holds that lock nobody else can come to the same conclusion and
act on it too. (The lock is not inherited by worker processes: Python closes its files on exec.)

A lock file is removed only while its lock is held, and a new lock counts only if the file is still the one at its
path: otherwise two processes could hold "the" lock, one of them on a file that has no name any more.
"""

import contextlib
import fcntl
import os
import time
from pathlib import Path

from oxlo_local.errors import LedgerUnavailable
from oxlo_local.ids import SortableIds

SUFFIX = ".lock"


class Instance:
    """A held lock: our own, or that of an instance found dead."""

    def __init__(self, name: str, path: Path, fd: int) -> None:
        self.name = name
        self._path = path
        self._fd = fd

    @classmethod
    def begin(cls, folder: Path) -> "Instance":
        """Lock a file of a new name for the life of this process. Raises LedgerUnavailable."""
        while True:
            instance = cls.claim(folder, SortableIds("i").next(int(time.time() * 1000)))
            if instance is not None:  # None: a sweeping process had the file between our open and our lock
                return instance

    @classmethod
    def claim(cls, folder: Path, name: str) -> "Instance | None":
        """Take the lock of this name; None while its owner lives. Raises LedgerUnavailable."""
        path = folder / f"{name}{SUFFIX}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = _lock(path)
        except OSError as error:
            raise LedgerUnavailable(
                f"cannot lock {path}: {error.strerror}; make its folder writable, or set OXLO_HOME"
            ) from error
        return None if fd is None else cls(name, path, fd)

    def keep(self) -> None:
        """Lock a new file if somebody has deleted ours, which would make us look dead."""
        try:
            if os.path.samestat(os.fstat(self._fd), self._path.stat()):
                return
        except OSError:
            pass
        fresh = Instance.claim(self._path.parent, self.name)
        if fresh is not None:
            os.close(self._fd)
            self._fd = fresh._fd

    def remove(self) -> None:
        """End the lock and its file: nothing is left that anybody would have to look after."""
        with contextlib.suppress(OSError):  # it is in nobody's way: the next sweep finds it and tries again
            self._path.unlink()
        self.release()

    def release(self) -> None:
        """End the lock as death would: the file stays, for the next sweep."""
        os.close(self._fd)


def names(folder: Path) -> set[str]:
    """All instances, living and dead, that have a file here."""
    return {path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}")}


def _lock(path: Path) -> int | None:
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), path.stat()):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(fd)
        raise
    os.close(fd)
    return None
