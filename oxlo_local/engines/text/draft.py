"""A small model that guesses for a large one: greedily, a token at a time, for several sequences at once.

It has as many slots as the large one, and what a sequence computes in a slot there it computes in the same slot here.
Its cache follows by itself: before it drafts, what a slot holds is cut back to what it has in common with the sequence,
or another slot's longer prefix is copied, and what is missing is computed, at most a chunk in a step. So it needs no
word of prefixes that were reused, guesses that were wrong and sequences that gave way.

What fails here costs a guess and never a request.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from oxlo_local.engines.text.batcher import Piece, graphs
from oxlo_local.engines.text.llama import CacheFull, DecodeFailed, Llama
from oxlo_local.engines.text.prefix import WORTH_COPYING, common
from oxlo_local.engines.weights import LoadError

PADDING = 128  # tokens by which vocabularies of one family differ at their ends


class Draft:
    """A draft model for `target`. Raises LoadError when it cannot be loaded, or cannot speak for this one."""

    def __init__(self, path: Path, target: Llama, together: int) -> None:
        options = replace(target.options, mmproj=None, chat_template=None, backend_sampling=False)
        self.llama = Llama(path, options, lambda _: None, whole_windows=True)
        self._together = together
        self._chunk = options.chunk or 1
        self._held: list[list[int]] = [[] for _ in range(options.parallel or 1)]  # by slot
        fault = "its memory cannot be cut" if self.llama.recurrent else difference(self.llama, target)
        if fault:
            self.llama.close()
            raise LoadError(f"{path.name} cannot draft for this model: {fault}")

    def guess(self, sequences: Mapping[int, Sequence[int]], length: int) -> dict[int, list[int]]:
        """What it would say behind the tokens of each slot, up to `length` tokens of it.

        A slot that has much to catch up with gets a part of it computed, and no guess yet.
        """
        try:
            known = {slot: list(sequences[slot]) for slot in sorted(sequences)}
            known = {slot: tokens for slot, tokens in known.items() if self._caught_up(slot, tokens)}
            return self._drafted(known, length)
        except (CacheFull, DecodeFailed):
            for slot in range(len(self._held)):
                self._forget(slot)
            return {}

    def _drafted(self, known: dict[int, list[int]], length: int) -> dict[int, list[int]]:
        guesses: dict[int, list[int]] = {slot: [] for slot in known}
        for _ in range(length):
            pieces = [
                Piece(slot, len(self._held[slot]), len(tokens) - len(self._held[slot]), "last")
                for slot, tokens in known.items()
            ]
            for graph in graphs(pieces, self._together):
                for row in self.llama.decode(graph, known.__getitem__):
                    self._held[row.slot] = known[row.slot][: row.position + 1]
                    guesses[row.slot].append(int(self.llama.logits(row).argmax()))
            known = {slot: [*tokens, guesses[slot][-1]] for slot, tokens in known.items()}
            known = {slot: tokens for slot, tokens in known.items() if tokens[-1] not in self.llama.eog}
            if not known:
                break
        return {slot: tokens for slot, tokens in guesses.items() if tokens}

    def _caught_up(self, slot: int, tokens: list[int]) -> bool:
        """Bring a slot near the end of these tokens; whether what is left is to be computed with the first guess."""
        keep = common(tokens, self._held[slot], len(tokens) - 1)
        shared = [common(tokens, held, len(tokens) - 1) for held in self._held]
        source = max(range(len(shared)), key=shared.__getitem__)
        if shared[source] >= keep + WORTH_COPYING:
            copied = self.llama.copy(source, slot, shared[source])
            keep = shared[source] if copied else 0
        elif keep < len(self._held[slot]) and not self.llama.trim(slot, keep):
            keep = 0
        if keep == 0:
            self._forget(slot)
        self._held[slot] = tokens[:keep]
        missing = len(tokens) - keep
        if missing <= self._chunk:
            return True
        self.llama.decode([Piece(slot, keep, self._chunk, "none")], lambda _: tokens)
        self._held[slot] = tokens[: keep + self._chunk]
        return False

    def _forget(self, slot: int) -> None:
        self.llama.clear(slot)
        self._held[slot] = []

    def close(self) -> None:
        """Free the model."""
        self.llama.close()


def difference(draft: Llama, target: Llama) -> str:
    """In what their vocabularies differ; "" where a token of one means the same to the other."""
    if abs(draft.n_vocab - target.n_vocab) > PADDING:
        return f"its vocabulary has {draft.n_vocab:,} tokens, and not {target.n_vocab:,}"
    both = range(min(draft.n_vocab, target.n_vocab))
    differs = next((token for token in both if draft.token_bytes(token) != target.token_bytes(token)), None)
    if differs is not None:
        here, there = draft.token_text(differs), target.token_text(differs)
        return f"its token {differs} is {here!r}, and not {there!r}; take a smaller model of the same family"
    if draft.adds_bos != target.adds_bos or (draft.adds_bos and draft.bos != target.bos):
        return "its texts begin otherwise (BOS)"
    return ""
