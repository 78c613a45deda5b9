"""Images asked of a server: how far they are, and each as soon as it is complete, as the server tells it."""

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from oxlo_local.client import ErrorObject, EventStream, raised
from oxlo_local.errors import ServerError

GENERATIONS_PATH = "/v1/images/generations"
EDITS_PATH = "/v1/images/edits"

Format = Literal["png", "jpeg", "webp"]


class ImageBody(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Body of a request for images; None is left out, so that the model's own default holds. Bytes go as base64."""

    model: str
    prompt: str
    n: int = 1
    size: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    image: bytes | None = None
    mask: bytes | None = None
    strength: float | None = None
    output_format: Format | None = None
    embed_metadata: bool = False

    @property
    def path(self) -> str:
        """The endpoint."""
        return GENERATIONS_PATH if self.image is None else EDITS_PATH


class _Streamed(ImageBody, frozen=True, kw_only=True):
    stream: bool
    progress: bool


class Step(Struct, frozen=True):
    """How far the images under way are: the first of them, and so many of its steps."""

    index: int
    step: int
    of: int


class Image(Struct, frozen=True):
    """A complete image: a file."""

    index: int
    data: bytes
    seed: int
    size: str
    format: Format


class _Event(Struct, frozen=True):
    """One event of the stream."""

    type: str = ""
    index: int = 0
    step: int = 0
    of: int = 0
    b64_json: bytes = b""
    seed: int = 0
    size: str = ""
    output_format: Format = "png"
    error: ErrorObject | None = None


_decode = msgspec.json.Decoder(_Event).decode


def encode(body: ImageBody) -> bytes:
    """The body on the wire: a stream that tells each step."""
    return msgspec.json.encode(_Streamed(**msgspec.structs.asdict(body), stream=True, progress=True))


def images_of(stream: EventStream, tell: Callable[[Step], None]) -> Iterator[Image]:
    """Each image as it comes; `tell` is told the steps. Raises the server's error, ServerError where it just stops."""
    for data in stream:
        if data == b"[DONE]":
            return
        try:
            event = _decode(data)
        except msgspec.DecodeError as error:
            raise ServerError(f"the server sent a stream event that is none of images: {error}") from error
        if event.error is not None:
            raise raised(event.error, 500)
        if event.type.endswith(".progress"):
            tell(Step(event.index, event.step, event.of))
        elif event.type.endswith(".completed"):
            yield Image(event.index, event.b64_json, event.seed, event.size, event.output_format)
    raise ServerError("the server ended the answer without saying why; look at its log")
