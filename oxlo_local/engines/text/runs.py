"""Images inside a token list: runs of pseudo-tokens, where they lie, and how far a position is behind its token.

An image is one or several runs of rows (embeddings), with marker tokens of the model's own around and between them. In
a token list a row is an id below 0: `first`, `first - 1`, ... of its run. Under M-RoPE a run takes fewer positions than
rows, and all its rows are of one moment: behind it, positions lag behind token numbers, and no cache is cut inside it.

This file knows nothing of libmtmd, pixels or threads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]


@dataclass(frozen=True)
class Run:
    """Rows that follow each other. `advance` = by how many positions what follows them is further on.

    Under M-RoPE row i lies at `offsets[:, i] + slopes[:, i] * p` (shape (4, count) each), where p is the position that
    the run begins at; elsewhere the two are None, and rows lie one behind the other as tokens do.
    """

    count: int
    advance: int
    offsets: I32 | None = None
    slopes: I32 | None = None


@dataclass(frozen=True)
class Seen:
    """A run of one image: its pseudo-tokens are `first`, `first - 1`, ..."""

    first: int
    run: Run


@dataclass(frozen=True)
class Look:
    """What an image is to the text model: token lists and runs in turn. `key` tells images apart."""

    key: bytes
    parts: Sequence[list[int] | Seen]

    @property
    def runs(self) -> list[Seen]:
        """Only the runs."""
        return [part for part in self.parts if isinstance(part, Seen)]


@dataclass
class Placed:
    """A run at its place in a sequence: it begins at token `start`."""

    start: int
    seen: Seen

    @property
    def end(self) -> int:
        """The token behind it."""
        return self.start + self.seen.run.count

    def positions(self, token: int, count: int, begins: int) -> I32 | None:
        """Shape (4, count): where rows from `token` on lie, if the run begins at position `begins`; None = in a row."""
        run = self.seen.run
        if run.offsets is None or run.slopes is None:
            return None
        part = slice(token - self.start, token - self.start + count)
        found: I32 = run.offsets[:, part] + run.slopes[:, part] * begins
        return found


P = TypeVar("P", bound=Placed)


def at(placed: Sequence[P], token: int) -> P | None:
    """The run that a token lies in."""
    return next((each for each in placed if each.start <= token < each.end), None)


def whole(placed: Sequence[Placed], keep: int) -> int:
    """`keep` tokens of a sequence, or fewer: a cache is never cut inside a run."""
    cut = at(placed, keep)
    return keep if cut is None else cut.start


def boundary(placed: Sequence[Placed], token: int) -> int | None:
    """The next token at which a run begins or ends; None where plain tokens go on to the end."""
    here = at(placed, token)
    if here is not None:
        return here.end
    return next((each.start for each in placed if each.start > token), None)


def lag(placed: Sequence[Placed], token: int) -> int:
    """By how many positions a token lies before its number."""
    return sum(each.seen.run.count - each.seen.run.advance for each in placed if each.end <= token)


def next_position(placed: Sequence[Placed], length: int) -> int:
    """The position behind the last of `length` tokens, as a cache counts, which takes the largest it holds."""
    last = at(placed, length - 1)
    rows = last.positions(length - 1, 1, last.start - lag(placed, last.start)) if last is not None else None
    return length - lag(placed, length) if rows is None else int(rows[0, 0]) + 1


def splice(
    text: str,
    looks: Mapping[str, Look],
    tokenize: Callable[[str], list[int]],
    *,
    begins: Sequence[int] = (),
) -> tuple[list[int], list[tuple[str, Placed]]]:
    """A text in which marks stand for images, as tokens behind `begins`; with each run its mark."""
    tokens = list(begins)
    placed: list[tuple[str, Placed]] = []
    for plain, mark in cut_at(text, looks):
        tokens += tokenize(plain) if plain else []
        for part in looks[mark].parts if mark else ():
            if isinstance(part, Seen):
                placed.append((mark, Placed(len(tokens), part)))
                tokens += range(part.first, part.first - part.run.count, -1)
            else:
                tokens += part
    return tokens, placed


def cut_at(text: str, marks: Mapping[str, object]) -> list[tuple[str, str]]:
    """The text in pieces, each with the mark behind it; "" behind the last."""
    pieces = []
    while found := min(((place, mark) for mark in marks if (place := text.find(mark)) >= 0), default=None):
        place, mark = found
        pieces.append((text[:place], mark))
        text = text[place + len(mark) :]
    return [*pieces, (text, "")]
