"""Images of a conversation as part of its tokens, and the memory of what they look like.

To the engine an image is a run of pseudo-tokens: ids below 0 that no vocabulary has, given out once for each image
(by the hash of its bytes) and never again. So everything that compares, copies and reuses token lists works on images
as it stands: the same image in the next turn, or in another request, is a common prefix like any other. What a
pseudo-token stands for is a row, an embedding that the encoder makes of the image.

Three memories, each smaller than the one before it in what it saves:

1. the KV cache holds what was computed of the rows: nothing needs to be done;
2. `rows` holds the rows of images seen lately: the text model reads them, the encoder rests;
3. `looks` holds which pseudo-tokens an image has, for far longer, so that 1 can be found.

Three kinds of thread: `read` runs where calls are read; encoding has a thread of its own, and takes turns with the
steps (crossing.py); everything else belongs to the engine's thread.
"""

import os
import sys
import threading
from base64 import b64decode
from binascii import Error as NotBase64
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from hashlib import sha256
from urllib.parse import unquote_to_bytes

from oxlo_local.calls import Picture
from oxlo_local.engines.text.crossing import Crossing
from oxlo_local.engines.text.eye import F32, Chunks, Eye, Stopped
from oxlo_local.engines.text.llama import Llama
from oxlo_local.engines.text.pixels import unpack
from oxlo_local.engines.text.remote import Fetch, Fetched
from oxlo_local.engines.text.runs import Look, Placed, Run, Seen
from oxlo_local.engines.weights import cores
from oxlo_local.errors import BadRequest, OxloError, ServerError, UnsupportedValue

BYTES = 20 * 1024 * 1024  # of one image file
LOOKS = 2048
NICE = 10  # of an encoder that has cores of its own: whoever serves the answers comes first
ROW_BYTES = 256 * 1024 * 1024


@dataclass
class Image:
    """An image of a call. `chunks` is there while it was cut and not encoded."""

    look: Look
    file: Fetched
    picture: Picture
    chunks: Chunks | None


@dataclass
class View(Placed):
    """A run of an image in one sequence. `rows` is there from being encoded until the sequence leaves its slot."""

    image: Image
    rows: F32 | None = None


@dataclass
class _Task:
    """An encoding that somebody waits for."""

    future: "Future[dict[int, F32]]"
    callers: set[str] = field(default_factory=set)
    dropped: bool = False


