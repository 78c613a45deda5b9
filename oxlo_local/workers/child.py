"""One worker process as the parent sees it: spawned, spoken to through frames, watched, and explained when it ends."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from oxlo_local.calls import Down, Gauges, ModelFacts, Ping, Pong, Stop, Up, decode_up
from oxlo_local.workers.pipe import Frames, Garbled, pack
from oxlo_local.workers.router import Pulse

WORKER_COMMAND = (sys.executable, "-m", "oxlo_local.workers.main")
READ_BYTES = 1 << 18
LAST_LINES = 20  # of its stderr, kept as the engine's own words
LINE_MAX = 500  # characters
END_SECONDS = 10.0  # from the end of its pipe to its own
BOOT_SECONDS = 60.0  # until its first frame: an interpreter's start on a slow disk, no more
NICE = 10  # of a process that lets others go first

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stderr:
    """A pipe of our own for what a process says: asyncio's would tie the process's end to whoever holds the pipe."""

    reader: asyncio.StreamReader
    transport: asyncio.ReadTransport
    write_end: int

    @classmethod
    async def open(cls) -> "Stderr":
        """A new pipe; `write_end` is for the process."""
        read_end, write_end = os.pipe()
        reader = asyncio.StreamReader(READ_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", 0)
        )
        return cls(reader, transport, write_end)


class Child:
    """One process, from spawn to exit."""

    def __init__(self, process: asyncio.subprocess.Process, stderr: "Stderr", pulse: Pulse) -> None:
        self.pid = process.pid
        self.pulse = pulse
        self.loaded = 0.0
        self.facts: ModelFacts | None = None
        self.gauges = Gauges()
        self.rss_bytes = 0
        self._process = process
        self._born = time.monotonic()
        self._spoken = False  # since its first frame pings are answered
        self._reason = ""
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._stderr = stderr
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def spawn(cls, command: Sequence[str], pulse: Pulse) -> "Child":
        """Start the process in a session of its own, so that the terminal's Ctrl-C is not also the child's.

        Raises OSError when it cannot be started.
        """
        pipe = asyncio.subprocess.PIPE
        stderr = await Stderr.open()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=pipe,
                stdout=pipe,
                stderr=stderr.write_end,
                start_new_session=True,
                limit=READ_BYTES,
            )
        except BaseException:
            stderr.transport.close()
            raise
        finally:
            os.close(stderr.write_end)
        return cls(process, stderr, pulse)

    def give_way(self) -> None:
        """Have it let other processes go first, for good: nobody but root could take that back."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self.pid, NICE)

    def send(self, message: Down) -> None:
        """Queue one frame; a process that has gone takes none, and its end is noticed elsewhere."""
        stdin = self._process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(pack(message))

    async def read(self, take: Callable[[Up], None]) -> None:
        """Hand every message but the pongs to `take` until the pipe closes; noise on the pipe ends the process."""
        stdout = self._process.stdout
        assert stdout is not None
        frames = Frames()
        while data := await stdout.read(READ_BYTES):
            try:
                for body in frames.feed(data):
                    self._take(decode_up.decode(body), take)
            except (Garbled, msgspec.DecodeError) as error:
                self.kill(f"it sent noise instead of messages: {error}")
                return

    def _take(self, message: Up, take: Callable[[Up], None]) -> None:
        self._spoken = True
        if isinstance(message, Pong):
            self.pulse.pong(message, time.monotonic())
            self.gauges, self.rss_bytes = message.gauges, message.rss_bytes
        else:
            take(message)

    async def ping(self, seconds: float) -> None:
        """Ping it every `seconds` until that shows that it has to be killed."""
        while True:
            await asyncio.sleep(seconds)
            verdict = self.pulse.verdict()
            if not self._spoken and time.monotonic() - self._born > BOOT_SECONDS:
                verdict = f"it said nothing for {BOOT_SECONDS:g} s after its start"
            if verdict is not None:
                self.kill(f"killed, because {verdict}")
                return
            if self._spoken:
                self.send(Ping(self.pulse.ping()))

    def kill(self, reason: str) -> None:
        """End it at once. The first reason given is the one that `ended` tells."""
        self._reason = self._reason or reason
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def stop(self) -> None:
        """Ask it to free the model and leave; one that is still loading cannot listen, and has nothing to lose."""
        if self.facts is None:
            self.kill("the server stopped")
        self.send(Stop())

    def explain(self, reason: str) -> None:
        """Keep why it is about to end by itself."""
        self._reason = self._reason or reason

    async def ended(self) -> str:
        """Wait for the end; how it came about, then the last lines that the process wrote."""
        stdin = self._process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.transport.abort()  # nobody reads what is left in it
        try:
            status = await asyncio.wait_for(self._exit(), END_SECONDS)
        except TimeoutError:
            self.kill("it closed its pipe and did not leave")
            status = await self._exit()
        # A grandchild may hold stderr open: what has not arrived by now is not waited for.
        await asyncio.wait([self._listening], timeout=0.5)
        self._stderr.transport.close()
        await self._listening
        if not self._reason:
            self._reason = (
                f"killed by {signal_name(-status)}" if status < 0 else f"exited with status {status}"
            )
        return "\n".join([self._reason, *(f"  {line}" for line in self._lines)])

    async def _exit(self) -> int:
        # `wait` waits for the pipes too, and a full one is only seen to be closed once it has been emptied.
        stdout = self._process.stdout
        assert stdout is not None
        while await stdout.read(READ_BYTES):
            pass
        return await self._process.wait()

    async def _listen(self) -> None:
        rest = ""
        while data := await self._stderr.reader.read(READ_BYTES):
            *lines, rest = (rest + data.decode("utf-8", "replace")).split("\n")
            for line in lines:
                self._note(line)
            rest = rest[-LINE_MAX:]
        self._note(rest)

    def _note(self, line: str) -> None:
        line = line.strip()[:LINE_MAX]
        if line:
            self._lines.append(line)
            logger.debug("worker %d: %s", self.pid, line)


def signal_name(number: int) -> str:
    """SIGKILL for 9; the bare number for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
