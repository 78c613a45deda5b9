"""A real site: the application over the real path and the real ledger, on a port of its own, in a thread.

Behind it stands the echo engine in a worker process, because it breaks and waits exactly when asked to; the tests that
need real text ask for `server` (tests/conftest.py) instead.
"""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from oxlo_local.api.app import State, create_app
from oxlo_local.api.connections import HttpServer, Readers, http_config
from oxlo_local.calls import EchoOptions
from oxlo_local.catalogue import Catalogue, Model
from oxlo_local.config import Settings
from oxlo_local.db import Connection, Database
from oxlo_local.inference import Inference
from oxlo_local.keys import Keys
from oxlo_local.ledger import Ledger
from oxlo_local.metrics import Metrics
from oxlo_local.outputs import Outputs
from oxlo_local.random_model import Shape, write
from oxlo_local.replays import Replays
from oxlo_local.server import ledger_of, listen, url_of
from oxlo_local.uploads import Uploads
from oxlo_local.workers.supervisor import Fleet, WorkerSpec
from tests.conftest import RunningServer, await_ready, launch

T = TypeVar("T")

ADMIN_TOKEN = "the-admin-token-of-this-start"


def catalogue() -> Catalogue:
    """Two models that are here, of which `echo` runs; one to pull; one of another kind; one with a fallback."""
    here = Path(__file__)
    models = [
        Model(
            id="echo",
            title="Echo",
            path=here,
            context=4096,
            price_usd=Decimal("0.0027"),
            repo="acme/echo-GGUF",
        ),
        Model(id="idle", path=here, price_usd=Decimal("0.0010")),
        Model(id="ear", path=here, kind="speech", engine="speech", price_usd=Decimal("0.0010")),
        Model(id="ink", path=here, kind="lora", engine="image", price_usd=Decimal("0.0010")),
        Model(id="far-away", price_usd=Decimal("0.0010")),
        Model(id="too-big", price_usd=Decimal("0.0010"), fallback="echo"),
    ]
    return Catalogue(models, {"parrot": "echo"}, Decimal("0.0010"))


