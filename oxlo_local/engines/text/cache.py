"""The KV cache as the engine sees it: its slots, and the copies and cuts in libllama that go along with them.

Where a sequence starts is decided in prefix.py; here it is carried out. Every change is made to libllama's cache and to
our account of it together, so that between two steps `strayed` is 0: free + idle + running is all there is.
"""

from collections.abc import Sequence

from oxlo_local.engines.text.llama import Llama
from oxlo_local.engines.text.prefix import Follow, Place, Slot, place
from oxlo_local.engines.text.runs import Placed, lag, next_position, whole


class Cache:
    """The slots of one context, and their clock: a tick each time a sequence enters or leaves."""

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        self._tick = 0
        self.slots = [Slot(index) for index in range(llama.options.parallel or 1)]
        self._images: list[Sequence[Placed]] = [() for _ in self.slots]  # in the tokens of each slot

    # -- sequences come and go ----------------------------------------------------------------------------------------

    def place(
        self, tokens: list[int], *, reuse: bool, images: Sequence[Placed] = ()
    ) -> Place | Follow | None:
        """Where a sequence of `tokens` starts, whom it waits for, or None when every slot runs."""
        return place(
            tokens,
            self.slots,
            self._holds,
            cut=lambda keep: whole(images, keep),
            reuse=reuse,
            packed=not self._llama.unified,
        )

    def _holds(self, slot: Slot, keep: int) -> bool:
        behind = lag(self._images[slot.index], keep)
        return self._llama.holds(slot.index, len(slot.tokens) - behind, keep - behind)

    def enter(self, where: Place, target: Sequence[int], images: Sequence[Placed] = ()) -> Slot:
        """Give the slot to a sequence that knows the tokens `target`; it holds the prefix that could be kept."""
        slot = self.slots[where.slot]
        slot.tokens = self._attach(slot, where, where.keep - lag(images, where.keep))
        self._images[slot.index] = [Placed(each.start, each.seen) for each in images]  # no files, no rows
        slot.running, slot.target, slot.used = True, target, self._next_tick()
        return slot

    def leave(self, slot: Slot) -> None:
        """The sequence has ended; its tokens stay as a cached prefix."""
        slot.running, slot.target, slot.used = False, (), self._next_tick()

    def _attach(self, slot: Slot, where: Place, position: int) -> list[int]:
        """`position` is that of the first token that is not kept."""
        source, keep = self.slots[where.source], where.keep
        if where.save is not None:
            refuge = self.slots[where.save]
            self._llama.copy(slot.index, refuge.index, self._end(slot))
            refuge.tokens, refuge.used = slot.tokens, slot.used
            self._images[refuge.index] = self._images[slot.index]
        if where.moved:
            source.used = 0
        if slot is not source:
            kept = keep > 0 and self._llama.copy(source.index, slot.index, position)
        else:
            kept = keep == len(slot.tokens) or (keep > 0 and self._llama.trim(slot.index, position))
        if kept:
            return source.tokens[:keep]
        self._llama.clear(slot.index)
        return []

    def _next_tick(self) -> int:
        self._tick += 1
        return self._tick

    # -- tokens come and go -------------------------------------------------------------------------------------------

    def rewind(self, slot: Slot) -> None:
        """Undo a decode that failed half-way: back to our account, or to nothing where a tail cannot be cut."""
        keep = whole(self._images[slot.index], len(slot.tokens))
        slot.tokens = slot.tokens[:keep]
        if not self._llama.trim(slot.index, keep - lag(self._images[slot.index], keep)):
            self.forget(slot)

    def forget(self, slot: Slot) -> None:
        """Empty a slot."""
        self._llama.clear(slot.index)
        slot.tokens = []

    def forget_oldest(self) -> bool:
        """Empty the idle slot that was used longest ago; False when no idle one holds anything."""
        idle = [slot for slot in self.slots if not slot.running and slot.tokens]
        if idle:
            self.forget(min(idle, key=lambda slot: slot.used))
        return bool(idle)

    # -- accounts -----------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Tokens that fit, in all slots together."""
        return self._llama.context_length * (1 if self._llama.unified else len(self.slots))

    def used(self, *, idle: bool = False) -> int:
        """Tokens held, in all slots or only in idle ones."""
        return sum(len(slot.tokens) for slot in self.slots if not (idle and slot.running))

    def strayed(self) -> int:
        """Tokens by which our account and libllama's differ; anything but 0 is a fault of ours."""
        return sum(abs(self._end(slot) - self._llama.computed(slot.index)) for slot in self.slots)

    def _end(self, slot: Slot) -> int:
        """The position behind a slot's last token, as libllama counts."""
        return next_position(self._images[slot.index], len(slot.tokens))
