"""The images that a call starts from, and its mask: read, upright, and of the size that is drawn.

A source of another shape than what is drawn is scaled to cover it and cropped at its centre, the mask with it. Where
the mask is transparent the image is drawn anew; a mask without transparency says so by white.
"""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageOps

from oxlo_local.calls import ImageCall
from oxlo_local.engines.pictures import on_white, upright
from oxlo_local.errors import BadRequest, UndecodableFile

Size = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """What a call starts from. RGB images, and the mask in shades of grey: white is drawn anew."""

    images: list[Image.Image]
    mask: Image.Image | None = None

    @property
    def size(self) -> Size:
        """Of the first image."""
        return self.images[0].size

    def covering(self, size: Size) -> "Source":
        """The same, all of it of this size."""
        images = [fitted(image, size) for image in self.images]
        return Source(images, None if self.mask is None else fitted(self.mask, size))


def read(call: ImageCall) -> Source:
    """Read the files of a call. Raises UndecodableFile or BadRequest that name the field."""
    several = len(call.images) > 1
    images = [
        on_white(_picture(path, f"image[{place}]" if several else "image"))
        for place, path in enumerate(call.images)
    ]
    if call.mask is None:
        return Source(images)
    mask = drawable(_picture(call.mask, "mask"))
    if mask.size != images[0].size:
        (width, height), (wide, high) = images[0].size, mask.size
        raise BadRequest(
            f"the mask has {wide} x {high} pixels and the image {width} x {height}: they must be of one size",
            param="mask",
        )
    return Source(images, mask)


def drawable(mask: Image.Image) -> Image.Image:
    """Where a mask lets the image be drawn anew: white. Raises BadRequest where it does so nowhere."""
    if mask.mode == "RGBA" and mask.getchannel("A").getextrema() != (255, 255):
        found = ImageChops.invert(mask.getchannel("A"))
    else:
        found = mask.convert("L")
    if found.getextrema() == (0, 0):
        raise BadRequest(
            "the mask lets nothing be drawn: make transparent, or in a mask without transparency white, what is to "
            "be drawn anew",
            param="mask",
        )
    return found


def fitted(image: Image.Image, size: Size) -> Image.Image:
    """The image scaled to cover `size` and cropped at its centre."""
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def kept(drawn: Image.Image, source: Image.Image, mask: Image.Image) -> Image.Image:
    """What was drawn where the mask is white, and the source where it is black. All of one size."""
    return Image.composite(drawn, source, mask)


def _picture(path: str, param: str) -> Image.Image:
    try:
        return upright(Path(path).read_bytes(), param=param)
    except BadRequest as error:
        raise UndecodableFile(f"{param}: {error.message}", param=param) from None
    except OSError as error:
        raise UndecodableFile(f"{param} cannot be read: {error.strerror}", param=param) from None
