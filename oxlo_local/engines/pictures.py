"""From the bytes of an image file to an upright picture of 8 bits a channel, or a plain word why not.

An image from a client may be anything: a text, half a file, a few kilobytes that unpack to gigabytes. The header is
read first and believed only so far as to refuse: what would have more than `PIXELS` is not unpacked. A photograph is
turned as its camera says. An animation is refused, since a model would see one frame of it.
"""

import warnings
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from oxlo_local.errors import BadRequest, OxloError, UnsupportedValue

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF"}
PIXELS = 50_000_000  # 0.3 s to unpack at the worst, 200 MB while it lasts
SLIMMEST = 100  # the longer side by the shorter one: encoders fail on what is slimmer


def upright(
    data: bytes, *, param: str | None, said: str | None = None, edge: int | None = None
) -> Image.Image:
    """The picture in an image file, RGBA where some of it may be transparent, else RGB.

    `said` is the media type that it must be of, `edge` the longest side in pixels to make it smaller to (a JPEG already
    while it is unpacked). Raises BadRequest or UnsupportedValue (param `param`) for what is no whole image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is refused or mended here
            return _upright(data, said, edge, param)
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


def on_white(picture: Image.Image) -> Image.Image:
    """What is transparent lies on white. RGB."""
    if picture.mode == "RGB":
        return picture
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    return ground.convert("RGB")


def _upright(data: bytes, said: str | None, edge: int | None, param: str | None) -> Image.Image:
    try:
        image: Image.Image = Image.open(BytesIO(data), formats=tuple(FORMATS.values()))
    except UnidentifiedImageError:
        raise BadRequest("this is no PNG, JPEG, WebP or GIF image", param=param) from None
    if said is not None and FORMATS.get(said) != image.format:
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
    if edge is not None:
        image.thumbnail((edge, edge))
    image.load()
    image = ImageOps.exif_transpose(image)
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
