"""Reading a form (multipart/form-data) from the wire: its files to disk as they come, its text fields to memory.

python-multipart finds the parts; what it lets pass is refused here: a form without an end, fields without number or
measure, a body that is shorter than it was announced. Pieces are parsed and written in a thread, one after another, so
that neither a slow disk nor a hostile form holds up the streams of others; the client is read no faster than that.
Files that came in JSON are laid beside them, so that the engines know files only.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Send

from oxlo_local.api.body import BIG_BODY
from oxlo_local.api.exchange import exchange_of
from oxlo_local.errors import BadRequest, Cancelled, TooLarge
from oxlo_local.protocol.parts import printable
from oxlo_local.uploads import Upload, Uploads

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a bad form is its sender's business

MAX_FIELDS: Final = 100
MAX_FIELD_BYTES: Final = 64 * 1024
_LISTED: Final = re.compile(r"\[\d*\]$")  # as `image[]` and `image[0]` end
_LAST_BYTES: Final = 2  # a line feed may come after the form, in a packet of its own
_AS_IT_IS: Final = frozenset((b"", b"7bit", b"8bit", b"binary"))


@dataclass(frozen=True)
class Takes:
    """The files of a form: how many of each name, and how large one may be. `image[]` is another `image`."""

    most: Mapping[str, int]
    bytes: int | None = None

    def stem(self, name: str) -> str | None:
        """The name that a part's file is kept under; None for one that is dropped."""
        stem = _LISTED.sub("", name)
        return stem if stem in self.most else None


