"""Text to token ids: a byte-level BPE of its own, and which tokens the model has to say itself.

The regex that cuts words before the BPE is GPT-2's, because llama.cpp has the same one under the name "gpt-2".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL = (PAD, START, END)
MARKERS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """A byte-level BPE of `size` tokens, control tokens and markers first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*CONTROL, *MARKERS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=3,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer saved at `path`."""
    return Tokenizer.from_file(str(path))


def answer_mask(ids: Sequence[int], tokenizer: Tokenizer) -> list[bool]:
    """True for every token that the model itself has to say, its <|im_end|> included."""
    opening = tokenizer.encode(f"{START}assistant\n").ids
    start, end = opening[0], tokenizer.token_to_id(END)
    mask = [False] * len(ids)
    speaking = False
    for at, token in enumerate(ids):
        if token == start:
            speaking = False
        elif not speaking and list(ids[at - len(opening) : at]) == opening:
            speaking = True
        mask[at] = speaking
        if token == end:
            speaking = False
    return mask
