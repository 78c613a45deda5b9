"""From the bytes of an image file to pixels that a model may be shown, or a plain word why not.

What is transparent lies on white, and a large image is made smaller than `EDGE`: no encoder looks at more.
"""

from dataclasses import dataclass

from oxlo_local.engines.pictures import on_white, upright

EDGE = 2048  # pixels on the longer side that an encoder is given at most
LOW_EDGE = 512  # of an image that is asked for in low detail


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
    image = on_white(upright(data, param=param, said=said, edge=LOW_EDGE if low else EDGE))
    return Pixels(image.width, image.height, image.tobytes())
