"""Images that an answer tells the address of, until they expire: whoever knows a name may have the file.

A name is 128 random bits, so it is known to nobody but the client that was told it; no list of them is given out. The
file's own time says when it expires, so a restart forgets nothing, and needs nothing to be remembered.
"""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from oxlo_local.errors import NotFound, Unavailable

MEDIA_TYPES: Final = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
NAME: Final = re.compile(rf"[0-9a-f]{{32}}\.({'|'.join(MEDIA_TYPES)})", re.ASCII)
SCAN_SECONDS: Final = 60.0  # between two walks through the folder


class Outputs:
    """The folder of such files. Methods do I/O, and are safe in any thread."""

    def __init__(self, folder: Path, hours: float, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._seconds = hours * 3600
        self._clock = clock
        self._scanned: float | None = None

    def keep(self, data: bytes, form: str) -> str:
        """Write a file of that format; returns its name. Raises Unavailable where the disk does not take it."""
        name = f"{secrets.token_hex(16)}.{form}"
        path = self._folder / name
        try:
            self._folder.mkdir(
                mode=0o700, parents=True, exist_ok=True
            )  # again: `oxlo purge` may have removed it
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            os.utime(path, (self._clock(), self._clock()))
        except OSError as error:
            self.drop([name])
            raise Unavailable(
                f"The server cannot store the image: {error.strerror}; its data folder needs room."
            ) from error
        return name

    def read(self, name: str) -> tuple[bytes, float]:
        """The file of that name, and the seconds that it has left. Raises NotFound, also when it has expired."""
        gone = NotFound("There is no such output, or it has expired.")
        if not NAME.fullmatch(name):
            raise gone
        path = self._folder / name
        try:
            left = path.stat(follow_symlinks=False).st_mtime + self._seconds - self._clock()
            data = path.read_bytes()
        except OSError:
            raise gone from None
        if left <= 0:
            raise gone
        return data, left

    def drop(self, names: Iterable[str]) -> None:
        """Remove files that nobody has been told of."""
        for name in names:
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()

    def sweep(self) -> None:
        """Remove what has expired. To be called every few seconds."""
        now = self._clock()
        if self._scanned is not None and now < self._scanned + SCAN_SECONDS:
            return
        self._scanned = now
        with contextlib.suppress(OSError), os.scandir(self._folder) as files:
            for file in files:
                with contextlib.suppress(OSError):
                    if file.stat(follow_symlinks=False).st_mtime + self._seconds <= now:
                        os.unlink(file.path)
