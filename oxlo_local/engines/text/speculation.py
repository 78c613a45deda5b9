"""Speculative decoding: which running sequences guess ahead in the next step, and by which means.

The means are a lookup of what repeats (guess.py) and, where one was given, a draft model (draft.py); each sequence
takes the one with the better chance. How long guesses are follows from what `measure.costs` found at load, or is what
the option `guesses` says. What cannot be undone is not guessed: a recurrent cache cannot be cut behind the last token
that was right, and one with a sliding window only within its window. A request whose sampler runs inside the graph does
not guess either: libllama draws one token a graph there.
"""

import math
import sys
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from oxlo_local.engines.text.draft import Draft
from oxlo_local.engines.text.guess import (
    DRAFTED,
    Account,
    Chance,
    Choice,
    Costs,
    Guess,
    Lookup,
    choose,
    most_sequences,
)
from oxlo_local.engines.text.llama import Llama
from oxlo_local.engines.text.measure import costs, seconds
from oxlo_local.engines.text.prefix import Slot
from oxlo_local.engines.text.sequence import Sequence
from oxlo_local.engines.weights import LoadError

WORTHLESS = 0.005  # seconds of a token, below which guessing takes nearly as long as what it saves


class Speculation:
    """Guesses for one engine's sequences; at most `rows` of them are checked in a step."""

    def __init__(
        self,
        llama: Llama,
        costs: Costs | None,
        *,
        fixed: int | None,
        rows: int,
        draft: Draft | None = None,
        only_alone: bool = False,
    ) -> None:
        """`fixed`: a guess has so many tokens, whatever it costs; else `costs` decide. `only_alone`: while one sequence
        generates and no more.
        """
        assert costs is not None or fixed is not None
        self.proposed = self.accepted = 0
        """Tokens guessed and checked, and those of them that came true."""
        self._open: list[tuple[Sequence, Slot, Guess]] = []  # in this step
        self._account = Account()
        self._delay = 0.0  # that this step's guesses cause
        self._draft = draft
        self._costs = costs
        self._fixed = fixed
        self._rows = rows
        self._vocab = llama.n_vocab
        self._window = llama.n_swa or llama.context_length
        self._most = rows if costs is None else most_sequences(costs, rows=rows)
        if only_alone:
            self._most = min(1, self._most)

    @property
    def kind(self) -> Literal["lookup", "draft"]:
        """What it guesses by."""
        return "lookup" if self._draft is None else "draft"

    def propose(self, running: Collection[Sequence]) -> None:
        """Give those of the running sequences a guess for which that is worth it."""
        generating = [sequence for sequence in running if sequence.generating]
        if not 0 < len(generating) <= self._most:
            return
        found = sorted(self._candidates(generating), key=lambda pair: -pair[0].each)
        if not found:
            return
        choice = self._choose([chance for chance, _ in found], len(generating))
        if not choice.length or (self._costs is not None and not self._account.willing()):
            return
        self._delay = choice.delay
        drafting: list[Sequence] = []
        for chance, sequence in found[: choice.sequences]:
            if chance.drafted:
                drafting.append(sequence)
            elif sequence.lookup is not None:
                self._give(sequence, sequence.lookup.guess(self._room(sequence, choice.length)))
        if drafting and self._draft is not None:
            known = {sequence.slot.index: sequence.tokens for sequence in drafting if sequence.slot}
            drafted = self._draft.guess(known, choice.length)
            for sequence in drafting:
                tokens = drafted.get(sequence.slot.index, []) if sequence.slot else []
                tokens = [token for token in tokens if token < self._vocab]
                self._give(sequence, Guess(tokens[: self._room(sequence, choice.length)], sequence.trust))

    def _candidates(self, generating: Collection[Sequence]) -> Iterator[tuple[Chance, Sequence]]:
        for sequence in generating:
            if self._room(sequence, 1) <= 0 or sequence.sampler is None or sequence.sampler.in_graph:
                continue
            if sequence.lookup is None:
                sequence.lookup = Lookup(sequence.prompt, sequence.prediction)
            sequence.lookup.follow(sequence.tokens)
            chance = Chance(sequence.lookup.chance())
            if self._draft is not None and not sequence.images:  # which a draft model does not see
                drafted = Chance(sequence.trust.chance(DRAFTED, len(sequence.tokens)), drafted=True)
                chance = max(chance, drafted, key=lambda chance: chance.each)
            if chance.each > 0:
                yield chance, sequence

    def _room(self, sequence: Sequence, length: int) -> int:
        return min(length, sequence.room, self._window - len(sequence.tokens))

    def _choose(self, chances: list[Chance], sequences: int) -> Choice:
        if self._costs is not None:
            return choose(chances, sequences, self._costs, rows=self._rows)
        length = self._fixed or 0
        return Choice(min(len(chances), self._rows // (1 + length)), length)

    def _give(self, sequence: Sequence, guess: Guess) -> None:
        if guess.tokens and sequence.slot is not None:
            sequence.guess = guess
            self._open.append((sequence, sequence.slot, guess))

    def settle(self) -> list[Slot]:
        """The step is over: learn from its guesses. Returns the slots whose caches hold what was guessed in vain."""
        spoiled = []
        gain, checked = -self._delay, False
        for sequence, slot, guess in self._open:
            sequence.guess = None
            if not guess.checked:
                continue
            checked = True
            gain += math.log(1 + guess.accepted)
            self.proposed += len(guess.tokens)
            self.accepted += guess.accepted
            guess.trust.learn(guess.accepted / len(guess.tokens))
            if guess.accepted < len(guess.tokens):
                spoiled.append(slot)
        self._open.clear()
        if checked and self._costs is not None:
            self._account.book(gain)
        return spoiled

    def close(self) -> None:
        """Free the draft model."""
        if self._draft is not None:
            self._draft.close()


def open_speculation(llama: Llama, together: int) -> Speculation | None:
    """What a model's options ask for, as far as its cache allows it; unasked, lookups where they gain.

    Raises LoadError for a draft model that cannot be one.
    """
    options = llama.options
    asked = options.speculation or ("draft" if options.draft else "lookup" if options.guesses else None)
    if asked == "none" or llama.recurrent:
        if asked not in (None, "none"):
            sys.stderr.write("speculation: none, since the memory of a recurrent model cannot be cut\n")
        return None
    if asked == "draft" and options.draft is None:
        raise LoadError("speculation = draft needs the option draft: a small model of the same family")
    if asked is not None and llama.n_swa:
        sys.stderr.write(
            f"speculation: only within the first {llama.n_swa} tokens, this model's sliding window\n"
        )
    rows = (options.batch or 1) - (options.parallel or 1)
    draft = Draft(Path(options.draft), llama, together) if asked == "draft" and options.draft else None
    if options.guesses is not None:
        return Speculation(llama, None, fixed=options.guesses, rows=rows, draft=draft)
    measured = costs(llama, together)
    if asked is None and (measured.graph(1) < WORTHLESS or not most_sequences(measured, rows=rows)):
        return None
    if draft is not None:
        measured = replace(measured, draft=seconds(draft.llama, 1))
    # In company of texts that do not copy, guesses cost up to a quarter of what eight clients got without.
    return Speculation(llama, measured, fixed=None, rows=rows, draft=draft, only_alone=asked is None)
