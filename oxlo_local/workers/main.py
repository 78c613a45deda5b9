"""The child process: one engine, one step loop, and a second thread that answers for it.

Two threads share the work. The main thread loads the engine and then steps it for as long as it has something to do.
The reader thread owns stdin: it passes calls on, answers pings itself (one decode of a long prompt may take minutes),
and ends the process the moment stdin closes, which is how a child notices that its parent was killed.

What would break the pipe is moved out of its way first: engines print from native code, so fd 1 becomes a second
stderr and the frames go through private copies. Signals meant for the parent (Ctrl-C reaches a whole terminal,
service managers signal every process) are ignored, because the parent may still be draining.
"""

import ctypes
import importlib
import os
import signal
import sys
import threading
import time
from queue import Empty, SimpleQueue
from typing import cast

from oxlo_local import log
from oxlo_local.calls import (
    Cancel,
    Event,
    Events,
    Failed,
    Gauges,
    Load,
    LoadFailed,
    Loading,
    Ping,
    Pong,
    Ready,
    Stop,
    Submit,
    Up,
    decode_down,
)
from oxlo_local.engines import ENGINES, Engine, Progress
from oxlo_local.errors import ServerError
from oxlo_local.workers.pipe import Frames, Garbled, pack

Command = Load | Submit | Cancel | Stop

READ_BYTES = 1 << 18
PROGRESS_STEP = 0.01
PR_SET_PDEATHSIG = 1


class Pipe:
    """Both directions of the child's pipe; `send` may be called from either thread."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._in = incoming
        self._out = outgoing
        self._frames = Frames()
        self._lock = threading.Lock()

    def send(self, message: Up) -> None:
        """Write one whole frame. Raises BrokenPipeError when the parent is gone."""
        frame = memoryview(pack(message))
        with self._lock:
            while frame:
                frame = frame[os.write(self._out, frame) :]

    def receive(self) -> list[bytearray] | None:
        """The next bodies; None at the end of the stream. Blocks in `os.read`, which never upsets interpreter exit."""
        data = os.read(self._in, READ_BYTES)
        return self._frames.feed(data) if data else None


class Worker:
    """What both threads know: the engine once it is loaded, and how many steps were begun."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.commands: SimpleQueue[Command] = SimpleQueue()
        self._engine: Engine | None = None
        self._steps = 0
        self._stepping = False

    # -- reader thread ------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Serve stdin until it closes, then end the process, whatever the other thread is doing."""
        try:
            while (bodies := self.pipe.receive()) is not None:
                for body in bodies:
                    message = decode_down.decode(body)
                    if isinstance(message, Ping):
                        self.pipe.send(self.pong(message.number))
                    else:
                        self.commands.put(message)
        except BrokenPipeError:
            pass
        except Exception as error:
            sys.stderr.write(f"the pipe from the parent is unusable: {error}\n")
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)

    def pong(self, number: int) -> Pong:
        """The answer to a ping: how far the other thread is."""
        engine = self._engine
        return Pong(
            number=number,
            step=self._steps,
            busy=self._stepping or (engine is not None and engine.busy()),
            gauges=engine.gauges() if engine is not None else Gauges(),
            rss_bytes=resident_bytes(),
        )

    # -- main thread --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Load, say so, then step until told to stop."""
        load = self.commands.get()
        if isinstance(load, Stop):
            return
        if not isinstance(load, Load):
            raise TypeError(f"the first message must be Load, not {type(load).__name__}")
        try:
            engine = load_engine(load, LoadProgress(self.pipe))
        except Exception as error:
            self.pipe.send(LoadFailed(str(error) or type(error).__name__))
            raise SystemExit(1) from error
        self._engine = engine
        self.pipe.send(Ready(engine.facts))
        try:
            self._serve(engine)
        finally:
            self._engine = None
            engine.close()

    def _serve(self, engine: Engine) -> None:
        while True:
            commands = self._commands(wait=not engine.busy())
            self._stepping = True  # from here on, since to take a call is work too, and may hang
            self._steps += 1
            for command in commands:
                if isinstance(command, Submit):
                    engine.submit(command.call)
                elif isinstance(command, Cancel):
                    engine.cancel(command.id)
                elif isinstance(command, Stop):
                    return
            began = time.monotonic()
            events = engine.step() if engine.busy() else []
            self._stepping = False
            if events:
                self.tell(events, time.monotonic() - began)

    def tell(self, events: list[Event], seconds: float) -> None:
        """Send what came of a step. An event that no frame can hold fails its own call, not the worker with all."""
        try:
            self.pipe.send(Events(events, seconds))
        except Garbled as error:
            if len(events) > 1:
                for event in events:
                    self.tell([event], seconds)
            else:
                self.tell([Failed(events[0].id, ServerError.code, str(error))], seconds)

    def _commands(self, *, wait: bool) -> list[Command]:
        """What has come in by now; at least one command where it may `wait`."""
        commands = [self.commands.get()] if wait else []
        try:
            while True:
                commands.append(self.commands.get_nowait())
        except Empty:
            return commands


class LoadProgress:
    """Reports load progress, but not every callback of the engine: a frame a percent."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._said = 0.0

    def __call__(self, fraction: float) -> None:
        if fraction - self._said >= PROGRESS_STEP:
            self._said = fraction
            self._pipe.send(Loading(min(fraction, 1.0)))


def load_engine(load: Load, progress: Progress) -> Engine:
    """The engine that `load` names. Raises ValueError for an unknown one, ImportError naming the extra it needs."""
    where = ENGINES.get(load.engine)
    if where is None:
        raise ValueError(f"no engine is called {load.engine!r}; there are {', '.join(sorted(ENGINES))}")
    module, _, name = where.partition(":")
    try:
        engine_class = cast(type[Engine], getattr(importlib.import_module(module), name))
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the {load.engine} engine needs the package {error.name}: OXLO_EXTRAS=all scripts/oxlo"
        ) from error
    return engine_class(load, progress)


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def claim_pipe() -> tuple[int, int]:
    """Private copies of fd 0 and 1 for the frames, which no grandchild inherits.

    fd 1 itself becomes stderr, for whatever native code prints, and fd 0 is empty.
    """
    incoming, outgoing = os.dup(0), os.dup(1)
    for private in (incoming, outgoing):
        os.set_blocking(private, True)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return incoming, outgoing


def die_with_parent() -> None:
    """On Linux the kernel kills this process with its parent, also while native code holds the interpreter lock."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    """Run a worker over this process's stdin and stdout; exits 0 after Stop, 1 after a failure."""
    incoming, outgoing = claim_pipe()
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    log.start_worker()
    worker = Worker(Pipe(incoming, outgoing))
    threading.Thread(target=worker.read, name="reader", daemon=True).start()
    status = 0
    try:
        worker.pipe.send(Loading(0.0))  # the first frame tells the parent that pings are answered from now on
        worker.run()
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    except BrokenPipeError:
        pass
    except BaseException:
        log.last_words()
        status = 1
    sys.stderr.flush()
    os._exit(status)  # no interpreter teardown under native threads


if __name__ == "__main__":
    main()
