"""What clients call an image, and what becomes of it."""

import time

import pytest
from PIL import Image

from oxlo_local.engines.pictures import on_white, upright
from oxlo_local.errors import BadRequest, UnsupportedValue
from tests.engines.image_files import FRAMES, NOISE, RED, file_of, png_bomb


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_four_formats_are_read(form: str) -> None:
    for said in (f"image/{form.lower()}", None):
        seen = upright(file_of(RED, form), said=said, param="p")
        assert (seen.size, seen.mode) == ((40, 30), "RGBA" if form == "GIF" else "RGB")
        red, green, blue = seen.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
        assert red > 250 and green < 5 and blue < 5


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
        upright(data, said=said, param="messages[0].content[1].image_url.url")
    assert time.thread_time() - begun < 1.0
    assert caught.value.param == "messages[0].content[1].image_url.url"
    assert 400 <= caught.value.status < 500


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    assert upright(file_of(RED, "JPEG", exif=exif), param="p").size == (30, 40)


def test_sixteen_bits_and_other_colours_keep_their_light() -> None:
    deep = upright(file_of(Image.new("I;16", (4, 4), 0x8000), "PNG"), param="p")
    assert all(120 <= value <= 136 for value in deep.tobytes())
    press = upright(file_of(RED.convert("CMYK"), "JPEG"), param="p").tobytes()
    assert press[0] > 240 and press[1] < 15


def test_what_is_transparent_keeps_its_alpha_until_it_is_laid_on_white() -> None:
    seen = upright(file_of(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG"), param="p")
    assert seen.mode == "RGBA" and seen.getchannel("A").getextrema() == (0, 0)
    assert set(on_white(seen).tobytes()) == {255}
    assert on_white(RED) is RED


def test_an_animation_is_unsupported_rather_than_wrong() -> None:
    moving = file_of(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])
    with pytest.raises(UnsupportedValue):
        upright(moving, param="p")
