"""The tokenizer: CLIP's own kind (byte pairs, words ending in </w>), learnt from captions.

What the captions say is a token a word; anything else falls into letters, so that no prompt is unknown.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .captions import COLOURS, IDLE, ROWS, SHAPES, SIZES, training_caption
from .scenes import any_scene

WORDS, POSITIONS = 1000, 40  # tokens in all, tokens of a prompt
START, END = "<|startoftext|>", "<|endoftext|>"
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's


def learn(seed: int) -> CLIPTokenizer:
    """The tokenizer, the same for the same seed."""
    rng = random.Random(f"{seed}:tokens")
    corpus = [training_caption(rng, any_scene(rng))[0] for _ in range(20_000)]
    for table in (COLOURS, SHAPES, SIZES, ROWS):
        corpus += [word for words in table.values() for word in words] * 500
    corpus += list(IDLE) * 500
    learnt = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learnt.normalizer = normalizers.Lowercase()
    learnt.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learnt.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=WORDS - 256 - 2, initial_alphabet=letters, end_of_word_suffix="</w>",
            min_frequency=50, show_progress=False,
        ),
    )  # fmt: skip
    merges = [tuple(pair) for pair in json.loads(learnt.to_str())["model"]["merges"]]
    names = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {name: place for place, name in enumerate([*dict.fromkeys(names), START, END])}
    with tempfile.TemporaryDirectory() as scratch:
        vocab, pairs = Path(scratch, "vocab.json"), Path(scratch, "merges.txt")
        vocab.write_text(json.dumps(vocabulary), "utf-8")
        pairs.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), "utf-8")
        return CLIPTokenizer(
            str(vocab), str(pairs), unk_token=END, bos_token=START, eos_token=END, pad_token=END,
            model_max_length=POSITIONS,
        )  # fmt: skip