@dataclass
class Form:
    """A form that has been read: text fields in their order, its files by name, the names of others, dropped ones."""

    fields: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, list[Upload]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def of(self, name: str) -> list[Upload]:
        """The files of that name."""
        return self.files.get(name, [])

    def gone_before(self, send: Send) -> Send:
        """`send`, which removes the files before the end of an answer: whoever has read it all may count on that."""

        async def removing(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                await self.remove()
            await send(message)

        return removing

    async def remove(self) -> None:
        """Nobody needs the files any more."""
        if self.files:
            await _in_thread(self._remove)

    def _remove(self) -> None:
        for file in (file for files in self.files.values() for file in files):
            file.remove()


@asynccontextmanager
async def read_form(request: Request, uploads: Uploads, limit: int, takes: Takes) -> AsyncIterator[Form]:
    """The form in a body of up to `limit` bytes.

    Leaving the context removes the files, unless that has been done. Raises BadRequest, TooLarge, Cancelled, and
    Unavailable when the disk is full.
    """
    exchange_of(request).body_left = True
    reader = _Reader(_boundary(request), takes, uploads)
    try:
        async for piece in _pieces(request, limit, next(iter(takes.most))):
            if len(piece) <= BIG_BODY:
                reader.feed(piece)
            else:
                await _in_thread(partial(reader.feed, piece))
            _check_length(request, reader)
        reader.finish()
        yield reader.form
    finally:
        await reader.form.remove()


@asynccontextmanager
async def laid_down(uploads: Uploads, files: Sequence[tuple[str, bytes]]) -> AsyncIterator[Form]:
    """A form with these files by name, which came in memory. Leaving it removes them. Raises Unavailable."""
    form = Form()

    def write() -> None:
        for name, data in files:
            file = uploads.begin()
            form.files.setdefault(name, []).append(file)
            file.write(data)
            file.finish()

    try:
        if files:
            await _in_thread(write)
        yield form
    finally:
        await form.remove()


def _boundary(request: Request) -> bytes:
    """Raises BadRequest where the header names none that can be used."""
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise BadRequest("The Content-Type multipart/form-data needs a boundary of 1 to 70 characters.")
    return boundary


async def _pieces(request: Request, limit: int, name: str) -> AsyncIterator[bytes]:
    """The body as it comes. Raises TooLarge from its declared length, or as soon as more than `limit` has come."""
    size = 0
    if _declared(request) > limit:
        raise _too_large(limit, name)
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > limit:
                raise _too_large(limit, name)
            if piece:
                yield piece
    except ClientDisconnect:
        raise Cancelled("the client left while it sent its file") from None
    exchange_of(request).body_left = False


def _declared(request: Request) -> int:
    """Its Content-Length; 0 where there is none."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else 0


def _check_length(request: Request, reader: "_Reader") -> None:
    """Raise BadRequest for a form that has ended while more is announced: nobody should wait for what never comes."""
    if reader.ended and _declared(request) - reader.size > _LAST_BYTES:
        raise BadRequest(
            f"Content-Length announces {_declared(request)} bytes, and the form has ended after {reader.size}."
        )


def _too_large(limit: int, name: str) -> TooLarge:
    return TooLarge(
        f"The form is larger than {limit} bytes, which is this server's limit (max_upload_bytes).",
        param=name,
    )


async def _in_thread(work: Callable[[], None]) -> None:
    """Do it in a thread, which is waited for also when the task is cancelled: it has the file in its hands."""
    doing = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait((doing,))
        raise


class _Reader:
    """A form from its pieces, whose borders do not matter."""

    def __init__(self, boundary: bytes, takes: Takes, uploads: Uploads) -> None:
        self.form = Form()
        self.size = 0
        self.ended = False
        self._takes = takes
        self._uploads = uploads
        self._part = _Part()
        self._parts = 0
        self._header = (bytearray(), bytearray())
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._open,
                "on_part_data": self._take,
                "on_part_end": self._close,
                "on_end": self._end,
            },
        )

    def feed(self, piece: bytes) -> None:
        """The next piece. Raises BadRequest, Unavailable."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise BadRequest(f"The body is no valid multipart/form-data: {error}.") from None
        self.size += len(piece)

    def finish(self) -> None:
        """All pieces have come. Raises BadRequest where the form is not whole."""
        if not self.ended:
            raise BadRequest(
                "The form is cut off: its last boundary is missing. Does its Content-Length say how long it is, and "
                "does its Content-Type name the boundary that it has?"
            )

    def _end(self) -> None:
        self.ended = True

    def _begin(self) -> None:
        self._part = _Part()
        self._parts += 1
        if self._parts > MAX_FIELDS:
            raise BadRequest(f"The form has more than {MAX_FIELDS} fields.")

    def _end_header(self) -> None:
        name, value = self._header
        self._part.headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _open(self) -> None:
        part = self._part
        part.read_headers()
        stem = self._takes.stem(part.name)
        if stem is None or not part.is_file:
            return
        files, most = self.form.files.setdefault(stem, []), self._takes.most[stem]
        if len(files) == most:
            few = "one file" if most == 1 else f"at most {most} files"
            raise BadRequest(f"The form has more parts called '{stem}' than it may; send {few}.", param=stem)
        part.file = self._uploads.begin()
        files.append(part.file)

    def _take(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.file is not None:
            part.file.write(data[start:end])
            if self._takes.bytes is not None and part.file.size > self._takes.bytes:
                raise TooLarge(
                    f"'{part.name[:100]}' is larger than {self._takes.bytes:,} bytes.", param=part.name[:100]
                )
        elif not part.is_file:
            part.text += data[start:end]
            if len(part.text) > MAX_FIELD_BYTES:
                raise BadRequest(
                    f"The field {printable(part.name)} is longer than {MAX_FIELD_BYTES} bytes.",
                    param=part.name[:100],
                )

    def _close(self) -> None:
        part = self._part
        if part.file is not None:
            part.file.finish()
        elif part.is_file:
            self.form.dropped.append(part.name)
        else:
            self.form.fields.append((part.name, part.decoded()))


class _Part:
    """One part of a form."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.name = ""
        self.is_file = False
        self.file: Upload | None = None  # that it is written to; None for a text, or a file that is dropped
        self.text = bytearray()

    def read_headers(self) -> None:
        """Learn name and kind. Raises BadRequest."""
        kind, options = parse_options_header(self.headers.get(b"content-disposition"))
        if kind != b"form-data" or not options.get(b"name"):
            raise BadRequest("Every part of the form needs `Content-Disposition: form-data` with a name.")
        self.name = options[b"name"].decode("utf-8", "replace")
        self.is_file = b"filename" in options
        if self.headers.get(b"content-transfer-encoding", b"").strip().lower() not in _AS_IT_IS:
            raise BadRequest(
                f"The part {printable(self.name)} has a Content-Transfer-Encoding; send its bytes as they are.",
                param=self.name[:100],
            )

    def decoded(self) -> str:
        """The text. Raises BadRequest where it is not UTF-8."""
        try:
            return self.text.decode()
        except UnicodeDecodeError as error:
            raise BadRequest(
                f"The field {printable(self.name)} is not UTF-8 (byte {error.start}).", param=self.name[:100]
            ) from None
