"""Servers on the track: started alike on the same cores, and only the one whose turn it is may move.

The cores: with two or more allowed, the servers get all but the first, and this process (the client) keeps the first;
children inherit the affinity that this process has at the moment of their start. A server that waits for its turn is
stopped with SIGSTOP, all its processes, so that neither its heartbeat nor a spinning thread takes anything.

What this file measures of a turn is `foreign`: the share of all cores that was busy with neither racer nor client. A
round in which it is high compares two servers under different weather, and the table says so.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import psutil

from oxlo_local.calls import Gauges, ModelFacts
from oxlo_local.client import Address, Client
from oxlo_local.errors import OxloError
from oxlo_local.launch import LaunchedServer
from race.peer import Peer, Shape, our_arguments, peer_arguments

READY_SECONDS = 900.0  # a 19 GB model may come from a slow disk
STOP_SECONDS = 10.0
ROOT = Path(__file__).resolve().parents[2]


class _WorkerItem(msgspec.Struct, frozen=True):
    gauges: Gauges
    facts: ModelFacts
    pid: int | None = None
    rss_bytes: int = 0


class _Workers(msgspec.Struct, frozen=True):
    workers: list[_WorkerItem]


@dataclass
class Racer:
    """A running server. `admin` is ours only: the address with the token that may read its counters."""

    name: str
    address: Address
    model: str
    pid: int
    admin: Address | None = None

    def processes(self) -> list[psutil.Process]:
        """The server's process and all below it, the eldest first."""
        try:
            eldest = psutil.Process(self.pid)
            return [eldest, *eldest.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def pause(self) -> None:
        """Stop it where it is; its parent first, so that nothing wonders why a child is silent."""
        for process in self.processes():
            _signal(process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        for process in reversed(self.processes()):
            _signal(process.pid, signal.SIGCONT)

    def cpu_seconds(self) -> float:
        """CPU time of all its processes so far."""
        total = 0.0
        for process in self.processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def gauges(self) -> Gauges:
        """Our engine's counters, no older than this call (see --ping-seconds); there are none of the peer."""
        time.sleep(0.5)
        return self._worker().gauges

    def facts(self) -> ModelFacts:
        """What our engine found in the file."""
        return self._worker().facts

    def _worker(self) -> _WorkerItem:
        assert self.admin is not None, f"{self.name} has no /admin/workers"
        with Client(self.admin) as client:
            return msgspec.json.decode(client.get("/admin/workers"), type=_Workers).workers[0]


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it ended between being listed and now


@dataclass(frozen=True)
class Cores:
    """Who runs where. Empty tuples: nobody is pinned."""

    servers: tuple[int, ...] = ()
    client: tuple[int, ...] = ()

    @classmethod
    def apart(cls, allowed: Sequence[int]) -> "Cores":
        """The client on the first of `allowed`, the servers on the others; with one core nobody is pinned."""
        first, *others = sorted(allowed)
        return cls(tuple(others), (first,)) if others else cls()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """What is started inside runs on the servers' cores; afterwards this process is on its own."""
        if not self.servers:
            yield
            return
        os.sched_setaffinity(0, self.servers)
        try:
            yield
        finally:
            os.sched_setaffinity(0, self.client)


def cores(pin: bool) -> Cores:
    """As the machine allows: macOS has no affinity."""
    if not pin or not hasattr(os, "sched_getaffinity"):
        return Cores()
    return Cores.apart(sorted(os.sched_getaffinity(0)))


def clean_environ(home: Path) -> dict[str, str]:
    """An environment with a data folder of its own and no OXLO_ variable of the user's."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").touch()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OXLO_")}
    return {
        **kept,
        "OXLO_HOME": str(home),
        "OXLO_CONFIG": str(home / "config.toml"),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def make_key(environ: dict[str, str]) -> str:
    """A user's key in a data folder; from then on its server asks for keys."""
    command = [sys.executable, "-m", "oxlo_local", "keys", "create", f"race-{secrets.token_hex(4)}"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def our_server(shape: Shape, home: Path, on: Cores, extra: Sequence[str] = ()) -> Iterator[Racer]:
    """`oxlo serve` with a key made, so that ledger, keys and metrics are all in force."""
    environ = clean_environ(home)
    key = make_key(environ)
    with on.starting():
        server = LaunchedServer(our_arguments(shape, extra), home / "serve.json", environ)
    with server:
        admin = server.wait_ready(READY_SECONDS)
        racer = Racer("oxlo", Address(admin.url, key), shape.model.stem, server.pid, admin)
        try:
            yield racer
        finally:
            racer.resume()  # a stopped process does not die of SIGTERM


@contextmanager
def peer_server(peer: Peer, shape: Shape, on: Cores, extra: Sequence[str] = ()) -> Iterator[Racer]:
    """llama-server. Raises OxloError with its last words when it does not come up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [*peer.command, *peer_arguments(shape, port, extra)]
    with tempfile.TemporaryFile() as log:
        with on.starting():
            process = subprocess.Popen(
                command,
                env=peer.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            if not _healthy(url, process):
                log.seek(0)
                words = log.read().decode("utf-8", "replace").splitlines()[-20:]
                raise OxloError(f"{' '.join(command)}\ndid not become ready:\n" + "\n".join(words))
            yield Racer("llama-server", Address(url), shape.model.stem, process.pid)
        finally:
            _end(process)


def _healthy(url: str, process: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200:
                return True
        except httpx.HTTPError:
            pass  # not listening yet
        time.sleep(0.05)
    return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    for send in (process.terminate, process.kill):
        if process.poll() is None:
            _signal(process.pid, signal.SIGCONT)
            send()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue


# -- the weather ------------------------------------------------------------------------------------------------------


@dataclass
class Weather:
    """How busy the machine was with other things; shares of all cores."""

    before: float
    foreign: float = 0.0
    after: float = 0.0


def busy_now(seconds: float = 0.2) -> float:
    """Share of all cores that is busy, over a moment in which no racer moves."""
    return round(psutil.cpu_percent(seconds) / 100, 3)


@contextmanager
def turn_of(racer: Racer, *, look: bool = True) -> Iterator[Weather]:
    """The racer moves inside and stands outside. `look` False leaves out the looks before and after, 0.4 s in all."""
    weather = Weather(busy_now() if look else 0.0)
    own = racer.cpu_seconds()
    client, begun = time.process_time(), time.perf_counter()
    busy = _busy_seconds()
    racer.resume()
    try:
        yield weather
    finally:
        racer.pause()
        mine = racer.cpu_seconds() - own + time.process_time() - client
        room = (time.perf_counter() - begun) * (psutil.cpu_count() or 1)
        weather.foreign = round(max(0.0, _busy_seconds() - busy - mine) / room, 3)
        weather.after = busy_now() if look else 0.0


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0) + getattr(times, "steal", 0.0))
