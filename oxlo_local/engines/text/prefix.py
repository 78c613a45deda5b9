"""Which slot a new sequence gets, and whose computed tokens it starts from: pure decisions over token lists.

A slot keeps the tokens in its KV cache after its sequence ended, so an idle slot is a cached prefix. A new sequence
looks for the longest common prefix over *all* slots, idle and running:

1. A running sequence that is still computing a prefix which the new one shares: wait for it (`Follow`) instead of
   computing the same thing twice. It is asked to pause its prefill exactly there, so that even a cache that cannot
   be cut (recurrent models) can be copied.
2. No idle slot: wait. A running sequence is never evicted from here.
3. The best source is idle and little of it would be lost: take that slot over. Otherwise copy the prefix into the idle
   slot that was used longest ago; when that is the source itself, its tail is lost.
4. `packed`: libllama computes sequences together only where their slots follow each other, so beside running sequences
   only an idle neighbour of one is taken. What was cached there moves to the idle slot used longest ago, if that one is
   older; a conversation stays where it is, gap or not, rather than cost another one its cache. A copy costs memory
   bandwidth once, a gap costs a pass over the model's weights in every step. And since libllama copies such a cache
   whole, however little of it is wanted, a few tokens (the template's first ones, as a rule) are computed instead,
   unless the slot happens to hold them itself.

At least one token of the prompt is always computed, since its logits are wanted. The number of slots is small (256 at
most), so comparing token lists beats keeping a tree: a list comparison runs at memory speed.
This file knows nothing of llama.cpp; what its caches can do comes in as `holds`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

WORTH_WAITING = 16  # tokens: a follower saves at least this much prefill, else it computes them itself
WORTH_COPYING = 8  # tokens; a 150 M model's cache of 8 K is copied in 7 ms, in which it computes 5 to 7
WORTH_KEEPING = 0.9  # an idle cache of which this share survives is taken over rather than copied


@dataclass(slots=True)
class Slot:
    """One slot of the KV cache: the tokens computed in it, whether a sequence runs in it, when it was last used."""

    index: int
    tokens: list[int] = field(default_factory=list)
    running: bool = False
    used: int = 0  # ticks; 0 = never
    target: Sequence[int] = ()  # running: all tokens that its sequence knows, computed or not


@dataclass(frozen=True, slots=True)
class Place:
    """Start in `slot` with `keep` tokens, copied from slot `source` unless it is the same one.

    First of all, the cache in `slot` is copied to slot `save`, unless that is None. `moved` says that the source keeps
    nothing worth having: the new sequence goes on from all of it.
    """

    slot: int
    source: int
    keep: int
    save: int | None = None
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Follow:
    """Wait until the sequence in `leader` has computed `length` tokens."""

    leader: int
    length: int


def common(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    """Length of the longest common prefix of two token lists, at most `limit`. O(limit), at memory speed."""
    limit = min(limit, len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    low, high = 0, limit  # a[:low] == b[:low], a[:high] != b[:high]
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def anywhere(keep: int) -> int:
    """A sequence of plain tokens can be cut behind each."""
    return keep


def place(
    tokens: list[int],
    slots: Sequence[Slot],
    holds: Callable[[Slot, int], bool],
    *,
    cut: Callable[[int], int] = anywhere,
    reuse: bool = True,
    packed: bool = False,
) -> Place | Follow | None:
    """Where a sequence of `tokens` starts, whom it waits for, or None when every slot runs.

    `holds(slot, keep)` says whether a slot's cache can be continued from its first `keep` tokens; `cut(keep)` how many
    of them at most, since some stand or fall together. `reuse` False computes everything (echo with logprobs needs
    each row).
    """
    limit = len(tokens) - 1 if reuse else 0

    def shared(others: Sequence[int]) -> int:
        return cut(common(tokens, others, limit))

    source, keep = _best(slots, holds, shared)
    if reuse and (follow := _leader(slots, shared, keep)):
        return follow
    idle = [slot for slot in slots if not slot.running]
    if not idle:
        return None
    near = _neighbours(slots) if packed else idle
    target = min([slot for slot in near if slot is not source] or near, key=_age)
    start = target if source is None else source
    refuge = _refuge(target, start, idle)
    whole = source is not None and not source.running and keep >= WORTH_KEEPING * len(source.tokens)
    spoils = bool(target.tokens) and (refuge is None or bool(slots[refuge].tokens and slots[refuge].used))
    if whole and (start in near or spoils):
        return Place(start.index, start.index, keep)
    if packed and keep < WORTH_COPYING and target is not start:
        there = shared(target.tokens)
        return Place(target.index, target.index, there if holds(target, there) else 0, refuge)
    return Place(target.index, start.index, keep, refuge, moved=whole)


def _age(slot: Slot) -> tuple[int, int]:
    return slot.used, slot.index


def _neighbours(slots: Sequence[Slot]) -> list[Slot]:
    """Idle slots beside a running one; all of them when nothing runs."""
    idle = [slot for slot in slots if not slot.running]
    running = {slot.index for slot in slots if slot.running}
    return [slot for slot in idle if not running.isdisjoint({slot.index - 1, slot.index + 1})] or idle


def _refuge(target: Slot, source: Slot, idle: Sequence[Slot]) -> int | None:
    """Where the target's cache moves to: the idle slot used longest ago, if the target's is the younger one."""
    older = [slot for slot in idle if slot is not target and slot is not source and _age(slot) < _age(target)]
    return min(older, key=_age).index if older and target.tokens else None


def _best(
    slots: Sequence[Slot], holds: Callable[[Slot, int], bool], shared: Callable[[Sequence[int]], int]
) -> tuple[Slot | None, int]:
    best: Slot | None = None
    keep = 0
    for slot in slots:
        same = shared(slot.tokens)
        if same > keep or (same == keep > 0 and best is not None and best.running and not slot.running):
            if holds(slot, same):
                best, keep = slot, same
    return best, keep


def _leader(slots: Sequence[Slot], shared: Callable[[Sequence[int]], int], keep: int) -> Follow | None:
    best: Follow | None = None
    for slot in slots:
        if not slot.running:
            continue
        same = shared(slot.target)
        ahead = same > len(slot.tokens) and same >= keep + WORTH_WAITING
        if ahead and (best is None or same > best.length):
            best = Follow(slot.index, same)
    return best
