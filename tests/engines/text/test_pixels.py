"""How large a picture a model is shown, and on which ground."""

import time

from PIL import Image

from oxlo_local.engines.pictures import PIXELS
from oxlo_local.engines.text.pixels import EDGE, LOW_EDGE, unpack
from tests.engines.image_files import file_of, png_bomb


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


def test_what_is_transparent_lies_on_white() -> None:
    clear = unpack(file_of(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG"), "image/png", low=False, param="p")
    assert set(clear.rgb) == {255}
    palette = Image.new("P", (4, 4), 0)
    seen = unpack(file_of(palette, "PNG", transparency=0), "image/png", low=False, param="p")
    assert set(seen.rgb) == {255}
