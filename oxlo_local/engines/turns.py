"""Pure: which pieces of work share the next batch. Whoever asks takes turns, so that a small job waits for one batch.

Only pieces with equal keys can be computed together. The job that has had least chooses the key with its earliest
piece; then every job in turn gives its earliest piece of that key.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass
class Turn(Generic[K]):
    """A job's pieces that could be computed now, earliest first, and how many it has had computed."""

    keys: Sequence[K]
    had: int = 0
    picked: list[int] = field(default_factory=list)  # places in `keys` that go into the batch


def share(turns: Sequence[Turn[K]], room: Callable[[K], int]) -> None:
    """Fill in what each picks: pieces of one key, at most as many in all as there is `room` for of that key."""
    order = sorted((turn for turn in turns if turn.keys), key=lambda turn: turn.had)
    if not order:
        return
    key = order[0].keys[0]
    left = room(key)
    offers = [(turn, [place for place, one in enumerate(turn.keys) if one == key]) for turn in order]
    for turn_number in range(max(len(places) for _, places in offers)):
        for turn, places in offers:
            if left and turn_number < len(places):
                turn.picked.append(places[turn_number])
                left -= 1
