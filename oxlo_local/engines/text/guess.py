"""What a sequence may say next, guessed without the model, and how many guessed tokens are worth checking.

A guess is checked by computing all of it in one graph: the row of each token gives what the model itself draws behind
it, and the guess holds as far as both agree. Nothing but the speed depends on it (engine.py).

**Lookup.** Answers copy: a text that is corrected, code that is edited, names out of a document. So what followed the
newest tokens when they last occurred, in the prompt or in the answer, is the guess. It may run into itself, as in
LZ77: a loop repeats for as long as it is asked to. What a client predicts its answer to be lies in front of the prompt,
behind a copy of the prompt's end: as if the model had answered so before.

**Chance.** A match of m tokens is m times that copying came true. By Laplace's rule of succession the next token does
with a chance of (m + 1) / (m + 2). What was guessed in vain counts against it, less and less as the text goes on: in
JSON the keys repeat, and behind each stands something new.

**Length.** With chance p, a guess of k tokens brings (1 - p^(k + 1)) / (1 - p) tokens on average, the one that the
model draws behind it included. What it costs is measured (measure.py): next to nothing on a GPU, on a CPU much, since
two rows take far longer there than one. It is worth that where the geometric mean of all sequences' speeds gains: one
that is faster at the price of all others is no gain, and from some number of sequences on nothing is.

**Account.** A chance is an estimate, and a new sequence's a mere prior: two words that stand side by side twice say
little of a text that never copies. Each sequence learns that from its own guesses, but many short ones never get there,
and in company each guess in vain delays all. So what guessing brought is booked, and while it loses nobody guesses.

This file knows nothing of llama.cpp, calls or time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

ROWS = (2, 4, 8, 16, 32)  # of a sequence in a step that checks a guess: the guess, and the token before it
SHORTEST = 2  # tokens of a match; one alone says too little
SEARCHED = 32  # tokens of a match that places are compared by
CANDIDATES = 8  # places that are compared, the latest first
MOST_SEQUENCES = 16  # beyond that, guessing itself takes too long
REFUSED = 8.0  # matching tokens that a guess in vain makes up for
FORGOTTEN = 64  # tokens after which it counts half
DRAFTED = 8  # matching tokens that a draft model's word is worth, before it is known
WORTH = math.log(1.1)  # a tenth; less is lost in what nobody measures
NOTHING = -(2**31)  # stands between two texts, where no token is
CREDIT = 8.0  # of gain, at most, that later losses are set against
STAKE = 4.0  # of loss, after which nothing is guessed for a while
FIRST_REST, LONGEST_REST = 16, 512  # steps


class Trust:
    """How far one kind of guess can be relied on in one sequence."""

    def __init__(self) -> None:
        self._refused = 0.0
        self._length = 0

    def chance(self, matched: int, length: int) -> float:
        """That the next token is as guessed behind `matched` that were, now that the sequence has `length` tokens."""
        self._refused *= 0.5 ** ((length - self._length) / FORGOTTEN)
        self._length = length
        return (matched + 1) / (matched + 2 + self._refused)

    def learn(self, share: float) -> None:
        """`share` (0 to 1) of a guess came true."""
        self._refused = (self._refused + REFUSED) * (1 - share)


@dataclass(slots=True)
class Guess:
    """Tokens that may come next. `accepted` of them, from the first on, turned out to be what the model draws."""

    tokens: list[int]
    trust: Trust
    predicted: bool = False  # by the client
    checked: bool = False  # it was computed
    accepted: int = 0
    missed: bool = False

    def check(self, token: int) -> bool:
        """Compare the next token with what was drawn; whether it is as guessed."""
        if not self.missed and self.accepted < len(self.tokens) and self.tokens[self.accepted] == token:
            self.accepted += 1
        else:
            self.missed = True
        return not self.missed


class Lookup:
    """The tokens of one sequence, at first those of its prompt, and where they repeat.

    As LZ77's coders do it: every pair of tokens knows where it was last, every such place the one before it. A token
    costs a look into a dict, however long the text is.
    """

    def __init__(self, prompt: Sequence[int], prediction: Sequence[int] = ()) -> None:
        self.trust = Trust()
        self.matched = 0
        """Tokens by which the end agrees with an earlier place."""
        self._source = 0  # the token behind that place
        self._known: list[int] = []
        self._last: dict[int, int] = {}  # by pair of tokens: the token that followed it last
        self._earlier: list[int] = []  # by token: the one that followed the same pair before it; 0 = none
        self._before = len(prompt[-SEARCHED:]) + len(prediction) + 1 if prediction else 0
        if prediction:
            self._append([*prompt[-SEARCHED:], *prediction, NOTHING])
        self._append(prompt)

    def follow(self, tokens: Sequence[int]) -> None:
        """Take the tokens that the sequence has got since, and find where its end occurred last."""
        for token in tokens[len(self._known) - self._before :]:
            goes_on = self.matched > 0 and self._known[self._source] == token
            self._source, self.matched = (self._source + 1, self.matched + 1) if goes_on else (0, 0)
            self._append((token,))
        if not self.matched:
            self._search()

    def _append(self, tokens: Sequence[int]) -> None:
        known, last = self._known, self._last
        for token in tokens:
            place = len(known)
            earlier = 0
            if place >= SHORTEST:
                pair = (known[-2] << 32) + known[-1]
                earlier = last.get(pair, 0)
                last[pair] = place
            self._earlier.append(earlier)
            known.append(token)

    def _search(self) -> None:
        known = self._known
        if len(known) < SHORTEST:
            return
        place = self._last.get((known[-2] << 32) + known[-1], 0)
        for _ in range(CANDIDATES):
            if place == 0:
                break
            matched = self._agreement(place)
            if matched > self.matched:
                self._source, self.matched = place, matched
            place = self._earlier[place]

    def _agreement(self, place: int) -> int:
        """Tokens before `place` that are those at the end."""
        known, most = self._known, min(place, SEARCHED)
        end = len(known)
        differs = (i for i in range(most) if known[place - 1 - i] != known[end - 1 - i])
        return next(differs, most)

    def chance(self) -> float:
        """That the next token is what followed then; 0 = there is nothing to go by."""
        if not self.matched or self._known[self._source] < 0:
            return 0.0
        return self.trust.chance(self.matched, len(self._known))

    def guess(self, length: int) -> Guess:
        """What followed, `length` tokens of it at most; a text that ends there goes on no further."""
        tokens = self._known[self._source : self._source + length]
        for i in range(length - len(tokens)):
            tokens.append(tokens[i])
        end = next((place for place, token in enumerate(tokens) if token < 0), length)
        return Guess(tokens[:end], self.trust, predicted=self._source < self._before)


@dataclass(frozen=True)
class Costs:
    """Seconds of graphs by their rows: ascending, the first of one row. `together`: see batcher.graphs."""

    seconds: Sequence[tuple[int, float]]
    together: int
    draft: float = 0.0  # seconds of a drafted token

    def graph(self, rows: int) -> float:
        """Seconds of a graph, on straight lines between what was measured, and beyond it on one that does not fall.

        On a busy machine 32 rows may have been faster than 16; 256 would then take less than nothing.
        """
        if rows <= 1 or len(self.seconds) < 2:
            return self.seconds[0][1] * rows
        above = next((i for i, (size, _) in enumerate(self.seconds) if size >= rows), len(self.seconds) - 1)
        (low, fast), (high, slow) = self.seconds[above - 1], self.seconds[above]
        if rows > high:
            return slow + max(0.0, slow - fast) * (rows - high) / (high - low)
        return fast + (slow - fast) * (rows - low) / (high - low)

    def plain(self, sequences: int) -> float:
        """Seconds of the next tokens of so many sequences."""
        return sequences * self.graph(1) if sequences < self.together else self.graph(sequences)

    def delay(self, sequences: int, guessing: int, length: int, drafted: int) -> float:
        """What it costs `sequences` that so many of them guess `length` tokens: by how much the sum of the logarithms
        of their times grows. `drafted` of the guesses come from a draft model.
        """
        seconds = self.plain(sequences - guessing) + self.graph(guessing * (length + 1))
        return sequences * math.log((seconds + length * self.drafts(drafted)) / self.plain(sequences))

    def drafts(self, sequences: int) -> float:
        """Seconds of drafting one token for each of so many sequences."""
        return self.draft * (sequences if sequences < self.together else 1)


@dataclass(frozen=True)
class Chance:
    """A sequence's next guess: how likely each token is, and whether it has yet to be drafted."""

    each: float
    drafted: bool = False


