"""Images as clients send them in JSON: base64 alone or in a data: URI, by themselves, in lists or in objects. Pure."""

import binascii
import re
from typing import Final

from msgspec import Struct

from oxlo_local.errors import BadRequest, TooLarge, UndecodableFile, UnsupportedValue
from oxlo_local.protocol.parts import printable

MOST: Final = 16  # images of a request, as OpenAI has it
BYTES: Final = 50 * 1024 * 1024  # of one
_HEAD: Final = 128  # characters; longer is what stands before the data of no honest URI
_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_SPACES: Final = re.compile(r"[ \t\r\n]+")


class ImageRef(Struct, frozen=True, forbid_unknown_fields=True):
    """OpenAI's object for an image; a file id belongs to files that it keeps, and this server keeps none."""

    image_url: str | None = None
    file_id: str | None = None


Source = str | ImageRef


class Sent(Struct, frozen=True):
    """A file in a request, and the field that it stands in."""

    param: str
    data: bytes


def read_all(given: Source | list[Source] | None, name: str) -> list[Sent]:
    """The files of a field that takes one or several. Raises BadRequest and its kinds, TooLarge."""
    if given is None:
        return []
    if not isinstance(given, list):
        return [read(given, name)]
    if not given:
        raise BadRequest(f"'{name}' is an empty list; send at least one image.", param=name)
    if len(given) > MOST:
        raise BadRequest(f"'{name}' has {len(given)} images; at most {MOST} are allowed.", param=name)
    return [read(each, f"{name}[{index}]") for index, each in enumerate(given)]


def read(given: Source, param: str) -> Sent:
    """The bytes of one file. What they are is for the engine to see: a URI may lie about it."""
    if isinstance(given, ImageRef):
        if given.file_id is not None or given.image_url is None:
            raise UnsupportedValue(
                f"'{param}' must have 'image_url', a data: URI; files by id are not kept here.", param=param
            )
        param, given = f"{param}.image_url", given.image_url
    return Sent(param, _decoded(_base64_of(given, param), param))


def _base64_of(text: str, param: str) -> str:
    if text[:5].lower() == "data:":
        head, comma, data = text[5 : 5 + _HEAD].partition(",")
        kind, _, coding = head.partition(";")
        if not kind.strip().lower().startswith("image/"):
            raise UnsupportedValue(
                f"'{param}' is a data: URI of {printable(kind)}, which is no image.", param=param
            )
        if not comma or coding.rpartition(";")[2].strip().lower() != "base64":
            raise BadRequest(f"'{param}' must read data:image/TYPE;base64,DATA.", param=param)
        return text[5 + len(head) + 1 :]
    if _ADDRESS.match(text):
        raise UnsupportedValue(
            f"'{param}' is an address, and images are not fetched; send their bytes as base64.", param=param
        )
    return text


def _decoded(text: str, param: str) -> bytes:
    """Raises TooLarge from the length alone; UndecodableFile for what is no base64, or nothing."""
    if len(text) > BYTES * 4 // 3 + 4:
        raise TooLarge(f"'{param}' is larger than {BYTES:,} bytes.", param=param)
    try:
        data = binascii.a2b_base64(_SPACES.sub("", text).encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise UndecodableFile(f"'{param}' is no base64: {_why(error)}.", param=param) from None
    if not data:
        raise UndecodableFile(f"'{param}' is empty; send an image.", param=param)
    return data


def _why(error: Exception) -> str:
    return "it has other characters" if isinstance(error, UnicodeEncodeError) else str(error).lower()