class Site:
    """A server under test, and the rooms behind it."""

    def __init__(self, settings: Settings, options: EchoOptions) -> None:
        self.settings = settings
        self.draining = False
        self.client = httpx.Client(timeout=30)
        self._options = options
        self._up = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="site")

    def start(self) -> None:
        """Return when the worker has answered its warm-up. Raises what went wrong."""
        self._thread.start()
        self._up.wait()
        if self._failure is not None:
            raise self._failure
        self.client.base_url = httpx.URL(self.url)

    def stop(self) -> None:
        """End the server, the worker and the ledger."""
        self.client.close()
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def run(self, work: Coroutine[object, object, T]) -> T:
        """Run a coroutine on the server's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def rows(self) -> list[dict[str, object]]:
        """The ledger's rows, oldest first."""

        def read(connection: Connection) -> list[dict[str, object]]:
            cursor = connection.execute("SELECT * FROM entries ORDER BY id")
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

        return self.run(self.db.read(read))

    def _live(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as failure:
            self._failure = failure
        finally:
            self._up.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        async with ledger_of(self.settings) as (db, ledger):
            await self._serve_over(db, ledger)

    async def _serve_over(self, db: Database, ledger: Ledger) -> None:
        self.db, self.ledger, self.keys = db, ledger, Keys(db)
        moved = asyncio.Event()
        self.fleet = Fleet(self.settings, changed=moved.set)
        models = catalogue()
        self.state = State(
            settings=self.settings,
            catalogue=models,
            fleet=self.fleet,
            inference=Inference(models, ledger, self.fleet),
            keys=self.keys,
            ledger=ledger,
            replays=Replays(db, ledger.instance_id, self.settings),
            uploads=Uploads(self.settings.uploads_dir, ledger.instance_id, self.settings.locks_dir),
            outputs=Outputs(self.settings.outputs_dir, self.settings.outputs_hours),
            db=db,
            metrics=Metrics(self.fleet.status),
            admin_token=ADMIN_TOKEN,
            draining=lambda: self.draining,
            missing=self.fleet.ready,
        )
        listener = listen("127.0.0.1", 0)
        self.url = url_of(listener)
        http = self.http = HttpServer(http_config(create_app(self.state)))
        with closing(listener):
            serving = asyncio.create_task(http.serve(sockets=[listener]))
            watching = asyncio.create_task(Readers(http, self.settings.write_timeout).watch())
            await self.fleet.start([WorkerSpec("echo", "echo", "", self._options)])
            while self.fleet.ready():
                await moved.wait()
                moved.clear()
            self._up.set()
            await self._end.wait()
            await self.fleet.stop(1)
            http.should_exit = http.force_exit = True
            watching.cancel()
            await asyncio.wait([serving, watching])


@contextmanager
def site_of(home: Path, options: EchoOptions | None = None, **settings: object) -> Iterator[Site]:
    """A running site with these settings."""
    base = Settings(home=home, config=home / "config.toml", ping_seconds=0.2)
    home.mkdir(exist_ok=True)
    site = Site(msgspec.structs.replace(base, **settings), options or EchoOptions())
    site.start()
    try:
        yield site
    finally:
        site.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A keyless site on loopback that a whole module uses."""
    with site_of(tmp_path_factory.mktemp("site") / "home") as running:
        yield running


StartSite = Callable[..., Site]


@pytest.fixture
def start_site(tmp_path: Path) -> Iterator[StartSite]:
    """Starts sites with settings of their own: `start_site(options, strict=True)`."""
    with ExitStack() as stack:

        def start(options: EchoOptions | None = None, **settings: object) -> Site:
            return stack.enter_context(site_of(tmp_path / "home", options, **settings))

        yield start


def chat_body(text: str = "hello", **fields: object) -> dict[str, object]:
    """A chat request that the echo engine answers with `text`, word by word."""
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **fields}


def connect(site: Site, *, room: int | None = None) -> socket.socket:
    """A bare connection to the site, with `room` bytes for what has not been read."""
    parts = urlsplit(site.url)
    link = socket.socket()
    link.settimeout(10)
    if room is not None:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    link.connect((str(parts.hostname), int(parts.port or 0)))
    return link


def send(site: Site, body: dict[str, object], *, room: int | None = None) -> socket.socket:
    """A connection on which a chat has been asked for, and nothing read yet."""
    link = connect(site, room=room)
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    link.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data)
    return link


def is_quiet(site: Site) -> bool:
    """No row is open, and nothing runs."""
    open_rows = [row for row in site.rows() if row["status"] == "open"]
    return not open_rows and all(worker.running == 0 for worker in site.fleet.status())


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real server over an embedding model `mean`, its twin `nested` that may be cut, a reranker `rank`, a `chat`."""
    folder = tmp_path_factory.mktemp("vectors")
    home = folder / "home"
    home.mkdir()
    shape = Shape(d=64, layers=2, heads=4, kv_heads=4, ff=128, context=256)
    write(folder / "mean.gguf", "bert", shape, pooling="mean")
    write(folder / "rank.gguf", "bert", shape, pooling="rank")
    write(folder / "chat.gguf")
    (home / "config.toml").touch()
    (home / "models.toml").write_text(
        f'[models.nested]\nkind = "embedding"\nfile = "{folder / "mean.gguf"}"\n'
        'embedding = { dimensions = 64, pooling = "mean", matryoshka = true }\n'
    )
    models = (str(folder / "mean.gguf"), "nested", str(folder / "rank.gguf"), str(folder / "chat.gguf"))
    running = await_ready(
        launch(home, folder / "serve.log", (*models, "--parallel", "2", "--ctx", "512"), {})
    )
    yield running
    running.stop()
