"""Speculative decoding: which running sequences guess ahead in the next step, and by which means.

The guesses come from guess.py, which also decides how long they are by what `measure.costs` found at load, or are as
long as the option `guesses` says. What cannot be undone is not guessed: a recurrent cache cannot be cut behind the
last token that was right, and one with a sliding window only within its window. A request whose sampler runs inside the
graph does not guess either: libllama draws one token a graph there.
"""

import sys
from collections.abc import Collection, Iterator

from oxlo_local.engines.text.guess import Chance, Choice, Costs, Guess, Lookup, choose, most_sequences
from oxlo_local.engines.text.llama import Llama
from oxlo_local.engines.text.measure import costs
from oxlo_local.engines.text.prefix import Slot
from oxlo_local.engines.text.sequence import Sequence


class Speculation:
    """Guesses for one engine's sequences; at most `rows` of them are checked in a step."""

    def __init__(self, llama: Llama, costs: Costs | None, *, fixed: int | None, rows: int) -> None:
        """`fixed`: a guess has so many tokens, whatever it costs; else `costs` decide."""
        assert costs is not None or fixed is not None
        self.proposed = self.accepted = 0
        """Tokens guessed and checked, and those of them that came true."""
        self._open: list[tuple[Sequence, Slot, Guess]] = []  # in this step
        self._costs = costs
        self._fixed = fixed
        self._rows = rows
        self._window = llama.n_swa or llama.context_length
        self._most = rows if costs is None else most_sequences(costs, rows=rows)

    def propose(self, running: Collection[Sequence]) -> None:
        """Give those of the running sequences a guess for which that is worth it."""
        generating = [sequence for sequence in running if sequence.generating]
        if not 0 < len(generating) <= self._most:
            return
        found = sorted(self._candidates(generating), key=lambda pair: -pair[0])
        choice = self._choose([chance for chance, _ in found], len(generating))
        for _, sequence in found[: choice.sequences]:
            assert sequence.lookup is not None
            room = min(choice.length, sequence.room, self._window - len(sequence.tokens))
            if room > 0 and sequence.slot is not None:
                sequence.guess = sequence.lookup.guess(room)
                self._open.append((sequence, sequence.slot, sequence.guess))

    def _candidates(self, generating: Collection[Sequence]) -> Iterator[tuple[float, Sequence]]:
        for sequence in generating:
            if sequence.room <= 0 or sequence.sampler is None or sequence.sampler.in_graph:
                continue
            if sequence.lookup is None:
                sequence.lookup = Lookup(sequence.prompt, sequence.prediction)
            sequence.lookup.follow(sequence.tokens)
            chance = sequence.lookup.chance()
            if chance > 0:
                yield chance, sequence

    def _choose(self, chances: list[float], sequences: int) -> Choice:
        if self._costs is not None:
            return choose([Chance(each) for each in chances], sequences, self._costs, rows=self._rows)
        length = self._fixed or 0
        return Choice(min(len(chances), self._rows // (1 + length)), length)

    def settle(self) -> list[Slot]:
        """The step is over: learn from its guesses. Returns the slots whose caches hold what was guessed in vain."""
        spoiled = []
        for sequence, slot, guess in self._open:
            sequence.guess = None
            if not guess.checked:
                continue
            self.proposed += len(guess.tokens)
            self.accepted += guess.accepted
            guess.trust.learn(guess.accepted / len(guess.tokens))
            if guess.accepted < len(guess.tokens):
                spoiled.append(slot)
        self._open.clear()
        return spoiled


def open_speculation(llama: Llama, together: int) -> Speculation | None:
    """What a model's options ask for, as far as its cache allows it."""
    options = llama.options
    if options.speculation == "none":
        return None
    if llama.recurrent:
        sys.stderr.write("speculation: none, since the memory of a recurrent model cannot be cut\n")
        return None
    if llama.n_swa:
        sys.stderr.write(
            f"speculation: only within the first {llama.n_swa} tokens, this model's sliding window\n"
        )
    rows = (options.batch or 1) - (options.parallel or 1)
    measured = costs(llama, together) if options.guesses is None else None
    return Speculation(llama, measured, fixed=options.guesses, rows=rows)
