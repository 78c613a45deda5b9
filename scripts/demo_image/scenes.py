"""What the model draws: one shape on a plain background, chosen by chance, held out by rule, rendered with soft edges.

A scene fixes everything that can be seen. Held out are triples of colour, shape and background, about one in eight:
no training picture has such a triple, at whatever size and place, and no caption names one.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]
Points = list[tuple[float, float]]

SIDE = 64  # pixels
FINER = 4  # the drawing is this many times larger before it is scaled down, for soft edges
MARGIN = 2.0  # pixels between a shape and the picture's edge

PALETTE = {
    "red": (215, 35, 40),
    "orange": (240, 130, 20),
    "yellow": (250, 225, 60),
    "green": (40, 160, 70),
    "blue": (40, 90, 220),
    "purple": (140, 60, 190),
    "black": (20, 20, 20),
    "white": (245, 245, 245),
}
BACKGROUNDS = {**PALETTE, "grey": (130, 130, 130)}
SHADE = 8  # a colour is off its place in the palette by at most so much in each channel
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
TILT = 3.0  # degrees at most
SIZES = {
    "small": (8.5, 9.5),
    "medium": (13.0, 14.0),
    "large": (19.5, 21.0),
}  # half of the longer side in pixels
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")
SHARES = (
    (0.05, 0.15),
    (0.45, 0.55),
    (0.85, 0.95),
)  # of the way that a shape can move, for each row and column
HELD_OUT = 0.125


@dataclass(frozen=True)
class Scene:
    """One picture: names from the tables above, `radius` and centre in pixels, `tilt` in degrees, colours as drawn."""

    colour: str
    shape: str
    background: str
    size: str
    row: str
    column: str
    radius: float
    x: float
    y: float
    tilt: float
    paint: tuple[int, int, int]
    ground: tuple[int, int, int]

    @property
    def combination(self) -> tuple[str, str, str, str, str, str]:
        """All that can be named."""
        return self.colour, self.shape, self.background, self.size, self.row, self.column


def held_out(colour: str, shape: str, background: str) -> bool:
    """Whether the triple is kept for the examination."""
    digest = hashlib.sha256(f"{colour} {shape} on {background}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32


def triples(examined: bool) -> list[tuple[str, str, str]]:
    """Every (colour, shape, background) of the training, or of the examination."""
    return [
        (colour, shape, background)
        for colour in PALETTE
        for shape in SHAPES
        for background in BACKGROUNDS
        if colour != background and held_out(colour, shape, background) == examined
    ]


@cache
def _triples(examined: bool) -> list[tuple[str, str, str]]:
    return triples(examined)


def any_scene(rng: random.Random, examined: bool = False) -> Scene:
    """A scene of the training, or of the examination."""
    colour, shape, background = rng.choice(_triples(examined))
    size, row, column = rng.choice(list(SIZES)), rng.choice(ROWS), rng.choice(COLUMNS)
    radius = rng.uniform(*SIZES[size])
    free = SIDE - 2 * (radius + MARGIN)
    return Scene(
        colour, shape, background, size, row, column, radius,
        radius + MARGIN + free * rng.uniform(*SHARES[COLUMNS.index(column)]),
        radius + MARGIN + free * rng.uniform(*SHARES[ROWS.index(row)]),
        rng.uniform(-TILT, TILT),
        shaded(rng, PALETTE[colour]), shaded(rng, BACKGROUNDS[background]),
    )  # fmt: skip


def training_scenes(seed: int, count: int) -> list[Scene]:
    """The scenes of the training, the same for the same seed."""
    rng = random.Random(f"{seed}:scenes")
    return [any_scene(rng) for _ in range(count)]


def shaded(rng: random.Random, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """A colour near to `colour`."""
    red, green, blue = (min(255, max(0, part + rng.randint(-SHADE, SHADE))) for part in colour)
    return red, green, blue


@cache
def _outline(shape: str) -> Points:
    """The corners of a shape of any size around any centre, y downwards."""
    turns = [math.tau * step / 72 for step in range(72)]
    if shape == "circle":
        return [(math.cos(turn), math.sin(turn)) for turn in turns]
    if shape == "square":
        return [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    if shape == "triangle":
        return [(0, -1), (1, 0.8), (-1, 0.8)]
    if shape == "star":
        return [
            (math.sin(math.tau * step / 10) * reach, -math.cos(math.tau * step / 10) * reach)
            for step in range(10)
            for reach in ((1.0, 0.42)[step % 2],)
        ]
    if shape == "heart":
        return [
            (
                16 * math.sin(turn) ** 3,
                -13 * math.cos(turn) + 5 * math.cos(2 * turn) + 2 * math.cos(3 * turn) + math.cos(4 * turn),
            )
            for turn in turns
        ]
    arm = 0.36
    return [
        (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
        (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm),
    ]  # fmt: skip


def corners(shape: str, tilt: float) -> Points:
    """The shape turned by `tilt` degrees; its bounding box has its middle at 0, 0 and a longer side of 2."""
    angle = math.radians(tilt)
    turned = [
        (x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle))
        for x, y in _outline(shape)
    ]
    left, right = min(x for x, _ in turned), max(x for x, _ in turned)
    top, bottom = min(y for _, y in turned), max(y for _, y in turned)
    reach = max(right - left, bottom - top) / 2
    return [((x - (left + right) / 2) / reach, (y - (top + bottom) / 2) / reach) for x, y in turned]


def render(scene: Scene) -> Pixels:
    """The picture, SIDE x SIDE x 3."""
    large = Image.new("RGB", (SIDE * FINER, SIDE * FINER), scene.ground)
    points = [
        ((scene.x + x * scene.radius) * FINER, (scene.y + y * scene.radius) * FINER)
        for x, y in corners(scene.shape, scene.tilt)
    ]
    ImageDraw.Draw(large).polygon(points, fill=scene.paint)
    return np.asarray(large.reduce(FINER), np.uint8)
