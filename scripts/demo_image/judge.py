"""Says what is on a picture from its pixels alone: no learned eye, and no knowledge of what was asked for.

The border gives the background, the largest patch that differs from it gives paint and outline; the outline is laid
over each of the six shapes, turned a little to and fro, in the patch's own bounding box. What has no one plain patch,
or an outline unlike all six, is nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .scenes import BACKGROUNDS, COLUMNS, FINER, MARGIN, PALETTE, ROWS, SHAPES, SIDE, TILT, Pixels, corners

Plane = NDArray[np.float64]

APART = 45.0  # RGB distance from the background from which a pixel is paint
NEAR = 70.0  # RGB distance from a colour of the palette within which it has that name
LEAST = 40  # pixels of the smallest patch that counts
BESIDE = 0.15  # of the patch's area that may be painted elsewhere
PATCHY = 0.15  # of the patch's area that may be another colour
ALIKE = 0.8  # intersection over union from which an outline is a shape
SIZE_BOUNDS = (10.5, 16.75)  # half of the longer side in pixels, between small, medium, large
THIRDS = (0.3, 0.7)  # of the way a shape can move


@dataclass(frozen=True)
class Sight:
    """What is seen; `likeness` is the outline's intersection over union with the shape."""

    colour: str
    shape: str
    background: str
    size: str
    row: str
    column: str
    likeness: float


def judge(pixels: Pixels) -> Sight | None:
    """What `pixels` (SIDE x SIDE x 3) show, None if it is not one plain shape on a plain background."""
    picture = pixels.astype(np.float64)
    ground = np.median(np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]), 0)
    painted = np.linalg.norm(picture - ground, axis=2) > APART
    patch = largest_patch(painted)
    area = int(patch.sum())
    if area < LEAST or painted.sum() - area > BESIDE * area:
        return None
    paint = (
        np.median(picture[patch & _inner(patch)], 0) if _inner(patch).any() else np.median(picture[patch], 0)
    )
    cover = np.clip((picture - ground) @ (paint - ground) / max(1.0, np.sum((paint - ground) ** 2)), 0, 1)
    cover[~_wider(patch)] = 0
    solid = cover > 0.5
    if not solid.any() or _patchy(picture, paint, patch):
        return None
    colour, background = nearest(paint, PALETTE), nearest(ground, BACKGROUNDS)
    x, y, radius = _box(cover)
    shape, likeness = likest(cover, x, y, radius)
    if colour is None or background is None or likeness < ALIKE:
        return None
    free = max(1.0, SIDE - 2 * (radius + MARGIN))
    place = [int(np.searchsorted(THIRDS, (middle - radius - MARGIN) / free)) for middle in (x, y)]
    size = ("small", "medium", "large")[int(np.searchsorted(SIZE_BOUNDS, radius))]
    return Sight(colour, shape, background, size, ROWS[place[1]], COLUMNS[place[0]], likeness)


def _neighbours(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The mask and its four shifts by a pixel."""
    framed = np.pad(mask, 1)
    return [mask, framed[2:, 1:-1], framed[:-2, 1:-1], framed[1:-1, 2:], framed[1:-1, :-2]]


def _wider(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.logical_or.reduce(_neighbours(mask))


def _inner(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.logical_and.reduce(_neighbours(mask))


def _patchy(picture: Plane, paint: Plane, patch: NDArray[np.bool_]) -> bool:
    inner = _inner(patch)
    return bool(inner.any() and np.mean(np.linalg.norm(picture[inner] - paint, axis=1) > NEAR) > PATCHY)


def largest_patch(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest part of `mask` that hangs together by edges."""
    left, best = mask.copy(), np.zeros_like(mask)
    while left.sum() > best.sum():
        part = np.zeros_like(mask)
        part.flat[int(np.argmax(left))] = True
        grown = _wider(part) & left
        while grown.sum() > part.sum():
            part, grown = grown, _wider(grown) & left
        left &= ~part
        if part.sum() > best.sum():
            best = part
    return best


def nearest(colour: Plane, table: dict[str, tuple[int, int, int]]) -> str | None:
    """The name of `colour`, None if it is far from all of them."""
    name, distance = min(
        ((name, float(np.linalg.norm(colour - np.array(known)))) for name, known in table.items()),
        key=lambda one: one[1],
    )
    return name if distance <= NEAR else None


def _box(cover: Plane) -> tuple[float, float, float]:
    """Middle (x, y) and half the longer side of what is covered, to fractions of a pixel."""
    ends = []
    for axis in (0, 1):
        line = np.minimum(1, cover.max(axis))
        full = np.flatnonzero(line > 0.5)
        first, last = int(full[0]), int(full[-1])
        before = line[first - 1] if first else 0.0
        after = line[last + 1] if last + 1 < SIDE else 0.0
        ends.append((first + 1 - line[first] - before, last + line[last] + after))
    (left, right), (top, bottom) = ends
    return (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top) / 2


def likest(cover: Plane, x: float, y: float, radius: float) -> tuple[str, float]:
    """The shape whose outline is most like the covered one, and how much: intersection over union."""
    best = ("", 0.0)
    for shape in SHAPES:
        for tilt in (-TILT, 0.0, TILT):
            large = Image.new("L", (SIDE * FINER, SIDE * FINER))
            points = [((x + a * radius) * FINER, (y + b * radius) * FINER) for a, b in corners(shape, tilt)]
            ImageDraw.Draw(large).polygon(points, fill=255)
            outline = np.asarray(large.reduce(FINER), np.float64) / 255
            union = np.maximum(outline, cover).sum()
            likeness = float(np.minimum(outline, cover).sum() / union) if union else 0.0
            best = max(best, (shape, likeness), key=lambda one: one[1])
    return best
