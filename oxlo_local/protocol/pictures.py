"""Images in a chat request: their wire form, what can be said against one at a glance, and the mark for the engine.

Nothing is decoded or fetched here, since that takes time and memory that this process has not to spare; the worker
does it and says what is wrong with what is inside.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Protocol

from msgspec import Meta, Struct

from oxlo_local.calls import Picture
from oxlo_local.errors import BadRequest, TooLarge, UnsupportedValue

MOST = 64  # images of a request
BYTES = 20 * 1024 * 1024  # of one file
ADDRESS = 8192  # characters
TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
KEPT = 64  # characters of what a client sent that an error repeats


class ImageUrl(Struct, frozen=True):
    """A data: URI or an address. `detail` low: the image is made small; high and auto: as the model likes it."""

    url: Annotated[str, Meta(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = None


class Part(Protocol):
    """A part of a message's content."""

    @property
    def type(self) -> str: ...

    @property
    def image_url(self) -> ImageUrl | None: ...


class Turn(Protocol):
    """A message."""

    @property
    def content(self) -> "str | Sequence[Part] | None": ...


def check(part: Part, role: str, path: str) -> None:
    """Raise BadRequest or UnsupportedValue for an image part that cannot be one."""
    if role != "user":
        raise UnsupportedValue("Only a user's message has images.", param=f"{path}.type")
    if part.image_url is None:
        raise BadRequest(f"Missing required parameter: '{path}.image_url'.", param=f"{path}.image_url")
    check_url(part.image_url.url, f"{path}.image_url.url")


def check_url(url: str, param: str) -> None:
    """Raise BadRequest and its kinds for what can be no image, by its data: URI or address alone."""
    if url[:5].lower() == "data:":
        _check_inline(url, param)
    elif url.lower().startswith(("http://", "https://")):
        if len(url) > ADDRESS:
            raise BadRequest(f"The address of an image has at most {ADDRESS:,} characters.", param=param)
    else:
        raise BadRequest("An image is a data: URI, or an http or https address.", param=param)


def _check_inline(url: str, param: str) -> None:
    head, comma, _ = url[5 : 5 + KEPT].partition(",")
    said, _, coding = head.partition(";")
    if said.strip().lower() not in TYPES:
        shown = said[:KEPT].encode("ascii", "backslashreplace").decode()
        raise UnsupportedValue(f"'{shown}' is none of {', '.join(TYPES)}.", param=param)
    if not comma or coding.strip().lower() != "base64":
        raise BadRequest("The data: URI of an image reads data:image/TYPE;base64,DATA.", param=param)
    if len(url) > BYTES * 4 // 3 + KEPT:
        raise TooLarge(f"An image has at most {BYTES:,} bytes.", param=param)


def mark(id: str, message: int, place: int) -> str:
    """What stands for an image in the text of its turn; `id` is random, so no client can have written it."""
    return f"<image-{id}-{message}-{place}>"


def pictures_of(messages: Sequence[Turn], id: str) -> list[Picture]:
    """The images of a conversation. Raises BadRequest for too many. The parts are known to be right."""
    pictures = list(_pictures(messages, id))
    if len(pictures) > MOST:
        raise BadRequest(
            f"The conversation has {len(pictures)} images; at most {MOST} are allowed.", param="messages"
        )
    return pictures


def _pictures(messages: Sequence[Turn], id: str) -> Iterator[Picture]:
    for index, message in enumerate(messages):
        content = message.content
        for place, part in enumerate(content if content is not None and not isinstance(content, str) else ()):
            if part.type == "image_url" and part.image_url is not None:
                yield Picture(
                    mark(id, index, place),
                    part.image_url.url,
                    f"messages[{index}].content[{place}].image_url.url",
                    part.image_url.detail == "low",
                )
