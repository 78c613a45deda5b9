"""The score on held_out.toml, and the check that training never saw those questions.

Answers are decoded greedily from the exported GGUF through llama.cpp itself, so the score is that of the file
that ships.
"""

from __future__ import annotations

import ctypes
import random
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import llama_cpp
import numpy as np

from .conversations import Conversation, Message, slot_lists, tool_schemas
from .grammar import HERE
from .tokens import render

HELD_OUT = HERE / "held_out.toml"


@dataclass(frozen=True)
class Question:
    """A conversation that waits for an answer, and what must (not) be in it; "a|b" = either of them."""

    conversation: Conversation
    must: tuple[str, ...]
    must_not: tuple[str, ...]

    def right(self, answer: str) -> bool:
        """Whether the answer holds all that it must and nothing that it must not."""
        text = answer.lower()
        return all(any(part.lower() in text for part in want.split("|")) for want in self.must) and not any(
            bad.lower() in text for bad in self.must_not
        )


def held_out() -> list[Question]:
    """The questions of held_out.toml."""
    made = []
    for raw in tomllib.loads(HELD_OUT.read_text())["question"]:
        messages: list[Message] = [{"role": "system", "content": raw["system"]}] if "system" in raw else []
        messages += raw.get("history", [])
        if "ask" in raw:
            messages.append({"role": "user", "content": raw["ask"]})
        tools = tool_schemas(random.Random(0), raw.get("tools", ()))
        made.append(Question(Conversation(messages, tools), tuple(raw["must"]), tuple(raw.get("must_not", ()))))
    return made


class Speaker:
    """One GGUF loaded through llama.cpp's own interface: tokenise, and answer greedily."""

    def __init__(self, path: Path, *, context: int = 2048, threads: int = 1) -> None:
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = context, context, threads, threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def template(self) -> str:
        """The chat template in the file."""
        return str(llama_cpp.llama_model_chat_template(self.model, None).decode())

    def tokenise(self, text: str) -> list[int]:
        """Token ids of the text, control tokens and markers read as such."""
        raw = text.encode()
        room = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), room, len(room), False, True)
        return list(room[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of one token."""
        room = ctypes.create_string_buffer(64)
        count = llama_cpp.llama_token_to_piece(self.vocab, token, room, len(room), 0, True)
        return room.raw[:count]

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Feeds tokens after those already fed; scores (vocabulary,) of what may follow."""
        room = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(room, len(tokens))):
            raise RuntimeError("llama_decode failed")
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, -1), (llama_cpp.llama_vocab_n_tokens(self.vocab),))

    def generate(self, prompt: str, limit: int = 200) -> list[int]:
        """The likeliest tokens after `prompt`, up to the end of the turn (left out) or `limit`."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        said: list[int] = []
        feed = self.tokenise(prompt)
        while len(said) < limit:
            token = int(self.logits(feed).argmax())
            if llama_cpp.llama_vocab_is_eog(self.vocab, token):
                break
            said.append(token)
            feed = [token]
        return said

    def answer(self, conversation: Conversation, limit: int = 200) -> str:
        """The greedy answer to the conversation's last message."""
        prompt = render(conversation.messages, conversation.tools, ask=True)
        return b"".join(self.piece(token) for token in self.generate(prompt, limit)).decode(errors="replace")


def score(path: Path) -> tuple[int, list[tuple[Question, str]]]:
    """(number of right answers, the wrong ones with what was said) of the GGUF at `path`."""
    right, wrong = 0, []
    with Speaker(path) as speaker:
        for question in held_out():
            said = speaker.answer(question.conversation)
            if question.right(said):
                right += 1
            else:
                wrong.append((question, said))
    return right, wrong


# ---------------------------------------------------------------- overlap


@lru_cache(maxsize=1)
def _values() -> frozenset[str]:
    """Slot values: two questions that differ only in these have the same template."""
    lists = slot_lists()
    names = ("names", "cities", "items", "places", "opposites", "coloured", "goods")
    parts = {part for name in names for value in lists[name] for part in value.lower().split(">")}
    return frozenset(word for part in parts for word in part.split() if word not in {"a", "an", "the", "of", "on", "in", "up", "no", "to"})


def template_of(text: str) -> tuple[str, ...]:
    """The words of a question with numbers, model names and slot values blanked."""
    words = re.findall(r"[a-z0-9][\w.'-]*", text.lower().replace("'s", " is"))
    words = [word.strip(".'-") for word in words]
    return tuple("_" if re.search(r"\d", word) or word in _values() else word for word in words)


def eights(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Every run of eight words."""
    return {words[at : at + 8] for at in range(len(words) - 7)}


def overlaps(conversations: Iterable[Conversation]) -> list[tuple[str, str]]:
    """(held-out question, training prompt) wherever they are the same template or share eight words in a row."""
    asked: Mapping[tuple[str, ...], str] = {template_of(text): text for q in held_out() for text in _user_texts(q.conversation)[-1:]}
    runs = {run: text for words, text in asked.items() for run in eights(words)}
    found: dict[tuple[str, str], None] = {}
    seen: set[str] = set()
    for conversation in conversations:
        for text in _user_texts(conversation):
            if text in seen:
                continue
            seen.add(text)
            words = template_of(text)
            if words in asked:
                found[asked[words], text] = None
            for run in eights(words) & runs.keys():
                found[runs[run], text] = None
    return list(found)


def _user_texts(conversation: Conversation) -> list[str]:
    return [str(message["content"]) for message in conversation.messages if message["role"] == "user"]
