"""A site in a process of its own that kills itself (SIGKILL) right after a named step of a request has been done.

`python -m tests.api.crash_site HOME STEP` prints its address, and serves until it dies; at step `never` it does not.
"""

import functools
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from oxlo_local.calls import EchoOptions
from oxlo_local.ledger import Ledger
from oxlo_local.replays import Replays
from tests.api.conftest import site_of

STEPS: dict[str, tuple[type, str]] = {
    "claimed": (Replays, "claim"),
    "reserved": (Ledger, "reserve"),
    "kept": (Replays, "keep"),
    "settled": (Ledger, "settle"),
}


def dying(work: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
    """The same, and then the end."""

    @functools.wraps(work)
    async def done(*args: object, **kwargs: object) -> object:
        await work(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    return done


if __name__ == "__main__":
    if sys.argv[2] != "never":
        owner, name = STEPS[sys.argv[2]]
        setattr(owner, name, dying(getattr(owner, name)))
    with site_of(Path(sys.argv[1]), EchoOptions(step_seconds=0.01)) as site:
        sys.stdout.write(f"{site.url}\n")
        sys.stdout.flush()
        threading.Event().wait()
