"""From the bytes of an image file to pixels that a model may be shown, or a plain word why not.

An image from a client may be anything: a text, half a file, a few kilobytes that unpack to gigabytes. The header is
read first and believed only so far as to refuse: what would have more than `PIXELS` is not unpacked. A photograph is
turned as its camera says, what is transparent lies on white, and a large image is made smaller than `EDGE` (no encoder
looks at more), a JPEG already while it is unpacked. An animation is refused, since the model would see one frame of it.
"""

import warnings
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from oxlo_local.errors import BadRequest, OxloError, UnsupportedValue

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF"}
PIXELS = 50_000_000  # 0.3 s to unpack at the worst, 200 MB while it lasts
EDGE = 2048  # pixels on the longer side that an encoder is given at most
LOW_EDGE = 512  # of an image that is asked for in low detail
SLIMMEST = 100  # the longer side by the shorter one: encoders fail on what is slimmer


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image as rows of RGB bytes."""

    width: int
    height: int
    rgb: bytes


def unpack(data: bytes, said: str, *, low: bool, param: str) -> Pixels:
    """The pixels of an image file that was said to be of media type `said`; `low` makes it small.

    Raises BadRequest or UnsupportedValue (param `param`) for what is no whole image of that type.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is refused or mended here
            return _pixels(data, said, EDGE if not low else LOW_EDGE, param)
    except OxloError:
        raise
    except Image.DecompressionBombError:
        raise BadRequest(
            f"the image has more than the {PIXELS:,} pixels that are allowed", param=param
        ) from None
    # A file that lies can make its reader fail in any way.
    except Exception as error:
        why = str(error) or type(error).__name__
        raise BadRequest(f"the image cannot be unpacked: {why[:200]}", param=param) from None


def _pixels(data: bytes, said: str, edge: int, param: str) -> Pixels:
    try:
        image: Image.Image = Image.open(BytesIO(data), formats=tuple(FORMATS.values()))
    except UnidentifiedImageError:
        raise BadRequest("this is no PNG, JPEG, WebP or GIF image", param=param) from None
    if FORMATS.get(said) != image.format:
        raise BadRequest(f"the image is said to be {said} and is {image.format}", param=param)
    width, height = image.size
    if width * height > PIXELS:
        raise BadRequest(
            f"the image has {width} x {height} pixels: at most {PIXELS:,} are allowed", param=param
        )
    if max(width, height) > SLIMMEST * min(width, height):
        raise BadRequest(
            f"the image has {width} x {height} pixels: a side may be {SLIMMEST} times as long as the other",
            param=param,
        )
    if getattr(image, "is_animated", False):
        raise UnsupportedValue("the image is animated: send one frame", param=param)
    if image.mode in ("1", "P"):  # colours by number cannot be mixed
        image = image.convert("RGBA")
    elif image.mode.startswith("I"):  # 16 bits of grey, of which Pillow would keep the lower 8
        image = image.convert("I").point(lambda light: light * (1 / 256)).convert("L")
    image.thumbnail((edge, edge))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.new("RGBA", seen.size, "white")
        image.alpha_composite(seen)
    image = image.convert("RGB")
    return Pixels(image.width, image.height, image.tobytes())
