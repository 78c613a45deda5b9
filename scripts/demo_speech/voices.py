"""Who speaks: espeak-ng's accents of English times its voice variants; some of both are kept for the examination.

Variants that are effects rather than voices (robots, announcers, demons) are left out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
HELD_OUT_ACCENT = "en-us-nyc"
VARIANTS = (
    "f1 f2 f4 f5 m1 m2 m4 m5 m6 m8 klatt klatt2 klatt4 klatt5 adam Alex Alicia Andy Annie antonio aunty belinda "
    "boris caleb david Denis Diogo ed edward Gene Gene2 Gustave Henrique Hugo iven iven2 iven4 Jacky john kaukovalta "
    "Lee linda marcelo Marco mario max Michel miguel mike Nguyen pablo pedro quincy RicishayMax rob "
    "sandro shelby steph steph2 Tweaky travis victor grandma zac norbert"
).split()
HELD_OUT_VARIANTS = (
    "f3",
    "m3",
    "m7",
    "klatt3",
    "Andrea",
    "anika",
    "benjamin",
    "grandpa",
    "michael",
    "paul",
    "robert",
)


@dataclass(frozen=True)
class Voice:
    """One accent and variant, and how they are set: words a minute, pitch and its range of 0-99, gap in 10 ms."""

    accent: str
    variant: str
    rate: int
    pitch: int
    pitch_range: int
    gap: int

    @property
    def name(self) -> str:
        """What espeak-ng calls it."""
        return f"{self.accent}+{self.variant}"


def settled(rng: random.Random, accent: str, variant: str) -> Voice:
    """A voice at a speed, pitch and liveliness drawn at random."""
    gap = rng.randint(1, 8) if rng.random() < 0.25 else 0
    return Voice(accent, variant, rng.randint(120, 220), rng.randint(25, 75), rng.randint(20, 80), gap)


def training_voice(rng: random.Random) -> Voice:
    """A voice that may be learnt from."""
    return settled(rng, rng.choice(ACCENTS), rng.choice(VARIANTS))


def held_out_voices() -> list[tuple[str, str]]:
    """(accent, variant) of the examination: unknown variants in the known accents by turns, then the unknown accent."""
    known = [(ACCENTS[at % len(ACCENTS)], variant) for at, variant in enumerate(HELD_OUT_VARIANTS)]
    return [*known, *((HELD_OUT_ACCENT, variant) for variant in ("f3", "m3", "michael"))]
