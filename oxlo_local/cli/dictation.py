"""What `oxlo transcribe` does: find the files, send some at once with a bar each, write their transcripts.

The server streams how far it is, and the whole transcript at the end; every format is written from that here.
"""

import glob
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from oxlo_local.cli.sheet import safe
from oxlo_local.cli.whole import write_whole
from oxlo_local.client import Address, Client
from oxlo_local.errors import Cancelled, OxloError, Unavailable
from oxlo_local.hearing import TRANSCRIPTIONS_PATH, TRANSLATIONS_PATH, Heard, Transcript, transcribe
from oxlo_local.protocol.audio import formats
from oxlo_local.protocol.audio.formats import Cue

STDIN = "-"
ENDINGS = {"text": "txt", "srt": "srt", "vtt": "vtt", "json": "json", "verbose_json": "json"}
UPLOAD_SHARE = 0.05  # of a bar


@dataclass(frozen=True)
class Asked:
    """What is wanted of every file."""

    model: str
    form: str
    language: str | None = None
    translate: bool = False
    words: bool = False
    prompt: str | None = None

    @property
    def path(self) -> str:
        """The endpoint."""
        return TRANSLATIONS_PATH if self.translate else TRANSCRIPTIONS_PATH

    def fields(self) -> Mapping[str, list[str]]:
        """The form without its file."""
        given = {"model": self.model, "language": self.language, "prompt": self.prompt}
        fields = {name: [value] for name, value in given.items() if value}
        return fields | {"timestamp_granularities[]": ["segment", *(["word"] if self.words else [])]}


# -- before the first is sent -----------------------------------------------------------------------------------------


def sources_of(names: Sequence[str]) -> list[str]:
    """The files that are meant, each once, in order. Raises BadParameter for a name or pattern that nothing matches."""
    found: dict[str, None] = {}
    for name in names:
        matches = [name] if name == STDIN or os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        files = [match for match in matches if not os.path.isdir(match)]
        if not files:
            what = "is a folder" if matches else "does not exist"
            raise typer.BadParameter(f"{name} {what}; name files, or a pattern such as '*.mp3'")
        found |= dict.fromkeys(files)
    return list(found)


def places_of(sources: Sequence[str], output: Path | None, form: str) -> dict[str, Path | None]:
    """Where each transcript goes; None = standard output. Makes the folder, if it is to be one."""
    if output is None:
        return dict.fromkeys(sources)
    if len(sources) == 1 and not output.is_dir() and not str(output).endswith(os.sep) and output.suffix:
        return {sources[0]: output}
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{output} cannot be made a folder: {error.strerror}") from None
    names = [Path("stdin" if source == STDIN else source) for source in sources]
    stems = [name.stem for name in names]
    places: dict[str, Path | None] = {}
    for source, name in zip(sources, names, strict=True):
        # a.mp3 and a.wav must not overwrite each other's a.srt
        stem = name.stem if stems.count(name.stem) == 1 else name.name
        places[source] = output / f"{stem}.{ENDINGS[form]}"
    if len(set(places.values())) < len(places):
        raise typer.BadParameter("several of the files have one name; transcribe them into several folders")
    return places


# -- file by file -----------------------------------------------------------------------------------------------------


class Told(io.FileIO):
    """A file that says how much of it has been read."""

    def __init__(self, file: str | int, tell: Callable[[float], None]) -> None:
        super().__init__(file, "rb")
        self._tell = tell
        self._size = max(1, os.fstat(self.fileno()).st_size)
        self._read = 0

    def read(self, size: int | None = -1) -> bytes:
        """As a file does."""
        data = super().read(-1 if size is None else size) or b""
        self._read += len(data)
        self._tell(min(1.0, self._read / self._size))
        return data


@contextmanager
def opened(source: str, tell: Callable[[float], None]) -> Iterator[Told]:
    """The file; standard input, whose length has to be known first, by way of a temporary one. Raises Unavailable."""
    try:
        if source != STDIN:
            with Told(source, tell) as file:
                yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.seek(0)
            with Told(os.dup(copy.fileno()), tell) as file:
                yield file
    except OSError as error:
        raise Unavailable(f"it cannot be read: {error.strerror}") from error


