"""Pure: which chunks share the next batch. Files take turns, so that a short clip waits for one batch and no more.

CTranslate2 decodes a batch with one set of options, and refuses prompts of different lengths in it: chunks carry a key,
and only equal keys go together. The file that has had least chooses the key with its earliest chunk, since a chunk that
has to be tried again holds back all the text behind it; then every file in turn gives its earliest chunk of that key.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

LOGITS = 2  # chunks in a batch whose probabilities are kept: some 100 MB each


@dataclass(frozen=True, slots=True)
class Key:
    """What chunks of one batch have in common."""

    temperature: float
    encoded: bool  # whether the encoder has seen it, in an earlier try
    prompt: int  # tokens
    logprobs: bool


@dataclass
class Turn:
    """A file's chunks that could be computed now, earliest first, and how many it has had computed."""

    keys: Sequence[Key]
    had: int = 0
    picked: list[int] = field(default_factory=list)  # places in `keys` that go into the batch


def share(turns: Sequence[Turn], size: int) -> None:
    """Fill in what each picks: at most `size` chunks in all, of one key."""
    order = sorted((turn for turn in turns if turn.keys), key=lambda turn: turn.had)
    if not order:
        return
    key = order[0].keys[0]
    left = min(size, LOGITS) if key.logprobs else size
    offers = [(turn, [place for place, one in enumerate(turn.keys) if one == key]) for turn in order]
    for turn_number in range(max(len(places) for _, places in offers)):
        for turn, places in offers:
            if left and turn_number < len(places):
                turn.picked.append(places[turn_number])
                left -= 1
