"""Everything that should not be sent to be drawn, in one table: what it is answered, how soon, and what is left.

`scripts/test -s -k bad_input` prints it.
"""

import io
import math
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.api.painting import (
    DRAW,
    EDIT,
    MASK,
    RED,
    Image,
    draw,
    form,
    images_in,
    last_row,
    left,
    mask,
    picture,
    text,
)
from tests.conftest import RunningServer
from tests.engines.image_files import png_bomb
from tests.openai_description import judge

pytestmark = pytest.mark.timeout(180)  # torch takes its time to be imported where others compute


def two_frames(kind: str) -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=100)
    return file.getvalue()


def turned() -> bytes:
    """Two colours side by side, told to be turned: upright the one is above the other."""
    image = Image.new("RGB", (64, 64), "red")
    image.paste("blue", (32, 0, 64, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    return file.getvalue()


def told(name: str, answer: httpx.Response) -> None:
    """A line of the table."""
    error = answer.json().get("error", {})
    said = f"{error.get('code', '')} {error.get('param', '')}"
    sys.stdout.write(f"{name:<44} {answer.status_code} {said:<34} {answer.elapsed.total_seconds():.3f} s\n")


# -- fields ------------------------------------------------------------------------------------------------------------

FIELDS: dict[str, tuple[dict[str, Any], int, str]] = {
    "size 0": ({"size": "0x0"}, 400, "size"),
    "size 63": ({"size": "63x63"}, 400, "size"),
    "size 4097": ({"size": "4097x4097"}, 400, "size"),
    "width 0": ({"width": 0, "height": 0}, 400, "width"),
    "width 4097": ({"width": 4097, "height": 64}, 400, "width"),
    "guidance NaN": ({"guidance_scale": math.nan}, 400, "guidance_scale"),
    "guidance infinite": ({"guidance_scale": math.inf}, 400, "guidance_scale"),
    "n 0": ({"n": 0}, 400, "n"),
    "n 1000": ({"n": 1000}, 400, "n"),
    "a prompt of 1 MB": ({"prompt": "x" * (1 << 20)}, 400, "prompt"),
    "a prompt of nothing": ({"prompt": " "}, 400, "prompt"),
    "151 steps": ({"steps": 151}, 400, "steps"),
    "seed -1": ({"seed": -1}, 400, "seed"),
    "a LoRA that it has not": ({"loras": ["ink"]}, 400, "loras"),
    "unknown model": ({"model": "paynter"}, 404, "model"),
    "transparent background": ({"background": "transparent"}, 400, "background"),
    "url in a stream": ({"stream": True, "response_format": "url"}, 400, "response_format"),
    "4 partial images": ({"stream": True, "partial_images": 4}, 400, "partial_images"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_field_is_named_within_a_second_and_leaves_no_row(painter: RunningServer, name: str) -> None:
    fields, status, param = FIELDS[name]
    before = len(painter.rows())
    answer = draw(painter, **fields)
    told(name, answer)
    judge("ErrorResponse", answer.json())
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert answer.elapsed.total_seconds() < 1 and answer.headers["x-should-retry"] == "false"
    assert len(painter.rows()) == before


# -- files -------------------------------------------------------------------------------------------------------------

BROKEN: dict[str, bytes] = {
    "words": b"These are words, and no image.",
    "a head alone": RED[:40],
    "cut off": picture("JPEG", size=(512, 512))[:-400],
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><rect/></svg>',
    "animated gif": two_frames("GIF"),
    "animated png": two_frames("PNG"),
    "animated webp": two_frames("WEBP"),
    "a bomb of 60,000 x 60,000": png_bomb(60_000, 60_000, 100),
}
WAYS: dict[str, tuple[str, Callable[[RunningServer, bytes], httpx.Response]]] = {
    "data: URI": (
        "image",
        lambda server, data: draw(server, EDIT, image=f"data:image/png;base64,{text(data)}"),
    ),
    "form": ("image", lambda server, data: form(server, [("image", ("a.png", data))])),
    "mask": ("mask", lambda server, data: draw(server, EDIT, image=text(RED), mask=text(data))),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_image_is_refused_within_a_second_and_costs_nothing(
    painter: RunningServer, name: str, way: str
) -> None:
    param, ask = WAYS[way]
    pid = painter.workers()[0]["pid"]
    answer = ask(painter, BROKEN[name])
    told(f"{name} ({way})", answer)
    judge("ErrorResponse", answer.json())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "undecodable_file", param), (
        answer.text
    )
    assert answer.elapsed.total_seconds() < 1
    assert (last_row(painter)["status"], last_row(painter)["reason"]) == ("refunded", "undecodable_file")
    assert not left(painter) and painter.workers()[0]["pid"] == pid


LIES: dict[str, tuple[str, str]] = {
    "a data: URI of text": (f"data:text/html;base64,{text(RED)}", "unsupported_value"),
    "a data: URI without base64": ("data:image/png,%89PNG", "invalid_value"),
    "a data: URI of nothing": ("data:image/png;base64,", "undecodable_file"),
    "no base64": ("data:image/png;base64,a circle!", "undecodable_file"),
    "an address": ("https://example.org/a.png", "unsupported_value"),
    "a file of the server's": ("file:///etc/passwd", "unsupported_value"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_uri_that_is_none_leaves_no_row(painter: RunningServer, name: str) -> None:
    sent, code = LIES[name]
    before = len(painter.rows())
    answer = draw(painter, EDIT, image=sent)
    told(name, answer)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "image", code), answer.text
    assert answer.elapsed.total_seconds() < 1 and len(painter.rows()) == before and not left(painter)


def test_a_mask_of_another_size_is_refused(painter: RunningServer) -> None:
    answer = draw(painter, EDIT, image=text(RED), mask=text(mask((32, 64))))
    told("a mask of another size", answer)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "mask"), answer.text
    assert answer.elapsed.total_seconds() < 1 and not left(painter)


RIGHT: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "16 bits": (picture(mode="I;16", color=65535), (255, 255, 255)),
    "CMYK": (picture("JPEG", "CMYK", color=(0, 0, 0, 0)), (255, 255, 255)),
    "palette": (picture(mode="P", color=0), (0, 0, 0)),
    "grey": (picture(mode="L", color=128), (128, 128, 128)),
    "a JPEG that says it is a PNG": (picture("JPEG", color="white"), (255, 255, 255)),
    "transparent": (picture(mode="RGBA", color=(255, 0, 0, 0)), (255, 255, 255)),
    "turned by EXIF": (turned(), (0, 0, 255)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_odd_images_are_seen_as_they_are(painter: RunningServer, name: str) -> None:
    """With a mask, what is kept shows what was read."""
    data, seen = RIGHT[name]
    sent = f"data:image/png;base64,{text(data)}"
    answer = draw(painter, EDIT, image=sent, mask=text(MASK), steps=2, strength=1)
    (image,) = images_in(answer)
    told(name, answer)
    found = image.convert("RGB").getpixel((60, 60))
    assert max(abs(a - b) for a, b in zip(found, seen, strict=True)) <= 3, found
    assert not left(painter)


def test_prompts_of_emoji_alone_are_drawn(painter: RunningServer) -> None:
    answer = draw(painter, prompt="🔴🟦", steps=1)
    told("a prompt of emoji alone", answer)
    assert len(images_in(answer)) == 1
    long = httpx.post(painter.url + DRAW, json={"model": "painter", "prompt": "🔴" * 2000}, timeout=50)
    told("a prompt of 2,000 emoji", long)
    assert (long.status_code, long.json()["error"]["param"]) == (400, "prompt")
    assert long.json()["error"]["code"] == last_row(painter)["reason"] == "context_length_exceeded"
