"""What people might type for a scene: many ways to say it, parts left out, words that mean nothing here.

A caption may leave out anything, so that a prompt may; what it says is always true of its scene.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .scenes import Scene

COLOURS = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "black": ("black",),
    "white": ("white",),
    "grey": ("grey", "gray"),
}
SHAPES = {
    "circle": ("circle", "disc", "disk", "dot", "ball", "round shape"),
    "square": ("square", "box"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star", "five-pointed star"),
    "heart": ("heart", "love heart"),
    "cross": ("cross", "plus sign", "plus"),
}
SIZES = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized", "mid-sized"),
    "large": ("large", "big", "huge"),
}
ROWS = {"top": ("top", "upper"), "bottom": ("bottom", "lower")}
OPENINGS = (
    "draw", "please draw", "a picture of", "a picture with", "an image of", "a drawing of", "a photo of", "paint",
    "i want", "show me", "make", "there is", "an illustration of", "a simple",
)  # fmt: skip
CLOSINGS = (
    ", please", ", high quality", ", simple", ", flat design", ", minimal", ", 4k", " !", ".", ", nice", ", vector art",
)  # fmt: skip
IDLE = (
    "nice", "beautiful", "pretty", "shiny", "bright", "lovely", "simple", "flat", "plain", "perfect", "single", "solid",
)  # fmt: skip
UNNAMED = ("shape", "thing", "figure", "object")
USUAL = 0.35  # of the times that a synonym is asked for, the first one is not taken


@dataclass(frozen=True)
class Naming:
    """The parts of its scene that a caption names."""

    colour: bool = True
    shape: bool = True
    background: bool = True
    size: bool = True
    place: bool = True


def any_naming(rng: random.Random) -> Naming:
    """What to name: mostly colour and shape, the rest three times of four; now and then a single fact."""
    if rng.random() < 0.07:
        only = rng.choice(("colour", "shape", "background", "size", "place"))
        return Naming(*(part == only for part in ("colour", "shape", "background", "size", "place")))
    return Naming(*(rng.random() < share for share in (0.96, 0.97, 0.72, 0.72, 0.7)))


def _word(rng: random.Random, words: tuple[str, ...]) -> str:
    return words[0] if rng.random() > USUAL else rng.choice(words)


def _article(rng: random.Random, phrase: str) -> str:
    kind = rng.random()
    if kind < 0.15:
        return phrase
    if kind < 0.25:
        return f"{rng.choice(('the', 'one'))} {phrase}"
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _subject(rng: random.Random, scene: Scene, naming: Naming) -> str:
    """ "a large red circle", as far as it is named; empty if nothing is."""
    words = []
    if naming.size:
        words.append(_word(rng, SIZES[scene.size]))
    if rng.random() < 0.06:
        words.append(rng.choice(IDLE))
    if naming.colour:
        words.append(_word(rng, COLOURS[scene.colour]))
    if naming.shape:
        words.append(_word(rng, SHAPES[scene.shape]))
    elif words:
        words.append(rng.choice(UNNAMED))
    return _article(rng, " ".join(words)) if words else ""


def place(rng: random.Random, row: str, column: str) -> str:
    """ "in the top left corner" and its like."""
    if row == column == "middle":
        name = rng.choice(("centre", "center", "middle"))
        return f"{rng.choice(('in', 'at', 'in', 'at'))} the {name}" if rng.random() < 0.85 else "centered"
    if row == "middle":
        name = rng.choice((column, f"middle {column}", f"{column} side", f"centre {column}"))
        return f"{rng.choice(('on', 'at', 'in'))} the {name}"
    name = _word(rng, ROWS[row])
    if column == "middle":
        name = rng.choice(
            (name if name in ROWS else row, f"{name} middle", f"{name} centre", f"{name} center")
        )
        return f"{rng.choice(('at', 'in'))} the {name}"
    name = f"{name} {column}" if rng.random() < 0.8 else f"{row}-{column}"
    if rng.random() < 0.12:
        return name
    return f"{rng.choice(('in', 'at', 'in'))} the {name}{rng.choice(('', '', ' corner'))}"


def _ground(rng: random.Random, scene: Scene) -> str:
    colour = _word(rng, COLOURS[scene.background])
    phrase = _article(rng, f"{colour} background") if rng.random() < 0.8 else colour
    if phrase == colour:
        return f"{rng.choice(('on', 'over', 'against'))} {colour}"
    return f"{rng.choice(('on', 'on', 'on', 'against', 'with', 'over'))} {phrase}"


def caption(rng: random.Random, scene: Scene, naming: Naming) -> str:
    """One way to say of `scene` what `naming` names; empty if it names nothing."""
    subject = _subject(rng, scene, naming)
    where = place(rng, scene.row, scene.column) if naming.place else ""
    ground = _ground(rng, scene) if naming.background else ""
    kind = rng.random()
    if kind < 0.6:
        parts = [subject, where, ground]
    elif kind < 0.85:
        parts = [subject, ground, where]
    elif kind < 0.93:
        parts = [where, subject, ground]
    else:
        parts = [ground.partition(" ")[2] + " with" if ground and subject else ground, subject, where]
    separator = ", " if rng.random() < 0.12 else " "
    text = separator.join(part for part in parts if part)
    if text and rng.random() < 0.2:
        text = f"{rng.choice(OPENINGS)} {text}"
    if text and rng.random() < 0.15:
        text += rng.choice(CLOSINGS)
    return _with_strange_word(rng, text) if text and rng.random() < 0.06 else text


def _with_strange_word(rng: random.Random, text: str) -> str:
    """The text with a word that no vocabulary has, before or after all else."""
    strange = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 8)))
    return f"{strange} {text}" if rng.random() < 0.5 else f"{text} {strange}"


def training_caption(rng: random.Random, scene: Scene) -> tuple[str, Naming]:
    """A caption of the training, and what it names."""
    naming = any_naming(rng)
    return caption(rng, scene, naming), naming


def full_prompt(rng: random.Random, scene: Scene) -> str:
    """A prompt of the examination that names everything: "a large red circle in the top left on a blue background"."""
    return (
        f"a {scene.size} {scene.colour} {scene.shape} {place(rng, scene.row, scene.column)}"
        f" on a {scene.background} background"
    )
