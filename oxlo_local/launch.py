"""A server of one's own: start `oxlo serve` as a child process, wait until it is ready, stop it.

For commands that need a server where none runs (`oxlo chat`) and for scripts that measure one. The child is a whole
`serve` with its ledger, so that what is asked of it is metered like everything else. It sits in a session of its own:
Ctrl-C in the terminal stops an answer here, not the server there. It gets SIGTERM when its parent dies (Linux), and its
words go to an unnamed file that is quoted when the start fails.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from oxlo_local.client import Address, Client, parse_url, read_serve_file
from oxlo_local.errors import OxloError, TimedOut, Unavailable

POLL_SECONDS = 0.02
STOP_SECONDS = 10.0
PR_SET_PDEATHSIG = 1
QUOTED_LINES = 20


class LaunchedServer:
    """A running `oxlo serve` that belongs to this process. Use as a context manager: leaving it stops the server."""

    def __init__(
        self, arguments: Sequence[str], serve_file: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        """Start `oxlo serve ARGUMENTS`. `serve_file` is where it leaves its address: its OXLO_HOME's."""
        self._serve_file = serve_file
        self._output = tempfile.TemporaryFile()
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "oxlo_local", "serve", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=environ,
            start_new_session=True,
            preexec_fn=partial(_end_with_parent, os.getpid()) if sys.platform == "linux" else None,
        )

    @property
    def pid(self) -> int:
        """Process id of the parent process of the server (the one that serves HTTP)."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_ready(self, seconds: float, waiting: Callable[[float], None] | None = None) -> Address:
        """The address, once /readyz says 200. `waiting` is called with the seconds so far, many times a second.

        Raises Unavailable with the server's own last words when it ended instead, TimedOut after `seconds`.
        """
        while (elapsed := time.monotonic() - self.started) < seconds:
            if self._process.poll() is not None:
                raise Unavailable(
                    f"the server ended (exit {self._process.returncode}) before it was ready:\n{self.words()}"
                )
            address = self._answering()
            if address is not None:
                return address
            if waiting is not None:
                waiting(elapsed)
            time.sleep(POLL_SECONDS)
        raise TimedOut(f"the server was not ready after {seconds:.0f} s; its last words:\n{self.words()}")

    def words(self) -> str:
        """The last lines that the server printed."""
        self._output.seek(0)
        return "\n".join(self._output.read().decode("utf-8", "replace").splitlines()[-QUOTED_LINES:])

    def stop(self) -> int:
        """End the server: SIGTERM, a second one (which ends it at once), then SIGKILL. Returns its exit status."""
        for send in (self._process.terminate, self._process.terminate, self._process.kill):
            if self._process.poll() is not None:
                break
            send()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        self._output.close()
        return self._process.wait()

    def _answering(self) -> Address | None:
        left = read_serve_file(self._serve_file)
        if left is None or left.pid != self._process.pid:
            return None  # nothing yet, or left by another server
        address = Address(parse_url(left.url), left.admin_token)
        try:
            with Client(address) as client:
                return address if client.ready() else None
        except OxloError:
            return None  # not listening yet


def _end_with_parent(parent: int) -> None:
    """Runs in the child between fork and exec, where an exception would be lost: SIGTERM when the parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
