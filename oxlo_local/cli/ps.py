"""`oxlo ps`: the workers of a running server, one line each."""

from datetime import timedelta
from typing import Annotated

import msgspec
import typer
from msgspec import Struct
from rich.table import Table

from oxlo_local.calls import Gauges, ModelFacts
from oxlo_local.config import load


class File(Struct, frozen=True):
    """A file that is being transcribed: the id of its entry, how far it is, and its length where that is known."""

    call: str
    seconds: float
    of: float | None


class Drawing(Struct, frozen=True):
    """Images that are being drawn: the id of their entry, how many are complete, the steps of the next."""

    call: str
    images: int
    step: int
    of: int


class Worker(Struct, frozen=True):
    """A worker as of its last pong; memory in bytes."""

    model: str
    state: str
    pid: int | None
    facts: ModelFacts | None
    gauges: Gauges
    rss_bytes: int
    restarts: int
    last_error: str
    loaded: float
    waiting: int
    running: int
    files: list[File] = []
    drawings: list[Drawing] = []


class _Workers(Struct, frozen=True):
    workers: list[Worker]


def ps(
    url: Annotated[str | None, typer.Option(help="Ask this server instead of the one running here.")] = None,
    key: Annotated[
        str | None, typer.Option(envvar="OXLO_API_KEY", help="An admin's API key.", show_envvar=True)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything that is known, as JSON.")] = False,
) -> None:
    """Show the running models.

    State, process, memory, requests and KV cache of each, as of its worker's last pong; how far each file is that is
    being transcribed, and each image that is being drawn.

    Example: oxlo ps --json
    """
    from oxlo_local.cli.sheet import console
    from oxlo_local.client import Client, locate
    from oxlo_local.errors import ServerError

    address = locate(load().serve_file, url=url, key=key)
    with Client(address) as client:
        answer = client.get("/admin/workers")
    try:
        workers = msgspec.json.decode(answer, type=_Workers).workers
    except msgspec.DecodeError as error:
        raise ServerError(f"{address.url} is another version of oxlo: {error}") from error
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(workers), indent=2).decode())
        return
    stdout = console()
    stdout.print(table(workers), markup=False)
    for worker in workers:
        for file in worker.files:
            stdout.print(f"{worker.model}: {progress(file)}", markup=False)
        for drawing in worker.drawings:
            stdout.print(f"{worker.model}: {drawn(drawing)}", markup=False)
        if worker.last_error:
            stdout.print(f"{worker.model}: {worker.last_error}", markup=False)


def progress(file: File) -> str:
    """How far a file is: `e_1m83sv1v3nhjss4hs33p 0:12:30 of 1:00:00 (21%)`."""
    heard = f"{file.call} {timedelta(seconds=int(file.seconds))}"
    return (
        f"{heard} of {timedelta(seconds=int(file.of))} ({file.seconds / file.of:.0%})" if file.of else heard
    )


def drawn(drawing: Drawing) -> str:
    """How far images are: `e_1m83sv1v3nhjss4hs33p image 3, step 7 of 20 (35%)`."""
    step = f"step {drawing.step} of {drawing.of} ({drawing.step / max(1, drawing.of):.0%})"
    return f"{drawing.call} image {drawing.images + 1}, {step}"


def table(workers: list[Worker]) -> Table:
    """One line a worker."""
    drawn = Table(box=None, pad_edge=False)
    for head in ("model", "state", "device"):
        drawn.add_column(head, no_wrap=True)
    for head in ("pid", "memory", "running", "waiting", "context", "KV used", "tokens out", "restarts"):
        drawn.add_column(head, justify="right", no_wrap=True)
    for worker in workers:
        facts, gauges = worker.facts, worker.gauges
        state = f"{worker.state} {worker.loaded:.0%}" if worker.state == "starting" else worker.state
        drawn.add_row(
            worker.model,
            state,
            f"{facts.device} {facts.compute_type}".strip() if facts else "-",
            str(worker.pid or "-"),
            f"{worker.rss_bytes / 1e6:,.0f} MB" if worker.rss_bytes else "-",
            f"{worker.running}/{facts.parallel}" if facts else str(worker.running),
            str(worker.waiting),
            f"{facts.context_length:,}" if facts else "-",
            f"{gauges.kv_used / gauges.kv_total:.0%}" if gauges.kv_total else "-",
            f"{gauges.generated_tokens:,}",
            str(worker.restarts),
        )
    return drawn
