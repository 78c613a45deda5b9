"""Text to token ids: every word of the grammar is one token, anything else is spelt in bytes; Whisper's special tokens.

The specials stand behind the text in Whisper's own order, because faster-whisper and CTranslate2 count from
<|endoftext|> and <|notimestamps|>. There is one language, so that both take the model for one of Whisper's English
ones, which are told neither language nor task; and timestamps only for the 8 seconds of a window.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from .grammar import WORDS

WINDOW_SECONDS = 8
STEP_SECONDS = 0.02  # of a timestamp token, and of a row that the encoder puts out
STEPS = round(WINDOW_SECONDS / STEP_SECONDS)
READER_STEPS = 1500  # rows that faster-whisper fills every window up to

END, START, ENGLISH, NO_SPEECH, PREVIOUS, NO_TIMESTAMPS = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|nospeech|>",
    "<|startofprev|>",
    "<|notimestamps|>",
)
SPECIALS = (
    END,
    START,
    ENGLISH,
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    PREVIOUS,
    NO_SPEECH,
    NO_TIMESTAMPS,
)


def build_tokenizer() -> Tokenizer:
    """A byte-level BPE whose merges lead to exactly the words of the grammar, each with the space before it."""
    vocabulary = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in sorted(WORDS):
        spelt = f"Ġ{word}"
        for end in range(2, len(spelt) + 1):
            if spelt[:end] not in vocabulary:
                merges.append((spelt[: end - 1], spelt[end - 1]))
                vocabulary[spelt[:end]] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    stamps = (f"<|{step * STEP_SECONDS:.2f}|>" for step in range(STEPS + 1))
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in itertools.chain(SPECIALS, stamps)]
    )
    return tokenizer


class Vocabulary:
    """The tokenizer and the ids that sequences are made of."""

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer()
        self.size: int = self.tokenizer.get_vocab_size()
        self.end, self.start, self.no_speech, self.previous, self.no_timestamps = (
            self._id(text) for text in (END, START, NO_SPEECH, PREVIOUS, NO_TIMESTAMPS)
        )
        self.english = self._id(ENGLISH)
        self.words = {word: self._id(f"Ġ{word}") for word in WORDS}

    def _id(self, text: str) -> int:
        token = self.tokenizer.token_to_id(text)
        assert token is not None, f"the tokenizer has no {text}"
        return token

    def stamp(self, seconds: float) -> int:
        """The timestamp token nearest to a time within the window."""
        return self.no_timestamps + 1 + min(STEPS, max(0, round(seconds / STEP_SECONDS)))

    def text(self, ids: Sequence[int]) -> str:
        """The words among the ids."""
        return str(self.tokenizer.decode([token for token in ids if token < self.end])).strip()