class Sight:
    """What one engine sees. `remote`: images by address are fetched; `turns`: encoder and steps share their cores."""

    def __init__(self, eye: Eye, *, remote: bool, turns: bool, row_bytes: int = ROW_BYTES) -> None:
        self.crossing = Crossing(turns=turns)
        self.encoded = 0
        """Images encoded so far."""
        self._eye = eye
        self._remote = remote
        self._lock = threading.Lock()
        self._looks: OrderedDict[bytes, Look] = OrderedDict()
        self._next = -1
        self._rows: OrderedDict[int, F32] = OrderedDict()
        self._row_bytes = row_bytes
        self._tasks: dict[bytes, _Task] = {}
        step_aside = None if turns else give_way
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder", initializer=step_aside)

    # -- where calls are read -----------------------------------------------------------------------------------------

    def read(self, pictures: Iterable[Picture]) -> dict[str, Image]:
        """The images of a call, by mark. Raises BadRequest or UnsupportedValue, with the path of the image."""
        return {picture.mark: self._image(picture) for picture in pictures}

    def _image(self, picture: Picture) -> Image:
        file = self._file(picture)
        key = sha256(file.said.encode() + bytes([0, picture.low]) + file.data).digest()
        look, chunks = self._known(key), None
        if look is None:
            chunks = self._cut(file, picture)
            look = self._note(key, chunks)
        return Image(look, file, picture, chunks)

    def _file(self, picture: Picture) -> Fetched:
        if picture.url[:5].lower() == "data:":
            return inline(picture)
        if not self._remote:
            raise UnsupportedValue(
                "this server fetches no images: send it as a data: URI, or set allow_remote_media",
                param=picture.param,
            )
        return Fetch(picture.url, most=BYTES, param=picture.param).run()

    def _cut(self, file: Fetched, picture: Picture) -> Chunks:
        pixels = unpack(file.data, file.said, low=picture.low, param=picture.param)
        try:
            return self._eye.cut(pixels)
        except ValueError as error:
            raise BadRequest(str(error), param=picture.param) from None

    def _known(self, key: bytes) -> Look | None:
        with self._lock:
            look = self._looks.get(key)
            if look is not None:
                self._looks.move_to_end(key)
            return look

    def _note(self, key: bytes, chunks: Chunks) -> Look:
        with self._lock:
            parts: list[list[int] | Seen] = []
            for part in chunks.parts:
                if isinstance(part, Run):
                    parts.append(Seen(self._next, part))
                    self._next -= part.count + 1  # the gap: no run goes on in another
                else:
                    parts.append(part)
            look = self._looks.setdefault(key, Look(key, parts))  # another thread may have been faster
            while len(self._looks) > LOOKS:
                self._looks.popitem(last=False)
            return look

    # -- where steps are made -----------------------------------------------------------------------------------------

    def ready(self, id: str, images: Sequence[View], keep: int) -> bool:
        """Whether the rows of all runs from token `keep` on are there; what is not is being encoded for call `id`.

        Raises ServerError where the encoder failed.
        """
        missing = [view for view in images if view.end > keep and not self._has_rows(view)]
        for view in missing:
            self._ask(id, view.image)
        return not missing

    def _has_rows(self, view: View) -> bool:
        if view.rows is None:
            self._collect(view.image.look.key)
            view.rows = self._rows.get(view.seen.first)
            if view.rows is not None:
                self._rows.move_to_end(view.seen.first)
        return view.rows is not None

    def _collect(self, key: bytes) -> None:
        task = self._tasks.get(key)
        if task is None or not task.future.done():
            return
        del self._tasks[key]
        try:
            rows = task.future.result()
        except OxloError:
            raise
        except Exception as error:
            raise ServerError(f"the image could not be encoded: {error}") from None
        self.encoded += 1
        self._rows.update(rows)
        spare = sum(each.nbytes for each in self._rows.values()) - self._row_bytes
        for first in list(self._rows):
            if spare <= 0 or first in rows:
                break
            spare -= self._rows.pop(first).nbytes

    def _ask(self, id: str, image: Image) -> None:
        key = image.look.key
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = _Task(Future())
            self._encoder.submit(self._encode, task, image)
        task.callers.add(id)

    def cancel(self, id: str) -> None:
        """A call has ended: what is encoded for nobody else is given up."""
        for key, task in list(self._tasks.items()):
            task.callers.discard(id)
            if not task.callers:
                task.dropped = True
                del self._tasks[key]

    def wait(self, seconds: float) -> None:
        """Until an encoding is done, or the time is up."""
        wait([task.future for task in self._tasks.values()], timeout=seconds, return_when=FIRST_COMPLETED)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an encoding."""
        return bool(self._tasks)

    def close(self) -> None:
        """Give up what is being encoded, and free the encoder."""
        for task in self._tasks.values():
            task.dropped = True
        self._encoder.shutdown(cancel_futures=True)
        self._eye.close()

    # -- on the encoder's thread --------------------------------------------------------------------------------------

    def _encode(self, task: _Task, image: Image) -> None:
        rows: dict[int, F32] = {}
        try:
            if task.dropped:
                raise Stopped
            chunks = image.chunks or self._cut(image.file, image.picture)
            with self.crossing.encoding():
                for handle, seen in zip(chunks.handles, image.look.runs, strict=True):
                    rows[seen.first] = self._eye.encode(handle, seen.run, lambda: self._between(task))
            image.chunks = None
            task.future.set_result(rows)
        except Exception as error:
            task.future.set_exception(error)

    def _between(self, task: _Task) -> tuple[bool, bool]:
        often = self.crossing.between()
        return not task.dropped, often


def open_sight(llama: Llama) -> Sight | None:
    """The sight of a model that has an eye."""
    if llama.eye is None:
        return None
    remote = bool(llama.options.allow_remote_media)
    both = llama.eye.threads + (llama.options.threads or 1)
    return Sight(llama.eye, remote=remote, turns=both > cores() or llama.device != "cpu")


def give_way() -> None:
    """Let every other thread go before this one, where the system has priorities of threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def inline(picture: Picture) -> Fetched:
    """The file in a data: URI. Raises BadRequest for what is none."""
    head, comma, body = picture.url[5:].partition(",")
    said, *rest = head.split(";")
    try:
        data = b64decode(body, validate=True) if "base64" in rest else unquote_to_bytes(body)
    except (NotBase64, ValueError):
        raise BadRequest("the data: URI is not base64", param=picture.param) from None
    if not comma or not data:
        raise BadRequest("the data: URI holds nothing", param=picture.param)
    if len(data) > BYTES:
        raise BadRequest(f"the image has more than {BYTES:,} bytes", param=picture.param)
    return Fetched(data, said.strip().lower() or "text/plain")
