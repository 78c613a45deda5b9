"""Image files: good ones, and what clients call one."""

import io
import struct
import zlib
from typing import Any

from PIL import Image


def file_of(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int, height: int, rows: int) -> bytes:
    """A PNG of a few kilobytes that says it has width x height pixels, and has `rows` of them."""
    body = zlib.compress(b"\0" * ((width * 3 + 1) * rows), 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b"")


RED = Image.new("RGB", (40, 30), (255, 0, 0))
NOISE = Image.effect_noise((64, 64), 80).convert("RGB")
FRAMES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