@dataclass
class Choice:
    """So many of the sequences, those with the best chances, guess `length` tokens each."""

    sequences: int = 0
    length: int = 0
    gain: float = WORTH
    delay: float = 0.0  # what it costs all of them, in the same unit


class Account:
    """What guessing has brought lately, as `Choice.gain` counts it, and whether to go on with it."""

    def __init__(self) -> None:
        self._balance = 0.0
        self._rest = 0  # steps in which nothing is guessed
        self._last_rest = 0

    def willing(self) -> bool:
        """Whether to guess in this step; to be asked once in each that could."""
        resting = self._rest > 0
        self._rest -= resting
        return not resting

    def book(self, gain: float) -> None:
        """A step with guesses is over. After a rest the next loss ends it again, each time for twice as long."""
        self._balance = min(CREDIT, self._balance + gain)
        if self._balance > 0:
            self._last_rest = 0
        elif self._balance <= -STAKE:
            self._balance = -STAKE
            self._rest = self._last_rest = min(LONGEST_REST, 2 * self._last_rest or FIRST_REST)


def expected(chance: float, length: int) -> float:
    """Tokens that a step brings on average, with a guess of `length`."""
    return length + 1.0 if chance >= 1 else (1 - chance ** (length + 1)) / (1 - chance)


def choose(chances: Sequence[Chance], sequences: int, costs: Costs, *, rows: int) -> Choice:
    """Who guesses how far, of `sequences` that generate. `chances` descend; `rows` = those that a step has room for."""
    best = Choice()
    for guessing in range(1, len(chances) + 1):
        drafted = sum(chance.drafted for chance in chances[:guessing])
        for each in ROWS:
            if guessing * each > rows:
                break
            gain = sum(math.log(expected(chance.each, each - 1)) for chance in chances[:guessing])
            delay = costs.delay(sequences, guessing, each - 1, drafted)
            gain -= delay
            if gain > best.gain:
                best = Choice(guessing, each - 1, gain, delay)
    return best


def most_sequences(costs: Costs, *, rows: int) -> int:
    """Up to how many sequences a guess may pay at all: with more of them, the best of guesses would not."""
    paying = (
        count
        for count in range(MOST_SEQUENCES, 0, -1)
        if choose([Chance(1.0)] * count, count, costs, rows=rows).length
    )
    return next(paying, 0)
