"""What `oxlo pull` shows: a bar a file on stderr, or its events as JSON lines on stdout."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import msgspec
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column

from oxlo_local.catalogue import LORA, SERVED_KINDS
from oxlo_local.cli.shelf import opened
from oxlo_local.config import load
from oxlo_local.fit import gigabytes
from oxlo_local.hardware import probe
from oxlo_local.hub import Hub
from oxlo_local.pull import Chosen, Event, Note, Progress, Pull

BAR_WIDTH = 10  # with all columns a line fits into 80 characters
NAME_WIDTH = 24  # of a file name before a bar; what tells builds apart is at its end
EVENT_SECONDS = 0.2  # between two progress lines of one file in --json


def pull(name: str, *, as_json: bool, quiet: bool) -> None:
    """Run a pull and show what happens. Ctrl-C keeps what has been fetched and ends with exit code 1."""
    settings = load()
    settings.make_home()
    store, catalogue = opened(settings)
    console = Console(stderr=True, highlight=False)

    @contextmanager
    def teller() -> Iterator[Callable[[Event], None]]:
        if as_json:
            yield _json_lines()
        elif quiet:
            yield lambda event: None
        else:
            with _bars(console) as tell:
                yield tell

    try:
        with teller() as tell:
            pulling = Pull(store=store, catalogue=catalogue, machine=probe(), hub=Hub(), tell=tell)
            manifest = pulling.run(name)
    except KeyboardInterrupt:
        raise typer.Exit(1) from None
    if not as_json and not quiet:
        build = f"{manifest.quant}, " if manifest.quant else ""
        known = catalogue.models.get(manifest.id)
        if known is None or known.kind in SERVED_KINDS:
            then = f"oxlo serve {manifest.id}"
        elif known.kind == LORA:
            then = "image models that name it are drawn with it"
        else:
            then = "this version of oxlo does not serve it yet"
        print(f"{manifest.id} is here ({build}{gigabytes(manifest.bytes)}): {then}")


def _json_lines() -> Callable[[Event], None]:
    """Prints each event as a line; of progress no more than a few lines a second, and the last of each file."""
    last = 0.0

    def tell(event: Event) -> None:
        nonlocal last
        if isinstance(event, Progress) and event.done < event.bytes:
            if time.monotonic() - last < EVENT_SECONDS:
                return
            last = time.monotonic()
        print(msgspec.json.encode(event).decode(), flush=True)

    return tell


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[Event], None]]:
    """A bar for each file as it is fetched and as it is checked; notes as lines above. In a log only the notes."""
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=BAR_WIDTH),
        DownloadColumn(table_column=Column(no_wrap=True)),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bars = Bars(*columns, console=console)
    with bars if console.is_terminal else nullcontext():
        tasks: dict[tuple[str, bool], TaskID] = {}

        def tell(event: Event) -> None:
            if isinstance(event, Chosen):
                files = "1 file" if event.files == 1 else f"{event.files} files"
                console.print(
                    f"{event.model}:{event.quant} from {event.repo} at {event.revision[:8]}: {files}, "
                    f"{gigabytes(event.bytes)}, of which {gigabytes(event.missing)} to fetch",
                    markup=False,
                )
            elif isinstance(event, Note):
                console.print(event.text, markup=False)
            elif isinstance(event, Progress):
                key = (event.file, event.verifying)
                if key not in tasks:
                    doing = "checking" if event.verifying else "fetching"
                    name = event.file.rpartition("/")[2]
                    short = name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}"
                    tasks[key] = bars.add_task(f"{doing} {short}", total=event.bytes)
                bars.update(tasks[key], completed=event.done)

        yield tell
