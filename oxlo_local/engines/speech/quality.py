"""Pure: is what a chunk was heard as any good, and which of several tries is the best?

The measures and their thresholds are those of Whisper's authors: text that compresses too well repeats itself, what the
model itself found unlikely is guessed, and unlikely text over what sounds like silence is none at all.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

MOST_COMPRESSED = 2.4
LEAST_LIKELY = -1.0  # mean ln(probability) of a token
MOSTLY_SILENCE = 0.6  # probability that nobody speaks


@dataclass(frozen=True, slots=True)
class Try:
    """One decoding of a chunk."""

    tokens: tuple[int, ...]
    text: str
    temperature: float
    avg_logprob: float
    no_speech_prob: float
    logprobs: tuple[float, ...] = ()  # of each token, where asked for

    @property
    def compression(self) -> float:
        """How many times shorter the text can be said."""
        data = self.text.strip().encode()
        return len(data) / len(zlib.compress(data))

    @property
    def silent(self) -> bool:
        """Whether there is nothing to be heard in it."""
        return self.no_speech_prob > MOSTLY_SILENCE and self.avg_logprob < LEAST_LIKELY

    @property
    def fails(self) -> bool:
        """Whether another temperature should be tried."""
        unlikely = self.avg_logprob < LEAST_LIKELY
        return not self.silent and (unlikely or self.compression > MOST_COMPRESSED)


def best(tries: Sequence[Try]) -> Try:
    """The last one if it is good, else the likeliest of those that do not repeat themselves, if any."""
    if not tries[-1].fails:
        return tries[-1]
    calm = [each for each in tries if each.compression <= MOST_COMPRESSED]
    return max(calm or tries, key=lambda each: each.avg_logprob)
