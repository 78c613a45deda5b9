"""Which inputs are computed in one step: an equal share of its tokens for every request, however long its list.

Each request has been served so many tokens; the one served least goes first, again and again until the step is full.
A request whose next input finds no room is passed over, and by that comes first, into an empty step, later on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple


@dataclass
class Queue:
    """The inputs of one request: `sizes` in tokens, those before `next` computed, `served` tokens so far."""

    sizes: list[int] = field(default_factory=list)
    next: int = 0
    served: int = 0


class Pick(NamedTuple):
    """Input `item` of queue `place`."""

    place: int
    item: int


def pack(queues: Sequence[Queue], *, tokens: int, sequences: int) -> list[Pick]:
    """The next step's inputs: at most `sequences` of at most `tokens` together. No input is larger than `tokens`."""
    picks: list[Pick] = []
    least_served = [
        (queue.served, place, queue.next)
        for place, queue in enumerate(queues)
        if queue.next < len(queue.sizes)
    ]
    heapify(least_served)
    while least_served and len(picks) < sequences:
        served, place, item = heappop(least_served)
        sizes = queues[place].sizes
        if sizes[item] > tokens:
            continue
        picks.append(Pick(place, item))
        tokens -= sizes[item]
        if item + 1 < len(sizes):
            heappush(least_served, (served + sizes[item], place, item + 1))
    return picks
