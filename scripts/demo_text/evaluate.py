"""The score on held_out.toml, of answers that llama.cpp itself decodes greedily from the exported file."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import llama_cpp
import numpy as np

from .conversations import Conversation
from .held_out import Question
from .rendering import render


class Speaker:
    """One GGUF loaded through llama.cpp's own interface: tokenise, and answer greedily."""

    def __init__(self, path: Path, *, context: int = 2048, threads: int = 1) -> None:
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = (
            context,
            context,
            threads,
            threads,
        )
        self.context = llama_cpp.llama_init_from_model(self.model, params)

    def __enter__(self) -> Speaker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        return np.ctypeslib.as_array(
            llama_cpp.llama_get_logits_ith(self.context, -1), (llama_cpp.llama_vocab_n_tokens(self.vocab),)
        )

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


def score(path: Path, questions: Sequence[Question]) -> tuple[int, list[tuple[Question, str]]]:
    """(number of right answers, the wrong ones with what was said) of the GGUF at `path`."""
    right, wrong = 0, []
    with Speaker(path) as speaker:
        for question in questions:
            said = speaker.answer(question.conversation)
            if question.right(said):
                right += 1
            else:
                wrong.append((question, said))
    return right, wrong
