"""What one step computes: pure arithmetic over the sequences that hold a slot.

A step has a budget of tokens. The rules, in order:

1. Every sequence that is generating gets its one token: nobody's next token waits for somebody's prompt.
2. What is left goes to prompts (prefill). Beside generating sequences that is at most `chunk` tokens, so a 32 K prompt
   delays the others by one chunk and no more; with nobody generating the whole batch is theirs.
3. Short prompts, those that fit what is left, go first in order of arrival. Long ones share the rest evenly, and at
   least a quarter of the budget is theirs, so that a stream of short prompts cannot starve a long one.
4. A prefill stops at its next `stop`, a length at which another sequence waits to copy the prefix, or at which an
   image begins or ends: images are computed from rows, not from tokens, and never in one graph with tokens.
5. An image that the model looks at as a whole is computed in one piece. One that is larger than the room waits until
   its sequence is the oldest prompt, and then has the step's prefill for itself.
6. A guess of what comes next is checked in one piece with the token before it, and in one graph with those of the
   same length only: with streams, libllama cuts a batch into one graph per different count anyway.
7. A prompt of which each row is wanted comes in pieces of `SCORED`: its rows are read one after another while everybody
   waits, and libllama keeps memory for as many rows (a vocabulary wide each) as it was ever asked for at once.

This file knows nothing of llama.cpp, calls or time.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Outputs = Literal["none", "last", "all"]

SCORED = 32  # rows; at a 150 k vocabulary 20 MB, and some 60 ms to read them


@dataclass(frozen=True, slots=True)
class Work:
    """A sequence as the batcher sees it: `computed` of its `length` known tokens are in the cache."""

    slot: int
    computed: int
    length: int
    stop: int  # compute no further than this now; `length` when nobody waits for a prefix
    generating: bool
    every_logit: bool = False  # echo with logprobs: each prompt position's row is wanted
    image: bool = False  # what comes next is rows of an image, up to `stop`
    whole: bool = False  # all of them, or none
    lag: int = 0  # by how many positions its next token lies before its number
    guess: int = 0  # tokens guessed behind its next one


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `start` to `start + count` of a slot's sequence, and which of their rows are wanted."""

    slot: int
    start: int
    count: int
    outputs: Outputs
    image: bool = False
    lag: int = 0


def plan(works: Sequence[Work], *, batch: int, chunk: int) -> list[Piece]:
    """The pieces of one step, sorted by slot. `works` are in order of arrival; `batch` >= them and what they guess."""
    counts: dict[int, int] = {work.slot: 1 + work.guess for work in works if work.generating}
    room = batch - sum(counts.values())
    if counts:
        room = min(room, chunk)
    counts |= _share([work for work in works if not work.generating], room)
    pieces = [_piece(work, counts[work.slot]) for work in works if counts.get(work.slot)]
    return sorted(pieces, key=lambda piece: piece.slot)


def graphs(pieces: Sequence[Piece], generating: Container[int], together: int) -> list[list[Piece]]:
    """The pieces that are computed at once. Fewer than `together` next tokens get a graph each (see measure.py), and so
    does an image; guesses share one with those of their length.
    """
    apart = [[piece] for piece in pieces if piece.image]
    tokens = [piece for piece in pieces if not piece.image]
    guesses = [piece for piece in tokens if piece.count > 1 and piece.slot in generating]
    if guesses:
        tokens = [piece for piece in tokens if piece not in guesses]
        counts = sorted({piece.count for piece in guesses})
        apart += [[piece for piece in guesses if piece.count == count] for count in counts]
    alone = [piece for piece in tokens if piece.slot in generating]
    if not 1 < len(alone) < together:
        return ([tokens] if tokens else []) + apart
    prompts = [piece for piece in tokens if piece.slot not in generating]
    return [[piece] for piece in alone] + ([prompts] if prompts else []) + apart


def _piece(work: Work, count: int) -> Piece:
    outputs: Outputs = "last" if work.computed + count == work.length else "none"
    outputs = "all" if work.every_logit or work.guess else outputs
    return Piece(work.slot, work.computed, count, outputs, work.image, work.lag)


def _todo(work: Work) -> int:
    rest = min(work.length, work.stop) - work.computed
    return min(rest, SCORED) if work.every_logit else rest


def _share(prompts: Iterable[Work], room: int) -> dict[int, int]:
    """Prefill tokens per slot: short prompts first, long ones evenly over the rest (rules 3, 4 and 5).

    Few different counts on purpose: with streams, a batch is cut into one graph per different count.
    """
    prompts = list(prompts)
    todo = {work.slot: _todo(work) for work in prompts}
    whole = {work.slot for work in prompts if work.whole}
    if prompts and prompts[0].whole and todo[prompts[0].slot] > room:
        return {prompts[0].slot: todo[prompts[0].slot]}
    short = {slot: n for slot, n in todo.items() if n <= room}
    long = [slot for slot, n in todo.items() if n > room and slot not in whole]
    counts: dict[int, int] = {}
    left = room - (room // 4 if long and short else 0)
    for slot, n in short.items():
        if n > left and slot in whole:
            continue
        counts[slot] = min(n, left)
        left -= counts[slot]
        if left == 0:
            break
    left = room - sum(counts.values())
    fair = max(1, left // max(1, len(long)))
    for slot in long[: left // fair]:
        counts[slot] = fair
    return counts
