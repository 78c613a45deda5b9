"""What `oxlo image` does: decide where the files go, draw with a bar, write each image as it comes, show it."""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from oxlo_local.cli.preview import protocol_of, shown
from oxlo_local.cli.sheet import print_json, safe
from oxlo_local.cli.whole import write_whole
from oxlo_local.client import Client, Head
from oxlo_local.drawing import Format, Image, ImageBody, Step, encode, images_of
from oxlo_local.errors import Unavailable
from oxlo_local.transcript import printable

STDOUT = "-"
FORMATS: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
ENDINGS: dict[Format, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
TITLE_LENGTH = 40  # characters of the prompt that stand before the bar


@dataclass(frozen=True)
class Place:
    """Where the images go: `file` (of several, one each beside it), `folder`, or with neither standard output."""

    form: Format
    file: Path | None = None
    folder: Path | None = None
    several: bool = False

    def path_of(self, image: Image) -> Path | None:
        """The file of an image; None = standard output. One that is named after its seed replaces no other."""
        if self.file is not None:
            number = f"-{image.index + 1}" if self.several else ""
            return self.file.with_stem(f"{self.file.stem}{number}")
        if self.folder is None:
            return None
        ending = ENDINGS[image.format]
        names = (f"oxlo-{image.seed}{'' if at == 1 else f'-{at}'}.{ending}" for at in range(1, 10_000))
        return next(path for name in names if not (path := self.folder / name).exists())


@dataclass(frozen=True)
class Wish:
    """What is wanted of every image; None = as the model does it."""

    prompt: str
    count: int
    size: str | None
    seed: int | None
    steps: int | None
    guidance: float | None
    negative: str | None
    strength: float | None
    metadata: bool

    def body(self, model: str, place: Place, image: bytes | None, mask: bytes | None) -> ImageBody:
        """The request."""
        return ImageBody(
            model=model,
            prompt=self.prompt,
            n=self.count,
            size=self.size,
            seed=self.seed,
            steps=self.steps,
            guidance_scale=self.guidance,
            negative_prompt=self.negative,
            image=image,
            mask=mask,
            strength=self.strength,
            output_format=place.form,
            embed_metadata=self.metadata,
        )


def check(wish: Wish, source: Path | None, mask: Path | None, output: Path | None, *, as_json: bool) -> None:
    """Raise BadParameter for options that do not go together, and for what is no number."""
    if not wish.prompt.strip():
        raise typer.BadParameter("the prompt is empty: say what to draw")
    if source is None and (mask is not None or wish.strength is not None):
        raise typer.BadParameter("--mask and --strength need an image to start from: --from FILE")
    if as_json and str(output) == STDOUT:
        raise typer.BadParameter("--json and -o - both want standard output")
    if not all(math.isfinite(number) for number in (wish.guidance, wish.strength) if number is not None):
        raise typer.BadParameter("--guidance and --strength take numbers")


def place_of(output: Path | None, count: int, form: Format | None) -> Place:
    """What `--output` means. Makes the folder, if it is to be one. Raises BadParameter for what cannot be."""
    if output is None:
        return Place(form or "png", folder=Path())
    if str(output) == STDOUT:
        if count > 1:
            raise typer.BadParameter("standard output takes one image; name a file or a folder for several")
        if sys.stdout.isatty():
            raise typer.BadParameter("a terminal is no place for an image; send it on: -o - > image.png")
        return Place(form or "png")
    if output.is_dir() or not output.suffix:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise typer.BadParameter(f"{output} cannot be made a folder: {error.strerror}") from None
        return Place(form or "png", folder=output)
    named = FORMATS.get(output.suffix.lower())
    if named is None and form is None:
        known = ", ".join(FORMATS)
        raise typer.BadParameter(f"{output} says no format: end it in {known}, or give --format")
    if form is not None and named not in (None, form):
        raise typer.BadParameter(f"{output} is no name for {form}; leave out --format, or the ending")
    if not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.absolute().parent}")
    return Place(form or named or "png", file=output, several=count > 1)


def read(path: Path | None) -> bytes | None:
    """A file to start from. Raises BadParameter where it cannot be read."""
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}") from None


def draw(client: Client, body: ImageBody, place: Place, *, preview: bool | None, as_json: bool) -> None:
    """Draw, write, show and name each image. Raises the server's error."""
    told: list[dict[str, object]] = []
    images: list[Image] = []
    console = Console(stderr=True)
    # The bar comes first: a server that is busy, or still loads the model, says nothing for a while.
    with _bar(console, body) as (progress, bar), client.send_json(body.path, encode(body)) as stream:

        def step(found: Step) -> None:
            progress.update(
                bar,
                completed=found.index + found.step / found.of,
                description=_title(body, found),
            )

        for image in images_of(stream, step):
            path = _write(image, place)
            progress.update(bar, completed=image.index + 1)
            told.append({"path": None if path is None else str(path), "seed": image.seed, "size": image.size})
            images.append(image)
            if path is not None and not as_json:
                print(path, flush=True)
    _show(console, images, preview)  # not beside a bar, which would be painted over them
    if stream.head.warnings:
        print(f"oxlo: the server says: {printable(stream.head.warnings)}", file=sys.stderr)
    if as_json:
        print_json(_summary(body, stream.head, told))


def _summary(body: ImageBody, head: Head, told: list[dict[str, object]]) -> dict[str, object]:
    return {
        "model": body.model,
        "images": told,
        "entry": head.entry or None,
        "price_usd": head.price_usd or None,
    }


@contextmanager
def _bar(console: Console, body: ImageBody) -> Iterator[tuple[Progress, TaskID]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield progress, progress.add_task(_title(body, None), total=float(body.n))


def _title(body: ImageBody, step: Step | None) -> str:
    """`a red circle 2/4, step 7 of 20`."""
    prompt = body.prompt if len(body.prompt) <= TITLE_LENGTH else f"{body.prompt[: TITLE_LENGTH - 1]}…"
    if step is None:
        return safe(prompt)
    of = f" {step.index + 1}/{body.n}," if body.n > 1 else ","
    return f"{safe(prompt)}{of} step {step.step} of {step.of}"


def _write(image: Image, place: Place) -> Path | None:
    path = place.path_of(image)
    if path is None:
        sys.stdout.buffer.write(image.data)
        sys.stdout.buffer.flush()
        return None
    try:
        write_whole(path, image.data)
    except OSError as error:
        raise Unavailable(f"the image cannot be written to {path}: {error.strerror}") from error
    return path


def _show(console: Console, images: list[Image], preview: bool | None) -> None:
    """Show what the terminal can; `preview` None: if it is one. Where that is asked for and cannot be, say so."""
    wanted = console.is_terminal if preview is None else preview
    protocol = protocol_of(os.environ) if wanted else None
    pictures = [] if protocol is None else [shown(image.data, protocol) for image in images]
    for picture in pictures:
        console.file.write(picture or "")
    console.file.flush()
    if preview and (protocol is None or None in pictures):
        why = (
            "shows png only"
            if protocol == "kitty"
            else "shows no images; kitty, Ghostty, iTerm2 and WezTerm do"
        )
        print(f"oxlo: this terminal {why}", file=sys.stderr)
