"""The composition root: build the rooms, serve, drain, stop, in that order.

The signals are ours, not uvicorn's, which would close its sockets on the first one: a drain keeps listening, so that
new requests are told 503 and running ones end. The order of the end matters: calls first (each gets its terminal
event), then answers (each is written out and its row closed), then connections, processes, ledger, file.
"""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any

import msgspec
from msgspec import Struct

from oxlo_local import __version__, audit, hardware, lineup, log
from oxlo_local.api.app import ROUTES, State, create_app
from oxlo_local.api.connections import (
    BACKLOG,
    FLUSH_SECONDS,
    HttpServer,
    Readers,
    http_config,
    loop_factory,
)
from oxlo_local.api.rehearsal import rehearse
from oxlo_local.catalogue import Catalogue
from oxlo_local.config import Settings
from oxlo_local.db import Database
from oxlo_local.errors import BadRequest, LedgerUnavailable, ModelNotLoaded
from oxlo_local.inference import Inference
from oxlo_local.keys import Keys
from oxlo_local.ledger import Ledger
from oxlo_local.metrics import Metrics
from oxlo_local.outputs import Outputs
from oxlo_local.replays import Replays
from oxlo_local.store import Store
from oxlo_local.uploads import Uploads
from oxlo_local.workers.supervisor import Fleet, WorkerStatus

SWEEP_SECONDS = 5.0
LAST_PATIENCE = 0.5  # with clients that take nothing while the server ends
FILES_MAX = 65_536

logger = logging.getLogger(__name__)


def run(settings: Settings, models: Sequence[str]) -> int:
    """Serve until a signal; returns the exit status. Raises OxloError for whatever keeps it from starting."""
    allow_many_connections()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(serve(settings, models))


async def serve(settings: Settings, models: Sequence[str]) -> int:
    """`run` inside a running loop. 0 after a drain, 1 when a second signal cut it short."""
    log.start(settings.log_level, settings.log_format)
    began = time.monotonic()
    settings.make_home()
    with closing(listen(settings.host, settings.port)) as listener, Signals() as signals:
        async with ledger_of(settings) as (db, ledger):
            keys = Keys(db)
            await keys.check()
            await _first_key(settings, keys)
            house = House(settings, db, keys, ledger, models)
            return await house.live(listener, signals, began)


def say(line: str) -> None:
    """A line for whoever started the server. That they have stopped listening (`| head`) is no reason to end."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"oxlo: {line}\n")
        sys.stderr.flush()


class Signals:
    """SIGTERM and SIGINT as two events: the first asks for a drain, the second for the end."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def __enter__(self) -> "Signals":
        loop = asyncio.get_running_loop()
        with contextlib.suppress(
            RuntimeError, ValueError
        ):  # not the main thread: whoever started us stops us
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.take)
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(RuntimeError, ValueError):
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def take(self) -> None:
        """One signal has come."""
        (self.second if self.first.is_set() else self.first).set()


