"""Files that clients have sent, for as long as their requests last: on disk, never in memory, and nobody else's to see.

Each instance (instance.py) has a folder of its own, with names of our own making: what a client calls its file decides
nothing. A file goes when its request ends; what a killed process leaves goes with the first sweep of any other, which
finds that the folder's instance is no more.
"""

import contextlib
import os
import secrets
import shutil
from pathlib import Path

from oxlo_local import instance
from oxlo_local.errors import Unavailable


class Upload:
    """One file that is coming in. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Raises Unavailable where no file can be made."""
        self.path = path
        self.size = 0
        try:
            path.parent.mkdir(
                mode=0o700, parents=True, exist_ok=True
            )  # again: `oxlo purge` may have removed it
            self._file = open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        except OSError as error:
            raise _cannot_store(error) from error

    def write(self, data: bytes) -> None:
        """The next piece. Raises Unavailable when the disk takes no more."""
        try:
            self._file.write(data)
        except OSError as error:
            raise _cannot_store(error) from error
        self.size += len(data)

    def finish(self) -> None:
        """All is written. Raises Unavailable when the disk has not taken it."""
        try:
            self._file.close()
        except OSError as error:
            raise _cannot_store(error) from error

    def remove(self) -> None:
        """Nobody needs it any more; also in the middle of it, and twice."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


def _cannot_store(error: OSError) -> Unavailable:
    return Unavailable(f"The server cannot store the file: {error.strerror}; its data folder needs room.")


class Uploads:
    """The uploaded files of one instance."""

    def __init__(self, folder: Path, instance_id: str, locks_dir: Path) -> None:
        self._folder = folder
        self._own = folder / instance_id
        self._locks_dir = locks_dir

    def begin(self) -> Upload:
        """A new file. Raises Unavailable."""
        return Upload(self._own / secrets.token_hex(16))

    def sweep(self) -> None:
        """Remove what instances have left that are no more, once their locks have been taken away."""
        living = instance.names(self._locks_dir)
        with contextlib.suppress(OSError):
            for folder in self._folder.iterdir():
                if folder != self._own and folder.name not in living:
                    shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove this instance's own folder."""
        shutil.rmtree(self._own, ignore_errors=True)
