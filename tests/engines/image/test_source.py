"""What calls start from: every kind of file is the right picture, or an error that names the field."""

import time
from pathlib import Path

import pytest
from PIL import Image

from oxlo_local.engines.image.source import drawable, fitted, kept, read
from oxlo_local.errors import BadRequest, UndecodableFile
from tests.engines.image.conftest import asking
from tests.engines.image_files import FRAMES, NOISE, RED, file_of, png_bomb


def saved(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


def test_images_are_read_upright_and_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    files = [
        file_of(RED, "JPEG", exif=exif),
        file_of(clear, "PNG"),
        file_of(RED.convert("CMYK"), "JPEG"),
        file_of(RED.convert("P"), "GIF"),
        file_of(Image.new("I;16", (40, 30), 0x8000), "PNG"),
    ]
    paths = [saved(tmp_path, str(n), data) for n, data in enumerate(files)]
    turned, white, press, palette, grey = read(asking(images=paths)).images
    assert turned.size == (30, 40) and turned.mode == "RGB"
    assert set(white.tobytes()) == {255}
    for image in (press, palette):
        red, green, _ = image.getpixel((5, 5))  # type: ignore[misc]
        assert red > 240 and green < 15
    assert all(120 < value < 136 for value in grey.tobytes())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        file_of(NOISE, "PNG")[:-900],
        file_of(NOISE, "JPEG")[:-900],
        png_bomb(60_000, 60_000, 100),
        png_bomb(9_000, 9_000, 9_000),
        file_of(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
        file_of(RED, "WEBP", save_all=True, append_images=[NOISE.resize((40, 30))]),
    ],
    ids=["empty", "svg", "cut png", "cut jpeg", "bomb", "large", "gif", "webp"],
)
def test_what_is_no_picture_names_its_field_within_a_second(data: bytes, tmp_path: Path) -> None:
    good, bad = saved(tmp_path, "good", file_of(RED, "PNG")), saved(tmp_path, "bad", data)
    for call, param in (
        (asking(images=[bad]), "image"),
        (asking(images=[good, bad]), "image[1]"),
        (asking(images=[good], mask=bad), "mask"),
    ):
        begun = time.thread_time()
        with pytest.raises(UndecodableFile, match=r"^(image|image\[1\]|mask): ") as caught:
            read(call)
        assert time.thread_time() - begun < 1.0
        assert (caught.value.param, caught.value.code) == (param, "undecodable_file")


def test_a_file_that_is_gone_names_its_field(tmp_path: Path) -> None:
    with pytest.raises(UndecodableFile, match="image cannot be read"):
        read(asking(images=[str(tmp_path / "gone")]))


def test_a_mask_draws_where_it_is_transparent_or_where_it_is_white() -> None:
    clear = Image.new("RGBA", (4, 2), (9, 9, 9, 255))
    clear.putpixel((1, 0), (0, 0, 0, 0))
    assert drawable(clear).tobytes() == bytes([0, 255, 0, 0, 0, 0, 0, 0])
    grey = Image.new("L", (4, 2), 0)
    grey.putpixel((1, 0), 255)
    assert drawable(grey.convert("RGB")).tobytes() == drawable(clear).tobytes()
    assert (
        drawable(grey.convert("RGBA")).tobytes() == drawable(clear).tobytes()
    )  # it has alpha, and hides nothing
    with pytest.raises(BadRequest, match="lets nothing be drawn"):
        drawable(Image.new("RGB", (4, 2), "black"))


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    image, mask = saved(tmp_path, "i", file_of(RED, "PNG")), saved(tmp_path, "m", file_of(NOISE, "PNG"))
    with pytest.raises(BadRequest, match="64 x 64 pixels and the image 40 x 30") as caught:
        read(asking(images=[image], mask=mask))
    assert (caught.value.param, caught.value.code) == ("mask", "invalid_value")


def test_a_source_covers_what_is_drawn() -> None:
    flag = Image.new("RGB", (300, 100), "white")
    flag.paste("red", (100, 0, 200, 100))
    assert set(fitted(flag, (64, 64)).tobytes()) <= {255, *range(40)}  # its middle third
    assert fitted(flag, (64, 64)).getpixel((32, 32)) == (255, 0, 0)
    assert fitted(flag, (300, 100)) is flag


def test_what_a_mask_keeps_is_the_source_to_the_pixel() -> None:
    mask = Image.new("L", (40, 30), 0)
    mask.paste(255, (0, 0, 20, 30))
    drawn = Image.new("RGB", (40, 30), "blue")
    found = kept(drawn, RED, mask)
    assert found.crop((20, 0, 40, 30)).tobytes() == RED.crop((20, 0, 40, 30)).tobytes()
    assert found.crop((0, 0, 20, 30)).tobytes() == drawn.crop((0, 0, 20, 30)).tobytes()
