"""The server that a command talks to: the one that it names, the one that runs here, or one started for it.

And the model that it asks there, where the user names none.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from oxlo_local.catalogue import Catalogue
from oxlo_local.client import Address, Client, ModelItem, locate
from oxlo_local.config import Settings
from oxlo_local.entry import Kind
from oxlo_local.errors import BadRequest, OxloError
from oxlo_local.launch import LaunchedServer
from oxlo_local.store import Store

DEMOS: dict[Kind, str] = {"speech": "oxlo-demo-speech", "image": "oxlo-demo-image"}
START_SECONDS = 900.0  # a large model may take minutes to load


@contextmanager
def connected(settings: Settings, model: str | None, *, url: str | None, key: str | None) -> Iterator[Client]:
    """A client of the server at `url`, else of the one that runs here, else of one started for the block's time.

    A named server is not asked whether it is there. Raises Unavailable, with its own words, when a started one fails.
    """
    if url is not None:
        with Client(locate(settings.serve_file, url=url, key=key)) as client:
            yield client
        return
    running = _running(settings, key)
    if running is not None:
        with Client(running) as client:
            yield client
        return
    _leave_in_order()
    # Whatever the configuration says of the real server, this one is for nobody else.
    arguments = [model or "--no-demos", "--host", "127.0.0.1", "--port", "0"]
    with LaunchedServer(arguments, settings.serve_file) as server:
        address = _awaited(server, model)
        with Client(Address(address.url, key or address.token)) as client:
            yield client


def _running(settings: Settings, key: str | None) -> Address | None:
    """The server of this OXLO_HOME, if one answers; a killed one leaves its file behind."""
    try:
        address = locate(settings.serve_file, key=key)
        with Client(address) as client:
            client.get("/healthz")
        return address
    except OxloError:
        return None


def _leave_in_order() -> None:
    """Unwind on SIGTERM and on a closed terminal, so that a server of our own is ended before we are."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))


def _awaited(server: LaunchedServer, model: str | None) -> Address:
    doing = f"starting a server for {model}" if model else "starting a server"
    with Console(stderr=True).status(doing) as spinner:
        return server.wait_ready(START_SECONDS, lambda seconds: spinner.update(f"{doing} ({seconds:.0f} s)"))


# -- the model --------------------------------------------------------------------------------------------------------


def model_here(settings: Settings, kind: Kind) -> str:
    """The model of a kind that a server is started with: a pulled one, else the demo."""
    catalogue = Catalogue.load(settings.user_models_toml, installed=Store(settings).installed())
    pulled = [model.id for model in catalogue.here() if model.kind == kind and model.id != DEMOS[kind]]
    return pulled[0] if pulled else DEMOS[kind]


def pick_model(client: Client, wanted: str | None, kind: Kind) -> ModelItem:
    """The model asked for, else one of this kind that is ready, the demo last.

    Raises ModelNotFound, which names the nearest, or BadRequest when it is of another kind or there is none.
    """
    if wanted is not None:
        item = client.model(wanted)
        if item.kind != kind:
            raise BadRequest(f"{item.id} is a model for {item.kind}, not for {kind}")
        return item
    found = [item for item in client.models() if item.kind == kind]
    if not found:
        raise BadRequest(
            f"the server has no {kind} model; `oxlo list --all` shows those that `oxlo pull` fetches"
        )
    return min(
        found, key=lambda item: (item.status != "ready", item.status != "loading", item.id in DEMOS.values())
    )