def transcribe_all(
    address: Address, asked: Asked, sources: Sequence[str], places: Mapping[str, Path | None], jobs: int
) -> list[str]:
    """Transcribe them, `jobs` at a time; returns what failed, a line each."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    failed: list[str] = []
    stopped = Event()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars = {source: progress.add_task(safe(source), total=1.0) for source in sources}
        futures = _side_by_side(
            sources, jobs, lambda source: _transcribe(address, asked, source, progress, bars[source], stopped)
        )
        try:
            for source in sources:  # in their order, whichever is ready first
                try:
                    _write(asked, source, futures[source].result(), places, several=len(sources) > 1)
                except OxloError as error:
                    progress.update(bars[source], description=f"{safe(source)} failed")
                    failed.append(f"{source}: {error.message}")
        finally:
            stopped.set()
    return failed


def _side_by_side(
    sources: Sequence[str], jobs: int, work: Callable[[str], Transcript]
) -> dict[str, "Future[Transcript]"]:
    """Do the work for each, `jobs` at a time, on threads for which the end of the program does not wait.

    That of an executor's does: Ctrl-C would then end a transcript of an hour in an hour.
    """
    futures: dict[str, Future[Transcript]] = {source: Future() for source in sources}
    left: SimpleQueue[str] = SimpleQueue()
    for source in sources:
        left.put(source)

    def run() -> None:
        while True:
            try:
                source = left.get_nowait()
            except Empty:
                return
            try:
                futures[source].set_result(work(source))
            except BaseException as error:
                futures[source].set_exception(error)

    for _ in range(min(jobs, len(sources))):
        Thread(target=run, daemon=True).start()
    return futures


def _transcribe(
    address: Address, asked: Asked, source: str, progress: Progress, bar: TaskID, stopped: Event
) -> Transcript:
    """Raises Cancelled at the next sign of life once it is to be `stopped`, so that the server learns of it."""

    def reach(share: float) -> None:
        if stopped.is_set():
            raise Cancelled("it was stopped")
        progress.update(bar, completed=share)

    length = 0.0

    def hear(heard: Heard) -> None:
        nonlocal length
        length = heard.of or length
        part = min(1.0, heard.seconds / length) if length else 0.0
        reach(UPLOAD_SHARE + (1 - UPLOAD_SHARE) * part)

    name = "stdin" if source == STDIN else Path(source).name
    with Client(address) as client, opened(source, lambda sent: reach(UPLOAD_SHARE * sent)) as file:
        transcript = transcribe(client, asked.path, file, name, asked.fields(), hear)
    progress.update(bar, completed=1.0)
    return transcript


def _write(
    asked: Asked, source: str, transcript: Transcript, places: Mapping[str, Path | None], *, several: bool
) -> None:
    document = rendered(transcript, asked.form, words=asked.words)
    place = places[source]
    if place is None:
        sys.stdout.write(f"==> {source} <==\n{document}" if several else document)
        sys.stdout.flush()
        return
    try:
        write_whole(place, document.encode())
    except OSError as error:
        raise Unavailable(f"its transcript cannot be written to {place}: {error.strerror}") from error


def rendered(transcript: Transcript, form: str, *, words: bool) -> str:
    """The transcript as a document."""
    if form == "json":
        return msgspec.json.encode({"text": transcript.text, "language": transcript.language}).decode() + "\n"
    if form == "verbose_json":
        return msgspec.json.format(msgspec.json.encode(transcript), indent=2).decode() + "\n"
    if form == "text":
        return transcript.text + "\n"
    cues = [Cue(each.start, each.end, each.text) for each in transcript.segments]
    if words:
        cues = [Cue(each.start, each.end, each.word) for each in transcript.words or ()]
    return formats.srt(cues) if form == "srt" else formats.vtt(cues)
