"""Forms from the wire: whatever the borders of their pieces, with the file on disk, and every fault named."""

import asyncio
import hashlib
import os
import random
import re
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.types import Message

from oxlo_local.api.exchange import Exchange
from oxlo_local.api.upload import MAX_FIELD_BYTES, MAX_FIELDS, Form, Takes, laid_down, read_form
from oxlo_local.errors import BadRequest, Cancelled, OxloError, TooLarge, Unavailable
from oxlo_local.uploads import Uploads

BOUNDARY = "b0undary"
KIND = f"multipart/form-data; boundary={BOUNDARY}"
MIB = 1 << 20
TAKES = Takes({"file": 1})


def part(name: str, data: bytes, *, filename: str | None = None, more: str = "") -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n{more}\r\n'
    return head.encode() + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
MODEL = part("model", b"m")
FILE = part("file", b"RIFF....", filename="a.wav")


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "uploads", "i_me", tmp_path / "locks")


def left(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()]


def in_pieces(body: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@asynccontextmanager
async def reading(
    uploads: Uploads,
    pieces: Iterator[bytes],
    *,
    limit: int = 8 * MIB,
    kind: str = KIND,
    length: int | None = None,
    leaves: bool = False,
    takes: Takes = TAKES,
) -> AsyncIterator[tuple[Form, Exchange]]:
    """A form whose body comes in these pieces, with the exchange that it is read in."""
    exchange = Exchange("r")
    headers = [(b"content-type", kind.encode())]
    headers += [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "method": "POST", "headers": headers, "oxlo.exchange": exchange}

    async def receive() -> Message:
        piece = next(pieces, None)
        if piece is None and leaves:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async with read_form(Request(scope, receive), uploads, limit, takes) as form:
        yield form, exchange


async def refused(uploads: Uploads, body: bytes, **more: object) -> OxloError:
    with pytest.raises(OxloError) as caught:
        async with reading(uploads, in_pieces(body, 1000), **more):  # type: ignore[arg-type]
            pass
    return caught.value


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100_000])
async def test_fields_and_file_whatever_the_pieces(uploads: Uploads, tmp_path: Path, size: int) -> None:
    data = bytes(random.Random(size).randbytes(3000)) + f"\r\n--{BOUNDARY[:-1]}\r\n".encode()
    body = (
        part("a", b"1")
        + part("file", data, filename="x")
        + part("b", "ü\r\n".encode())
        + part("a", b"")
        + END
    )
    async with reading(uploads, in_pieces(body, size), length=len(body)) as (form, exchange):
        assert form.fields == [("a", "1"), ("b", "ü\r\n"), ("a", "")]
        (file,) = form.of("file")
        assert file.path.read_bytes() == data and file.size == len(data)
        assert not exchange.body_left
    assert not left(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\x\\y.wav",
        "a\x00b",
        ".",
        "",
        "x" * 3000,
        "\\..\\",
        "é%00%2e%2e%2f;.wav",
    ],
)
async def test_what_the_client_calls_its_file_decides_nothing(
    uploads: Uploads, tmp_path: Path, name: str
) -> None:
    async with reading(uploads, in_pieces(part("file", b"x", filename=name) + END, 50)) as (form, _):
        (file,) = form.of("file")
        assert file.path.parent == tmp_path / "uploads" / "i_me"
        assert re.fullmatch(r"[0-9a-f]{32}", file.path.name)
    assert os.listdir(tmp_path) == ["uploads"]


async def test_other_files_are_dropped_and_named(uploads: Uploads, tmp_path: Path) -> None:
    body = part("cover", b"x" * 100_000, filename="c.png") + FILE + END
    async with reading(uploads, in_pieces(body, 5000)) as (form, _):
        assert form.dropped == ["cover"] and len(left(tmp_path)) == 1


IMAGES = Takes({"image": 3, "mask": 1}, bytes=1000)


