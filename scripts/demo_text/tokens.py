"""From conversations to token ids: the chat template, the byte-level BPE, and what the loss looks at.

The template that the model is trained through is the very file that goes into the GGUF. The regex that cuts words
before the BPE is GPT-2's, because llama.cpp has the same one under the name "gpt-2".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import jinja2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .conversations import Message
from .grammar import HERE

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL = (PAD, START, END)
MARKERS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
TEMPLATE = HERE / "chat_template.jinja"


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE.read_text())


def render(messages: Sequence[Message], tools: Sequence[Message] = (), *, ask: bool = False) -> str:
    """The text of a conversation; `ask`: it ends where the model has to answer."""
    offered = {"tools": tools} if tools else {}
    return _template().render(messages=messages, add_generation_prompt=ask, **offered)


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
