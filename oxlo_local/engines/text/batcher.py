"""What one step computes: pure arithmetic over the sequences that hold a slot.

A step has a budget of time, counted in tokens at a prompt's beginning. A token further in costs more, since it looks at
all before it: as much again at a depth of `halfway` tokens (measure.py), twice as much again at double that. The rules,
in order:

1. Every sequence that is generating gets its one token: nobody's next one waits for somebody's prompt, but in a burst.
2. What is left goes to prompts (prefill). Beside generating sequences that is at most `chunk` tokens, so a 32 K prompt
   delays the others by one chunk and no more, and by no longer at its end than at its beginning; with nobody
   generating the whole batch is theirs. So it is in a burst: short prompts came together, and nobody has more than a
   first token yet. The second ones wait until all are read, or `BURST` tokens of them. Answers end earlier that way on
   the mean, since a step of two rows costs a CPU what one of sixteen does.
3. Short prompts, those that fit what is left, go first in order of arrival. Long ones share the rest evenly, and at
   least a quarter of the budget is theirs, so that a stream of short prompts cannot starve a long one. They come in
   whole tiles, since attention over half a tile takes as long. Far into a prompt a tile is more than its share: then
   the others pass it by in as many steps as it takes to come to one.
4. A short prompt that does not fit what is left is cut only where a good part of the room would stay empty: its
   second piece is one more graph.
5. A prefill stops at its next `stop`, a length at which another sequence waits to copy the prefix, or at which an
   image begins or ends: images are computed from rows, not from tokens, and never in one graph with tokens.
6. An image that the model looks at as a whole is computed in one piece. One that is larger than the room waits until
   its sequence is the oldest prompt, and then has the step's prefill for itself.
7. A guess of what comes next is checked in one piece with the token before it.
8. A prompt of which each row is wanted comes in pieces of `SCORED`: its rows are read one after another while everybody
   waits, and libllama keeps memory for as many rows (a vocabulary wide each) as it was ever asked for at once.

What a step computes is cut into graphs. With streams, libllama computes sequences together only as far as they have
equally many tokens: what is longer goes into further graphs, of a few rows as a rule, which a CPU takes as long for as
for sixteen. So pieces share a graph with those of their own length only. The last token of a prompt is computed with
everybody's next ones, where those are many: its logits then cost nothing that is not paid already.

This file knows nothing of llama.cpp, calls or clocks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Outputs = Literal["none", "last", "all"]

EMPTY = 5  # a part of the room, one in so many, that is rather left empty than filled with half a prompt
TILE = 64  # rows of ggml's attention kernel on a CPU; where there are fewer, each takes 2.7 times as long
ENDING = 16  # tokens of a prompt's last piece, from which on its last one may be computed apart
BURST = 2048  # tokens for which second ones wait at most; llama-server's batch, so that nobody waits longer than there
SCORED = 32  # rows; at a 150 k vocabulary 20 MB, and some 60 ms to read them


@dataclass(frozen=True, slots=True)
class Work:
    """A sequence as the batcher sees it: `computed` of its `length` known tokens are in the cache."""

    slot: int
    computed: int
    length: int
    stop: int  # compute no further than this now; `length` when nobody waits for a prefix
    generating: bool
    fresh: bool = False  # generating, and its first token is all it has
    every_logit: bool = False  # echo with logprobs: each prompt position's row is wanted
    image: bool = False  # what comes next is rows of an image, up to `stop`
    whole: bool = False  # all of them, or none
    lag: int = 0  # by how many positions its next token lies before its number
    guess: int = 0  # tokens guessed behind its next one
    passed: int = 0  # steps in a row in which others were computed and it was not


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `start` to `start + count` of a slot's sequence, and which of their rows are wanted."""

    slot: int
    start: int
    count: int
    outputs: Outputs
    image: bool = False
    lag: int = 0


def plan(works: Sequence[Work], *, batch: int, chunk: int, halfway: float = math.inf) -> list[Piece]:
    """The pieces of one step, sorted by slot. `works` are in order of arrival; `batch` >= them and what they guess.

    `halfway`: the depth in tokens at which a prompt's token costs twice what it costs at the beginning.
    """
    following = [] if _is_burst(works, batch) else [work for work in works if work.generating]
    counts: dict[int, int] = {work.slot: 1 + work.guess for work in following}
    room = batch - sum(counts.values())
    if counts:
        room = min(room, chunk)
    counts |= _share([work for work in works if not work.generating], room, halfway)
    pieces = [_piece(work, counts[work.slot]) for work in works if counts.get(work.slot)]
    return sorted(pieces, key=lambda piece: piece.slot)