async def test_several_files_of_one_name_in_every_spelling(uploads: Uploads, tmp_path: Path) -> None:
    names = ("image", "image[]", "mask", "image[7]")
    body = b"".join(part(name, name.encode(), filename="x") for name in names) + END
    async with reading(uploads, in_pieces(body, 50), takes=IMAGES) as (form, _):
        assert [file.path.read_bytes() for file in form.of("image")] == [b"image", b"image[]", b"image[7]"]
        assert [file.path.read_bytes() for file in form.of("mask")] == [b"mask"] and not form.of("other")
    assert not left(tmp_path)


async def test_too_many_files_and_too_large_ones_are_named(uploads: Uploads, tmp_path: Path) -> None:
    many = await refused(uploads, part("image[]", b"x", filename="x") * 4 + END, takes=IMAGES)
    assert many.param == "image" and "at most 3 files" in many.message
    large = await refused(uploads, part("mask", b"x" * 1001, filename="x") + END, takes=IMAGES)
    assert isinstance(large, TooLarge) and large.param == "mask" and "1,000" in large.message
    assert not left(tmp_path)


async def test_files_that_came_in_memory_lie_beside_them(uploads: Uploads, tmp_path: Path) -> None:
    async with laid_down(uploads, [("image", b"a"), ("mask", b"b"), ("image", b"c")]) as form:
        assert [file.path.read_bytes() for file in (*form.of("image"), *form.of("mask"))] == [
            b"a",
            b"c",
            b"b",
        ]
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in left(tmp_path))
    assert not left(tmp_path)


async def test_a_large_file_takes_no_memory(uploads: Uploads) -> None:
    pieces, total = [bytes(64 * 1024)] * 4096, hashlib.sha256()
    for piece in pieces:
        total.update(piece)

    def body() -> Iterator[bytes]:
        yield part("file", b"", filename="big")[:-2]
        yield from pieces
        yield b"\r\n" + END

    tracemalloc.start()
    async with reading(uploads, body(), limit=1 << 30) as (form, _):
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        (kept,) = form.of("file")
        assert kept.size == 256 * MIB
        with kept.path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").digest() == total.digest()
    assert peak < 2 * MIB


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (MODEL + FILE + FILE + END, "file", "send one file"),
        (part("prompt", b"\xff\xfe") + END, "prompt", "UTF-8"),
        (part("prompt", b"x" * (MAX_FIELD_BYTES + 1)) + END, "prompt", "longer than"),
        (part("x", b"") * (MAX_FIELDS + 1) + END, None, "more than 100"),
        (
            part("file", b"eA==", filename="a", more="Content-Transfer-Encoding: base64\r\n") + END,
            "file",
            "Encoding",
        ),
        (MODEL + FILE, None, "last boundary"),
        (MODEL + FILE + END[:-4], None, "last boundary"),
        (b"", None, "last boundary"),
        (b'{"model": "m"}', None, "no valid multipart"),
        (MODEL.replace(BOUNDARY.encode(), b"another!") + END, None, "no valid multipart"),
        (MODEL.replace(b"form-data; name", b"attachment; name") + END, None, "Content-Disposition"),
        (MODEL.replace(b'; name="model"', b"") + END, None, "Content-Disposition"),
        (MODEL.replace(b'"model"', b'""') + END, None, "Content-Disposition"),
        (MODEL.replace(b'"model"', b'"' + b"m" * 5000 + b'"') + END, None, "no valid multipart"),
        (part("a", b"", more="X: y\r\n" * 20) + END, None, "no valid multipart"),
        (part("x" * 3000, b"x" * (MAX_FIELD_BYTES + 1)) + END, "x" * 100, "longer than"),
    ],
)
async def test_every_fault_is_named(
    uploads: Uploads, tmp_path: Path, body: bytes, param: str | None, words: str
) -> None:
    error = await refused(uploads, body)
    assert isinstance(error, BadRequest) and words in error.message and error.param == param
    assert len(error.message) < 400 and not left(tmp_path)


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", f"{KIND}{'x' * 80}"]
)
async def test_a_form_needs_a_boundary(uploads: Uploads, kind: str) -> None:
    assert "boundary" in (await refused(uploads, MODEL + END, kind=kind)).message


