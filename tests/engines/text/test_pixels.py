"""What clients call an image, and what becomes of it."""

import io
import struct
import time
import zlib
from typing import Any

import pytest
from PIL import Image

from oxlo_local.engines.text.pixels import EDGE, LOW_EDGE, PIXELS, unpack
from oxlo_local.errors import BadRequest, UnsupportedValue


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


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_four_formats_are_read(form: str) -> None:
    seen = unpack(file_of(RED, form), f"image/{form.lower()}", low=False, param="p")
    assert (seen.width, seen.height, len(seen.rgb)) == (40, 30, 40 * 30 * 3)
    assert seen.rgb[0] > 250 and seen.rgb[1] < 5 and seen.rgb[2] < 5


@pytest.mark.parametrize(
    ("data", "said", "why"),
    [
        (b"", "image/png", "no PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", "no PNG"),
        (b"\x89PNG\r\n\x1a\n", "image/png", "no PNG"),
        (file_of(NOISE, "PNG")[:-900], "image/png", "cannot be unpacked"),
        (file_of(NOISE, "JPEG")[:-900], "image/jpeg", "cannot be unpacked"),
        (file_of(NOISE, "WEBP")[:200], "image/webp", "cannot be unpacked"),
        (file_of(RED, "PNG"), "image/jpeg", "said to be image/jpeg and is PNG"),
        (file_of(RED, "BMP"), "image/png", "no PNG"),
        (file_of(RED, "TIFF"), "image/png", "no PNG"),
        (png_bomb(8000, 8000, 8000), "image/png", "8000 x 8000"),
        (png_bomb(60_000, 60_000, 100), "image/png", "more than the 50,000,000 pixels"),
        (png_bomb(2**31 - 1, 2**31 - 1, 0), "image/png", "more than the 50,000,000 pixels"),
        (file_of(Image.new("RGB", (4000, 2)), "PNG"), "image/png", "4000 x 2"),
        (file_of(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "image/gif", "animated"),
        (file_of(RED, "WEBP", save_all=True, append_images=[NOISE.resize((40, 30))]), "image/webp", "animated"),
        (file_of(RED, "PNG", save_all=True, append_images=[NOISE.resize((40, 30))]), "image/png", "animated"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_within_a_second(data: bytes, said: str, why: str) -> None:
    begun = time.thread_time()
    with pytest.raises(BadRequest, match=why) as caught:
        unpack(data, said, low=False, param="messages[0].content[1].image_url.url")
    assert time.thread_time() - begun < 1.0
    assert caught.value.param == "messages[0].content[1].image_url.url"
    assert 400 <= caught.value.status < 500


def test_the_largest_allowed_is_unpacked_within_a_second() -> None:
    side = int(PIXELS**0.5)
    begun = time.thread_time()
    seen = unpack(png_bomb(side, side, side), "image/png", low=False, param="p")
    assert time.thread_time() - begun < 1.5
    assert max(seen.width, seen.height) == EDGE


def test_large_ones_are_made_smaller_and_low_detail_smaller_still() -> None:
    wide = file_of(Image.new("RGB", (5000, 2500), "blue"), "JPEG")
    assert unpack(wide, "image/jpeg", low=False, param="p").width == EDGE
    low = unpack(wide, "image/jpeg", low=True, param="p")
    assert (low.width, low.height) == (LOW_EDGE, LOW_EDGE // 2)


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    seen = unpack(file_of(RED, "JPEG", exif=exif), "image/jpeg", low=False, param="p")
    assert (seen.width, seen.height) == (30, 40)


def test_what_is_transparent_lies_on_white() -> None:
    clear = unpack(file_of(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG"), "image/png", low=False, param="p")
    assert set(clear.rgb) == {255}
    palette = Image.new("P", (4, 4), 0)
    seen = unpack(file_of(palette, "PNG", transparency=0), "image/png", low=False, param="p")
    assert set(seen.rgb) == {255}


def test_sixteen_bits_and_other_colours_keep_their_light() -> None:
    deep = Image.new("I;16", (4, 4), 0x8000)
    seen = unpack(file_of(deep, "PNG"), "image/png", low=False, param="p")
    assert all(120 <= value <= 136 for value in seen.rgb)
    press = unpack(file_of(RED.convert("CMYK"), "JPEG"), "image/jpeg", low=False, param="p")
    assert press.rgb[0] > 240 and press.rgb[1] < 15


def test_an_animation_is_unsupported_rather_than_wrong() -> None:
    moving = file_of(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])
    with pytest.raises(UnsupportedValue):
        unpack(moving, "image/gif", low=False, param="p")
