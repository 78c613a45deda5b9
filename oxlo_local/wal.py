"""The ledger's write-ahead log: copied into the file beside the writer, and as long from the start as it will be.

SQLite would copy the WAL into the file in the commit that finds it long, and everybody behind that commit would wait
for two fsyncs and some thousand page writes. Another thread does it here, beside the writer: when nobody writes, and
under steady load seldom, because a commit that falls into the copy's fsync waits for it. Twice the writes until a copy
are not twice the pages to copy (many are the same), and half as many commits that wait.

An fsync of a file that has grown waits for the file system's journal, with whatever else that is writing just then. So
with `sync="full"` the WAL gets its whole length at the start, and commits only write over it.
"""

import logging
import os
import queue
import shutil
import sqlite3
import threading
from io import FileIO
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

WORTH_A_COPY: Final = 500  # writes, about 2,000 pages, that a pause is used to copy
WRITES_A_COPY: Final = 8000  # without a pause, about 32,000 pages; then they are copied all the same
LONGEST: Final = (
    16_384  # pages; from here on the writer copies the last of them itself, and the WAL starts over
)
WHOLE: Final = 160 << 20  # bytes: what 8,000 writes take, and those that come until the writer's copy
PIECE: Final = 16 << 20  # bytes written at once


class Copies(threading.Thread):
    """Copies the WAL into the file beside the writer.

    A passive checkpoint holds nobody up, but under steady load there is always a newer frame at its end, so the WAL
    would never start over. Once it is long, the writer makes the next pass itself, between two commits.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(name="ledger-copies", daemon=True)
        self._connection = connection  # its own, which it closes
        self._writes = 0
        self._copying = False
        self._long = False
        self._due: queue.SimpleQueue[bool] = queue.SimpleQueue()  # False = no more will come

    def written(self, writes: int, connection: sqlite3.Connection) -> None:
        """Called by the writer, with its connection, between two commits."""
        self._writes += writes
        if self._copying:
            return
        if self._long:
            pages, copied = self._copy(connection)
            self._long = copied < pages  # a reader was in the way
        if self._writes >= WRITES_A_COPY:
            self._start()

    def paused(self) -> None:
        """Called by the writer when nothing has been written for a while."""
        if self._writes >= WORTH_A_COPY and not self._copying:
            self._start()

    def _start(self) -> None:
        self._writes = 0
        self._copying = True
        self._due.put(True)

    def run(self) -> None:
        """Until `close`."""
        while self._due.get():
            pages, _ = self._copy(self._connection)
            self._long = pages > LONGEST
            self._copying = False

    def _copy(self, connection: sqlite3.Connection) -> tuple[int, int]:
        """Copy what no reader still needs; returns the pages in the WAL, and how many of them are in the file."""
        try:
            _, pages, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            return pages, copied
        except sqlite3.Error as error:  # a disk in trouble: the WAL grows until it works again
            log.warning("the ledger's WAL could not be copied: %s", error)
            return 0, 0

    def close(self) -> None:
        """End the thread and close its connection."""
        self._due.put(False)
        self.join()
        self._connection.close()


def lengthen(connection: sqlite3.Connection, path: Path) -> None:
    """Give the WAL its whole length in zeros, which SQLite passes over as it does the old frames of a used one.

    Written, not merely allocated: the first write to an allocated block goes through the journal too. A disk that has
    little room keeps it, and the WAL grows as it is needed.
    """
    wal = Path(f"{path.resolve()}-wal")
    try:
        with wal.open("r+b", buffering=0) as file:
            if shutil.disk_usage(wal.parent).free >= 10 * WHOLE:
                while _lengthened(connection, file):
                    pass
    except OSError as error:
        log.warning("the ledger's WAL could not be lengthened, commits may take longer: %s", error)


def _lengthened(connection: sqlite3.Connection, file: FileIO) -> bool:
    """Add a piece while no process can append; another server's writes wait for a piece and not for all of them."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        length = file.seek(0, os.SEEK_END)
        if length >= WHOLE:
            return False
        try:
            file.write(bytes(min(WHOLE - length, PIECE)))
            os.fsync(file)
        except OSError:
            file.truncate(length)
            raise
        return True
    finally:
        connection.execute("ROLLBACK")