@pytest.mark.parametrize("length", [None, 9 * MIB])
async def test_a_form_over_the_limit_is_a_413(uploads: Uploads, tmp_path: Path, length: int | None) -> None:
    body = part("file", bytes(8 * MIB), filename="big") + END
    error = await refused(uploads, body, length=length)
    assert isinstance(error, TooLarge) and error.param == "file" and str(8 * MIB) in error.message
    assert not left(tmp_path)


async def test_a_form_that_ends_before_its_length_is_not_waited_for(uploads: Uploads, tmp_path: Path) -> None:
    body = MODEL + FILE + END

    def and_then_nothing() -> Iterator[bytes]:
        yield body
        raise AssertionError("it waits for what never comes")

    with pytest.raises(BadRequest, match=f"announces {len(body) + 9} bytes.*ended after {len(body)}"):
        async with reading(uploads, and_then_nothing(), length=len(body) + 9):
            pass
    assert not left(tmp_path)


async def test_a_line_feed_behind_the_form_may_come_late(uploads: Uploads) -> None:
    body = MODEL + FILE + END
    async with reading(uploads, iter([body[:-2], b"\r\n"]), length=len(body)) as (form, _):
        assert len(form.of("file")) == 1


async def test_a_client_that_leaves_leaves_nothing(uploads: Uploads, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        async with reading(uploads, iter([MODEL + FILE[:-2]]), leaves=True):
            pass
    assert not left(tmp_path)


async def test_a_refusal_in_the_middle_says_that_the_client_still_sends(uploads: Uploads) -> None:
    exchanges: list[Exchange] = []

    async def read(pieces: Iterator[bytes]) -> None:
        exchange = Exchange("r")
        exchanges.append(exchange)
        scope = {
            "type": "http",
            "headers": [(b"content-type", KIND.encode())],
            "oxlo.exchange": exchange,
        }

        async def receive() -> Message:
            piece = next(pieces, None)
            return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

        with pytest.raises(BadRequest):
            async with read_form(Request(scope, receive), uploads, MIB, TAKES):
                pass

    await read(iter([FILE + FILE, b"and more"]))
    await read(iter([FILE]))
    assert [exchange.body_left for exchange in exchanges] == [True, False]


async def test_a_reader_that_is_cancelled_while_it_writes_leaves_nothing(
    uploads: Uploads, tmp_path: Path
) -> None:
    begun = asyncio.Event()

    def endless() -> Iterator[bytes]:
        yield part("file", b"", filename="x")[:-2]
        while True:
            begun.set()
            yield bytes(64 * 1024)

    async def read() -> None:
        async with reading(uploads, endless(), limit=1 << 40):
            pass

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not left(tmp_path)


async def test_a_disk_that_takes_nothing_is_a_503(tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("no folder")
    error = await refused(Uploads(tmp_path / "uploads", "i", tmp_path), MODEL + FILE + END)
    assert isinstance(error, Unavailable) and "data folder" in error.message


async def test_hostile_boundaries_do_not_hold_up_the_loop(uploads: Uploads) -> None:
    """A part full of false boundaries is slow to read: it is read in a thread, and others go on meanwhile."""
    false = b"\r\n--" + BOUNDARY.encode() + b"x"
    gaps: list[float] = []

    async def tick() -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0)
            gaps.append(loop.time() - before)

    ticking: asyncio.Task[None] = asyncio.create_task(tick())
    body = part("file", false * 200_000, filename="x") + END
    async with reading(uploads, in_pieces(body, 256 * 1024)) as (form, _):
        assert [file.size for file in form.of("file")] == [len(false) * 200_000]
    ticking.cancel()
    assert sorted(gaps)[-10] < 0.1
