"""Images of all calls under way are drawn in shared denoising loops: each engine step is one step of one loop.

A step, in order: let waiting calls in, and have their files read on the side; take over what was read; if no loop is
running choose the images of the next (`turns`) and begin it; compute one step of it; hand finished images to threads
that make files of them; send up what is finished, in the order of each call. A loop is joined at its beginning only;
one whose calls have all been cancelled is broken off.
"""

import os
import sys
import time
import traceback
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from PIL.Image import Image

from oxlo_local.calls import (
    Call,
    Denoised,
    Done,
    Drawn,
    Event,
    Failed,
    Gauges,
    ImageCall,
    ImageOptions,
    Load,
    ModelFacts,
    Preview,
    Started,
    Usage,
)
from oxlo_local.engines import Progress
from oxlo_local.engines.image.asking import Asked, Key, asked, check_length, sized
from oxlo_local.engines.image.diffusion import Diffusion, Row, Stepped, lack, settle_threads
from oxlo_local.engines.image.file import encoded
from oxlo_local.engines.image.loop import Loop, Paused
from oxlo_local.engines.image.source import Source, kept, read
from oxlo_local.engines.turns import Turn, share
from oxlo_local.errors import ModelDoesNotFit, OxloError, ServerError, UnsupportedValue

BATCH = {"cpu": 4, "cuda": 4}  # images
AHEAD = 4  # batches of calls that the worker is sent, so that loops can be filled
SIDE = 2  # threads that read and write files
REST = 0.05  # seconds between two looks at what was read or written
NICE = 5  # the gateway goes first
LINGER = 0.01  # of the time a loop has taken, to wait for files of it before the next step is computed
CHARACTERS = 64  # of which a token has fewer


@dataclass(frozen=True)
class Written:
    """A finished image, or what it looked like on the way (`number`), on its way to being a file."""

    index: int
    size: tuple[int, int]
    file: "Future[bytes]"
    number: int | None = None


@dataclass
class Drawing:
    """A call under way."""

    asked: Asked
    key: Key
    source: Source | None
    prompt_tokens: int
    had: int  # images begun, and as many before as nobody had less
    begun: int = 0  # its images that are in the loop or finished
    steps: int = 0  # of each
    sent: int = 0  # images that have gone up
    previewed: dict[int, int] = field(default_factory=dict)  # previews made, by image
    written: deque[Written] = field(default_factory=deque)  # in their order

    @property
    def call(self) -> ImageCall:
        """What was submitted."""
        return self.asked.call

    def usage(self) -> Usage:
        """What it has taken so far."""
        return Usage(prompt_tokens=self.prompt_tokens, images=self.sent, steps=self.steps)


@dataclass(frozen=True)
class Place:
    """An image in the loop that is running."""

    drawing: Drawing
    index: int

    def row(self) -> Row:
        """What the pipeline has to know of it."""
        drawing = self.drawing
        return Row(
            drawing.call.prompt, drawing.asked.negative, drawing.call.seed + self.index, drawing.source
        )


@dataclass
class _Totals:
    steps: int = 0
    seconds: float = 0.0
    images: int = 0
    denoising: int = 0