class House:
    """All rooms of one server."""

    def __init__(
        self, settings: Settings, db: Database, keys: Keys, ledger: Ledger, names: Sequence[str]
    ) -> None:
        """Raises OxloError for a model that is not here or does not fit."""
        self.settings = settings
        self.catalogue = Catalogue.load(
            settings.user_models_toml,
            installed=Store(settings).installed(),
            default_price_usd=settings.default_price_usd,
        )
        self.lineup = lineup.line_up(self.catalogue, names, settings, hardware.probe())
        self.specs = self.lineup.models
        self.progress = Progress()
        self.fleet = Fleet(settings, changed=self.progress.changed)
        self.inference = Inference(self.catalogue, ledger, self.fleet)
        self.ledger = ledger
        self.replays = Replays(db, ledger.instance_id, settings)
        self.uploads = Uploads(settings.uploads_dir, ledger.instance_id, settings.locks_dir)
        self.uploads.sweep()
        self.outputs = Outputs(settings.outputs_dir, settings.outputs_hours)
        self.outputs.sweep()
        self.admin_token = secrets.token_urlsafe(32)
        self.draining = False
        self.rehearsed = False
        metrics = Metrics(self.fleet.status)
        for spec in (*self.specs, *self.lineup.behind):
            metrics.expect([each.path for each in ROUTES if each.takes != "nothing"], spec.model_id)
        self.state = State(
            settings=settings,
            catalogue=self.catalogue,
            fleet=self.fleet,
            inference=self.inference,
            keys=keys,
            ledger=ledger,
            replays=self.replays,
            uploads=self.uploads,
            outputs=self.outputs,
            db=db,
            metrics=metrics,
            admin_token=self.admin_token,
            draining=lambda: self.draining,
            missing=self.missing,
        )

    async def live(self, listener: socket.socket, signals: Signals, began: float) -> int:
        """From the first start of a worker to the last byte. Raises ModelNotLoaded when a model cannot be started."""
        await self.ledger.announce(self.inference.prices, audit.os_user())
        url = url_of(listener)
        http = HttpServer(http_config(create_app(self.state)))
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        readers = Readers(http, self.settings.write_timeout)
        watching = [asyncio.create_task(self._sweep()), asyncio.create_task(readers.watch())]
        say(f"{__version__} is listening on {url}; loading {', '.join(spec.model_id for spec in self.specs)}")
        try:
            with serve_file(self.settings, url, self.admin_token):
                await self.fleet.start(self.specs)
                self.fleet.announce(self.lineup.behind)
                if await first(self._until_ready(), signals.first.wait()) == 0:
                    self._greet(url, time.monotonic() - began)
                    watching.append(asyncio.create_task(self._follow()))
                    await first(signals.first.wait(), asyncio.shield(serving))
                return await self._end(http, serving, signals, readers)
        finally:
            await self.fleet.stop(0)
            http.force_exit = http.should_exit = True
            http.cut_off()
            for task in watching:
                task.cancel()
            await asyncio.wait([serving, *watching])
            self.uploads.close()

    def missing(self) -> list[str]:
        """What readiness still waits for, a line each; empty = ready."""
        return self.fleet.ready() or ([] if self.rehearsed else ["a rehearsal of the first requests"])

    async def _until_ready(self) -> None:
        """Every model has answered its warm-up, and then as clients will ask it. Raises ModelNotLoaded."""
        await self._until_loaded()
        await rehearse(self.state)
        # What has been made by now stays: a full collection in the middle of an answer would look through all of it.
        gc.collect()
        gc.freeze()
        self.rehearsed = True

    async def _until_loaded(self) -> None:
        """Wait until every model has answered its warm-up. Raises ModelNotLoaded in the engine's own words."""
        while True:
            change = self.progress.next()
            for worker in self.fleet.status():
                self.progress.tell(worker.model, worker.state, worker.loaded, numbers_of(worker))
                if worker.state == "failed":
                    raise ModelNotLoaded(f"{worker.model} cannot be started: {worker.last_error}")
            if not self.fleet.ready():
                return
            await change

    async def _follow(self) -> None:
        """Start the demos that stand behind, one after another, and say how each turned out."""
        for line in self.lineup.left_out:
            say(line)
        for spec in self.lineup.behind:
            self.fleet.begin(spec.model_id)
            worker = await self._settled(spec.model_id)
            if worker.state == "ready":
                await rehearse(self.state, {spec.model_id})
                say(f"{spec.model_id}: ready{numbers_of(worker)}")
            elif worker.state == "failed":
                why = worker.last_error.splitlines()[0]
                say(f"{spec.model_id} cannot be started, the others are none the worse: {why}")

    async def _settled(self, model: str) -> WorkerStatus:
        """The worker of a model, once it has been loaded, or has failed, or need not be loaded any more."""
        while True:
            change = self.progress.next()
            worker = next(each for each in self.fleet.status() if each.model == model)
            if worker.state in ("ready", "failed", "draining", "stopped"):
                return worker
            await change

    def _greet(self, url: str, seconds: float) -> None:
        names = ", ".join(spec.model_id for spec in self.specs)
        say(f"ready in {seconds:.1f} s with {names}; Ctrl-C stops it")
        say(f"base URL {url}/v1")
        secret = "none" if self.settings.loopback else "YOUR KEY"
        say(f'OpenAI SDK: OpenAI(base_url="{url}/v1", api_key="{secret}"), model="{self.specs[0].model_id}"')

    async def _end(
        self, http: HttpServer, serving: asyncio.Task[None], signals: Signals, readers: Readers
    ) -> int:
        """Drain and stop; a second signal makes it short."""
        self.draining = True
        say("draining; a second signal ends it at once")
        cut = await first(self._drain(), signals.second.wait()) == 1
        if cut:
            say("ending at once")
            await self.fleet.stop(0)
        self.replays.stop()
        readers.patience = LAST_PATIENCE
        await within(FLUSH_SECONDS if not cut else 1.0, self.inference.quiet())
        http.should_exit = True
        await within(FLUSH_SECONDS if not cut else 1.0, asyncio.shield(serving))
        http.cut_off()  # whoever is still sending a request, or reading byte by byte
        http.force_exit = cut
        await within(FLUSH_SECONDS, asyncio.shield(serving))
        if not cut:
            await first(self.fleet.stop(), signals.second.wait())
        say("stopped")
        return 1 if cut else 0

    async def _drain(self) -> None:
        await self.fleet.drain(self.settings.drain_seconds)

    async def _sweep(self) -> None:
        """Refund the rows of servers that died, write what is owed, forget what is over, while this one lives."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.ledger.sweep()
                await self.replays.tidy()
                await asyncio.to_thread(self.uploads.sweep)
                await asyncio.to_thread(self.outputs.sweep)
            except LedgerUnavailable as error:
                logger.error("the ledger cannot be swept: %s", error)


class Progress:
    """What has been said about the start, and a future for the next change."""

    QUARTERS = 4

    def __init__(self) -> None:
        self._change: asyncio.Future[None] | None = None
        self._said: dict[str, str] = {}

    def next(self) -> asyncio.Future[None]:
        """Done at the next change."""
        self._change = asyncio.get_running_loop().create_future()
        return self._change

    def changed(self) -> None:
        """A worker has moved on."""
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    def tell(self, model: str, state: str, loaded: float, numbers: str = "") -> None:
        """Say how a model is doing, once for every quarter of its load; `numbers` goes behind that it is ready."""
        quarter = int(loaded * self.QUARTERS)
        words = f"{25 * quarter} % loaded" if state == "starting" and quarter else state
        if words in ("warming", "ready") or (words != state and quarter < self.QUARTERS):
            if self._said.get(model) != words:
                say(f"{model}: {words}{numbers if state == 'ready' else ''}")
            self._said[model] = words


def numbers_of(worker: WorkerStatus) -> str:
    """In which numbers a model computes, and where, if its engine had a choice: ` (int8 on the CPU)`."""
    facts = worker.facts
    if facts is None or not facts.compute_type:
        return ""
    return f" ({facts.compute_type} on the {facts.device.upper()})"


# -- the outside ------------------------------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises BadRequest in one clear line when the address cannot be had."""
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        return socket.create_server((bare, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise BadRequest(
            f"cannot listen on {host}:{port}: {reason}; choose another with --host or --port"
        ) from error


def allow_many_connections() -> None:
    """Raise this process's own limit of open files, which often is 1,024, as far as it may without asking."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def url_of(listener: socket.socket) -> str:
    """The address by which this machine reaches the server: loopback where it listens everywhere."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


class _Left(Struct):
    """The file that commands find a running server by (`client.ServeFile` reads it)."""

    url: str
    pid: int
    admin_token: str
    version: str = __version__


@contextmanager
def serve_file(settings: Settings, url: str, admin_token: str) -> Iterator[None]:
    """Leave address and admin token for this user's commands; at the end take them away, if they are still ours."""
    path = settings.serve_file
    content = msgspec.json.encode(_Left(url, os.getpid(), admin_token))
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    os.replace(draft, path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.read_bytes() == content:
                path.unlink()


@asynccontextmanager
async def ledger_of(settings: Settings) -> AsyncIterator[tuple[Database, Ledger]]:
    """The ledger's file and this instance's rows in it; both are closed at the end."""
    with closing(Database.open(settings.ledger_path, sync=settings.ledger_sync)) as db:
        ledger = await Ledger.open(db, settings.locks_dir)
        try:
            yield db, ledger
        finally:
            await ledger.close()


async def _first_key(settings: Settings, keys: Keys) -> None:
    """Where keys are required and none was ever made: make one for the admin and show it this once."""
    if settings.loopback and settings.auth != "always":
        return
    made = await keys.create_first("admin")
    if made is not None:
        say(f"no key had been made, and {settings.host} needs one: this is the admin's, shown only now")
        say(made[1])


async def first(*waits: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> int:
    """Wait for the first of them, cancel the rest, and tell which it was. Raises what it raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            if not task.done():
                task.cancel()
    await asyncio.wait(tasks)
    index = next(number for number, task in enumerate(tasks) if not task.cancelled())
    tasks[index].result()
    return index


async def within(seconds: float, wait: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> None:
    """Wait, but not for ever."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(wait, seconds)