def graphs(pieces: Sequence[Piece], together: int, *, mixed: bool = False) -> list[list[Piece]]:
    """The pieces that are computed at once, those of one length together; images have a graph each.

    Fewer than `together` next tokens get a graph each, too (see measure.py). `mixed`: libllama computes pieces of all
    lengths in one graph, as it does in a unified cache.
    """
    images = [[piece] for piece in pieces if piece.image]
    tokens = [piece for piece in pieces if not piece.image]
    if mixed and any(piece.count > 1 for piece in tokens):
        return [tokens, *images]
    tokens = _ends_among_next(tokens, together)
    lengths = sorted({piece.count for piece in tokens if piece.count > 1}, reverse=True)
    longer = [[piece for piece in tokens if piece.count == length] for length in lengths]
    following = [piece for piece in tokens if piece.count == 1]
    if 1 < len(following) < together:
        return [*longer, *([piece] for piece in following), *images]
    return [*longer, *([following] if following else []), *images]


def _is_burst(works: Sequence[Work], batch: int) -> bool:
    """Whether next tokens wait for prompts in this step (rule 2). Who waits counts the steps; newcomers add none."""
    prompts = [work for work in works if not work.generating]
    begun = [work for work in works if work.generating]
    todo = sum(_todo(work) for work in prompts)
    return (
        all(work.fresh and not work.guess for work in begun)
        and all(work.length <= batch and _todo(work) > 0 for work in prompts)
        and not any(work.image or work.every_logit for work in prompts)
        and todo > 0
        and max((work.passed for work in begun), default=0) * batch + min(todo, batch) <= BURST
    )


def _ends_among_next(pieces: Sequence[Piece], together: int) -> list[Piece]:
    """The same tokens, still by slot: prompts' last ones apart where there are enough to go into one graph with."""
    following = sum(piece.count == 1 for piece in pieces)
    if not following or following + sum(map(_long_end, pieces)) < together:
        return list(pieces)
    return [part for piece in pieces for part in (_parted(piece) if _long_end(piece) else (piece,))]


def _long_end(piece: Piece) -> bool:
    return piece.outputs == "last" and piece.count >= ENDING


def _parted(piece: Piece) -> tuple[Piece, Piece]:
    before = piece.count - 1
    return replace(piece, count=before, outputs="none"), replace(piece, start=piece.start + before, count=1)


def _piece(work: Work, count: int) -> Piece:
    outputs: Outputs = "last" if work.computed + count == work.length else "none"
    outputs = "all" if work.every_logit or work.guess else outputs
    return Piece(work.slot, work.computed, count, outputs, work.image, work.lag)


def _todo(work: Work) -> int:
    rest = min(work.length, work.stop) - work.computed
    return min(rest, SCORED) if work.every_logit else rest


def _share(prompts: Sequence[Work], room: int, halfway: float) -> dict[int, int]:
    """Prefill tokens per slot: short prompts first, long ones evenly over the rest (rules 3 to 6)."""
    todo = {work.slot: _todo(work) for work in prompts}
    price = {work.slot: 1 + work.computed / halfway for work in prompts}
    cost = {slot: n * price[slot] for slot, n in todo.items()}
    whole = {work.slot for work in prompts if work.whole}
    if prompts and prompts[0].whole and cost[prompts[0].slot] > room:
        return {prompts[0].slot: todo[prompts[0].slot]}
    short = [slot for slot, full in cost.items() if full <= room]
    long = [slot for slot, full in cost.items() if full > room and slot not in whole]
    tile = {slot: min(TILE, room) * price[slot] for slot in long}
    since = {work.slot: 1 + work.passed for work in prompts}
    long.sort(key=lambda slot: since[slot] / tile[slot], reverse=True)
    share = (room / 4 if short else room) / max(1, len(long))
    due = [slot for slot in long if tile[slot] <= share * since[slot]]
    counts: dict[int, int] = {}
    left = room * 0.75 if due and short else float(room)
    for slot in short:
        if cost[slot] <= left or (slot not in whole and left > room // EMPTY):
            counts[slot] = min(todo[slot], int(left / price[slot]))
            left -= counts[slot] * price[slot]
        if left < 1:
            break
    left = room - sum(count * price[slot] for slot, count in counts.items())
    if short:
        due = [slot for slot in long if slot in due or tile[slot] <= left]
    return counts | _evenly(due if short or due else long[:1], todo, price, left)


def _evenly(
    long: Sequence[int], todo: Mapping[int, int], price: Mapping[int, float], left: float
) -> dict[int, int]:
    """Equally many tokens of each, so that they share a graph; where not all can have a tile, the first ones do."""
    if not long:
        return {}
    fair = int(left / sum(price[slot] for slot in long)) // TILE * TILE or min(TILE, int(left))
    counts: dict[int, int] = {}
    for slot in long:
        counts[slot] = min(fair, todo[slot])
        left -= counts[slot] * price[slot]
        if left < fair:
            break
    return counts
