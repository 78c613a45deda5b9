"""A program for tests/test_balances.py: servers that die of SIGKILL at a named step of a request.

The program itself opens nothing. For each line `STEP NTH` on stdin it forks a server that serves a few requests at once
and kills itself when a request comes to that step for the NTH time; then it says on stdout how the server ended. The
steps inside a transaction are reached by wrapping the work that is handed to the database.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from oxlo_local.db import Connection, Database
from oxlo_local.ledger import Ask, Entry, Ledger, Outcome
from oxlo_local.limits import version_of

T = TypeVar("T")

STEPS = (
    "asked",  # before anything is written
    "reserving",  # in the transaction, before the row
    "written",  # in the transaction, behind the row
    "reserved",  # committed
    "output",  # the first token is out
    "closing",  # in the transaction, before the row is closed
    "written off",  # in the transaction, behind it
    "closed",  # committed
)
REQUESTS = 8
VERSION = version_of({"oxlo-demo": 100})  # of the list that the test has kept


class Dying:
    """Counts down to the death."""

    def __init__(self, step: str, nth: int) -> None:
        self._step = step
        self._left = nth

    def at(self, step: str) -> None:
        """A request has come to a step."""
        if step == self._step:
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1

    def around(self, work: Callable[[Connection], T], before: str, behind: str) -> Callable[[Connection], T]:
        """Work for the database with a step on each side."""

        def wrapped(connection: Connection) -> T:
            self.at(before)
            result = work(connection)
            self.at(behind)
            return result

        return wrapped


class DyingDatabase(Database):
    """A database whose writer may die in the middle of a transaction."""

    dying: Dying
    serving = False

    def submit(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        """As the Database does."""
        name = getattr(getattr(work, "func", work), "__name__", "")
        if self.serving and name == "_insert":
            return super().submit(self.dying.around(work, "reserving", "written"))
        if self.serving and name == "apply":
            return super().submit(self.dying.around(work, "closing", "written off"))
        return super().submit(work)


async def serve(home: Path, key_id: str, dying: Dying) -> None:
    """Some requests at once: most are settled, some refunded, and some never end."""
    db = DyingDatabase.open(home / "ledger.db", busy_seconds=20)
    assert isinstance(db, DyingDatabase)
    db.dying = dying
    ledger = await Ledger.open(db, home / "locks")
    db.serving = True

    async def request(number: int) -> Entry:
        dying.at("asked")
        ask = Ask(key_id, "/v1/chat/completions", "oxlo-demo", 1, 100, VERSION, f"req_{number}")
        entry = await ledger.reserve(ask)
        dying.at("reserved")
        await asyncio.sleep(0)
        dying.at("output")
        if number % 4 == 3:
            await ledger.refund(entry, "timeout", Outcome())
        else:
            await ledger.settle(entry, Outcome(completion_tokens=1))
        dying.at("closed")
        return entry

    await asyncio.gather(*(request(number) for number in range(REQUESTS)))


def main() -> None:
    """Until stdin ends."""
    home, key_id = Path(sys.argv[1]), sys.argv[2]
    for line in sys.stdin:
        step, nth = line.rsplit(maxsplit=1)
        child = os.fork()
        if child == 0:
            asyncio.run(serve(home, key_id, Dying(step, int(nth))))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        sys.stdout.write("killed\n" if killed else f"status {status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