class ImageEngine:
    """The image engine behind the three verbs of `engines.Engine`. Raises LoadError for what it cannot load."""

    def __init__(self, load: Load, progress: Progress) -> None:
        options = load.options if isinstance(load.options, ImageOptions) else ImageOptions()
        if sys.platform == "linux" and os.getpriority(os.PRIO_PROCESS, 0) < NICE:
            os.setpriority(os.PRIO_PROCESS, 0, NICE)
        threads = settle_threads(options.threads)
        progress(0.1)
        path = Path(load.path)
        self._diffusion = Diffusion(path, options)
        self._batch = options.batch or BATCH[self._diffusion.device]
        self._room: dict[tuple[int, int], int] = {}  # images at once of a size that more were too much of
        self._loop: Loop[Stepped, list[Image]] = Loop(lambda: settle_threads(threads))
        self._places: list[Place] = []  # what the loop draws
        self._since = 0.0  # when it began
        self._reading: dict[str, Future[Drawing]] = {}
        self._drawings: dict[str, Drawing] = {}
        self._side = ThreadPoolExecutor(SIDE, thread_name_prefix="files")
        self._up: list[Event] = []
        self._totals = _Totals()
        if options.compile:
            self._compile()
        progress(1.0)
        facts = self._diffusion.facts
        on_cpu = self._diffusion.device == "cpu"
        self.facts = ModelFacts(
            architecture=self._diffusion.architecture,
            context_length=facts.prompt_tokens,
            parallel=AHEAD * self._batch,
            parameters=self._diffusion.parameters,
            file_bytes=bytes_of(path),
            chat=False,
            kind="image",
            device="cpu" if on_cpu else "gpu",
            compute_type=self._diffusion.dtype,
            image=facts,
        )
        where = f"{threads} CPU threads" if on_cpu else "the GPU"
        sys.stderr.write(f"{load.model}: {self._diffusion.dtype} on {where}, {self._batch} images a loop\n")

    def _compile(self) -> None:
        """Compile for the sizes that are listed, alone and in a full batch: no request will wait for that."""
        self._loop.begin(lambda _: self._diffusion.compile(sorted({1, self._batch})))
        self._loop.step()

    # -- the three verbs ----------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Take a call; whatever is wrong with it comes up as Failed."""
        if not isinstance(call, ImageCall):
            message = "this model draws images and nothing else"
            self._up.append(Failed(call.id, UnsupportedValue.code, message, "model"))
            return
        try:
            wanted = asked(call, self._diffusion.facts)
            tokens = self._measured(call.prompt, "prompt")
            self._measured(wanted.negative, "negative_prompt")
        except OxloError as error:
            self._up.append(Failed(call.id, error.code, error.message, error.param))
            return
        except Exception as error:  # of a tokenizer
            traceback.print_exc(file=sys.stderr)
            self._up.append(
                Failed(call.id, ServerError.code, f"the prompt could not be read: {error}", "prompt")
            )
            return
        if call.images:
            self._reading[call.id] = self._side.submit(self._read, wanted, tokens)
        else:
            self._let_in(Drawing(wanted, wanted.key(apart=False), None, tokens, 0))

    def cancel(self, id: str) -> None:
        """Drop a call between two steps."""
        if self._reading.pop(id, None) is not None:
            self._up.append(Failed(id, "cancelled", "the client left"))
        elif id in self._drawings:
            self._fail(self._drawings[id], "cancelled", "the client left")

    def busy(self) -> bool:
        """Whether an image is under way, or something to be said."""
        return bool(self._reading or self._drawings or self._up)

    def step(self) -> list[Event]:
        """Compute one denoising step of all images in the loop."""
        begun = time.monotonic()
        self._take_over()
        if not self._loop.busy:
            self._begin()
        if self._loop.busy:
            self._advance()
            self._wait(LINGER * (time.monotonic() - self._since))
            self._totals.steps += 1
            self._totals.seconds += time.monotonic() - begun
        elif not self._up:
            self._wait(REST)
        for drawing in list(self._drawings.values()):
            self._send(drawing)
        events, self._up = self._up, []
        return events

    def gauges(self) -> Gauges:
        """Counters as of the last step."""
        totals = self._totals
        return Gauges(
            running=len(self._drawings),
            waiting=len(self._reading),
            steps=totals.steps,
            step_seconds=totals.seconds,
            images=totals.images,
            denoising_steps=totals.denoising,
        )

    def close(self) -> None:
        """Free the model; calls still in the engine are forgotten."""
        self._loop.close()
        self._side.shutdown(cancel_futures=True)

    # -- before the loop ----------------------------------------------------------------------------------------------

    def _measured(self, prompt: str, param: str) -> int:
        """Tokens of a prompt; one of a megabyte is known to be too long by its beginning. Raises what says so."""
        limit = self._diffusion.facts.prompt_tokens
        for part in (prompt[: CHARACTERS * limit], prompt) if limit else (prompt,):
            tokens = self._diffusion.tokens(part)
            check_length(tokens, limit, param, whole=len(part) == len(prompt))
            if len(part) == len(prompt):
                break
        return tokens

    def _read(self, wanted: Asked, tokens: int) -> Drawing:
        """On a side thread: the call with its files read."""
        source = read(wanted.call)
        wanted = sized(wanted, self._diffusion.facts, source.size)
        looks = self._diffusion.looks and wanted.mode == "redraw"
        if not looks:
            source = source.covering((wanted.width, wanted.height))
        return Drawing(wanted, wanted.key(apart=looks), source, tokens, 0)

    def _take_over(self) -> None:
        """Let in the calls whose files have been read."""
        for id in [id for id, reading in self._reading.items() if reading.done()]:
            try:
                self._let_in(self._reading.pop(id).result())
            except OxloError as error:
                self._up.append(Failed(id, error.code, error.message, error.param))
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                message = f"the image could not be read: {type(error).__name__}"
                self._up.append(Failed(id, ServerError.code, message))

    def _let_in(self, drawing: Drawing) -> None:
        # As much as the one that has had least, so that it waits for nobody's past and nobody for its.
        drawing.had = min((other.had for other in self._drawings.values()), default=0)
        self._drawings[drawing.call.id] = drawing

    def _wait(self, seconds: float) -> None:
        """Wait for files to be written, and where no loop is running for some to be read."""
        writing = [written.file for drawing in self._drawings.values() for written in drawing.written]
        if self._loop.busy or writing:
            wait(writing, timeout=seconds)
        else:
            wait(self._reading.values(), timeout=seconds, return_when=FIRST_COMPLETED)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Choose the images of the next loop."""
        drawings = list(self._drawings.values())
        turns = [Turn([drawing.key] * (drawing.call.n - drawing.begun), drawing.had) for drawing in drawings]
        share(turns, lambda key: min(self._batch, self._room.get((key.width, key.height), self._batch)))
        self._places = []
        for drawing, turn in zip(drawings, turns, strict=True):
            for _ in turn.picked:
                if drawing.begun == 0:
                    self._up.append(Started(drawing.call.id, drawing.prompt_tokens, 0))
                self._places.append(Place(drawing, drawing.begun))
                drawing.begun += 1
                drawing.had += 1
        if self._places:
            self._since = time.monotonic()
            key, rows = self._places[0].drawing.key, [place.row() for place in self._places]
            self._loop.begin(lambda pause: self._diffusion.draw(key, rows, pause, self._due))

    def _due(self, step: int, of: int) -> list[int]:
        """On the loop's thread: the rows of which a preview is due after a step."""
        return [
            row
            for row, place in enumerate(self._places)
            if place.drawing.call.id in self._drawings and step in place.drawing.asked.dues(of)
        ]

    def _advance(self) -> None:
        try:
            came = self._loop.step()
        except Exception as error:
            self._broken(error)
            return
        if isinstance(came, Paused):
            self._stepped(came.said)
            return
        places, self._places = self._places, []
        for place, image in zip(places, came.result, strict=True):
            self._totals.images += 1
            if place.drawing.call.id in self._drawings:
                self._write(place, image, None)

    def _stepped(self, said: Stepped) -> None:
        self._totals.denoising += len(self._places)
        first: dict[str, Place] = {}
        for place in self._places:
            first.setdefault(place.drawing.call.id, place)
        for id, place in first.items():
            if id in self._drawings:
                place.drawing.steps = min(said.of, place.drawing.asked.steps)
                self._up.append(Denoised(id, place.index, said.step, said.of))
        for row, image in said.previews.items():
            place = self._places[row]
            number = place.drawing.previewed.get(place.index, 0)
            place.drawing.previewed[place.index] = number + 1
            self._write(place, image, number)

    def _broken(self, error: Exception) -> None:
        """The loop failed. Too little memory for several images may be enough for half of them."""
        places, self._places = self._places, []
        alive = [place for place in places if place.drawing.call.id in self._drawings]
        lacking = lack(error)
        if lacking is None:
            traceback.print_exception(error, file=sys.stderr)
        self._diffusion.release()
        if lacking is not None and len(places) > 1:
            key = places[0].drawing.key
            self._room[key.width, key.height] = len(places) // 2
            for place in alive:
                place.drawing.begun -= 1
                place.drawing.had -= 1
            return
        for drawing in {place.drawing.call.id: place.drawing for place in alive}.values():
            if lacking is None:
                self._fail(drawing, ServerError.code, f"the image could not be drawn: {error}")
            else:
                size = f"{drawing.asked.width}x{drawing.asked.height}"
                message = f"an image of {size} takes more memory than there is: {lacking}"
                self._fail(drawing, ModelDoesNotFit.code, message)

    # -- after the loop -----------------------------------------------------------------------------------------------

    def _write(self, place: Place, image: Image, number: int | None) -> None:
        """Have a file made of an image, on the side."""
        drawing, call = place.drawing, place.drawing.call
        labels = {**call.labels, "seed": str(call.seed + place.index)} if call.labels else {}
        source = drawing.source if drawing.asked.mode == "inpaint" else None

        def made() -> bytes:
            whole = image
            if source is not None and source.mask is not None:
                whole = kept(image, source.images[0], source.mask)
            return encoded(whole, call.format, call.quality, labels)

        drawing.written.append(Written(place.index, image.size, self._side.submit(made), number))

    def _send(self, drawing: Drawing) -> None:
        """Send up what has been written, in its order."""
        id, call = drawing.call.id, drawing.call
        while drawing.written and drawing.written[0].file.done():
            written = drawing.written.popleft()
            try:
                data = written.file.result()
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                self._fail(
                    drawing, ServerError.code, f"the image could not be written: {type(error).__name__}"
                )
                return
            if written.number is not None:
                self._up.append(Preview(id, written.index, written.number, data))
                continue
            drawing.sent += 1
            self._up.append(Drawn(id, written.index, data, *written.size, call.seed + written.index))
        if drawing.sent == call.n:
            del self._drawings[id]
            self._up.append(Done(id, drawing.usage()))

    def _fail(self, drawing: Drawing, code: str, message: str) -> None:
        """End a call; a loop that nobody waits for any more is broken off."""
        del self._drawings[drawing.call.id]
        self._up.append(Failed(drawing.call.id, code, message, usage=drawing.usage()))
        if self._places and not any(place.drawing.call.id in self._drawings for place in self._places):
            self._loop.let_go()
            self._places = []


def bytes_of(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
