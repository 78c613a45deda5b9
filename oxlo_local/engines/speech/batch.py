"""Pure: which chunks share the next batch. Files take turns, so that a short clip waits for one batch and no more.

CTranslate2 decodes a batch with one set of options, and refuses prompts of different lengths in it: chunks carry a key,
and only equal keys go together. The earliest chunk of the file that has had least chooses it, since a chunk that has to
be tried again holds back all the text behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from oxlo_local.engines import turns
from oxlo_local.engines.turns import Turn

LOGITS = 2  # chunks in a batch whose probabilities are kept: some 100 MB each


@dataclass(frozen=True, slots=True)
class Key:
    """What chunks of one batch have in common."""

    temperature: float
    encoded: bool  # whether the encoder has seen it, in an earlier try
    prompt: int  # tokens
    logprobs: bool


def share(files: Sequence[Turn[Key]], size: int) -> None:
    """Fill in what each picks: at most `size` chunks in all, of one key."""
    turns.share(files, lambda key: min(size, LOGITS) if key.logprobs else size)
