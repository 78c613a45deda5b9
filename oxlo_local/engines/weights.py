"""A model's weights and vocabulary, loaded by libllama: what every engine on GGUF files begins with.

What is read from the vocabulary here may be read from several threads at once, also beside a decode.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import llama_cpp.llama_cpp as C

from oxlo_local.errors import BadRequest

FLASH_ATTENTION = {None: -1, False: 0, True: 1}
ERROR_LEVEL = 4  # ggml_log_level; 3 = warning


class LoadError(Exception):
    """The model could not be loaded, in libllama's own words."""


class _Log:
    """libllama's log: warnings and errors go to stderr, the last errors are kept for a failed load's message."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._level = 0
        self.callback = C.llama_log_callback(self._line)

    def _line(self, level: int, text: bytes, _: object) -> None:
        words = text.decode("utf-8", "replace")
        if level != 5:  # 5 = goes on with the line before, at that line's level
            self._level = level
        if self._level >= 3:
            sys.stderr.write(words)
        if self._level >= ERROR_LEVEL:
            self.errors = [*self.errors[-19:], words.strip()]

    def failure(self, what: str) -> LoadError:
        words = "; ".join(line for line in self.errors if line) or "libllama gave no reason"
        return LoadError(f"{what}: {words}")


log = _Log()


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2


def default_threads() -> int:
    """Engine threads: one core is left to the parent, since a third busy process ruins two spinning ones."""
    return max(1, cores() - 1)


class Weights:
    """A loaded model without a context. `gpu_layers` counts those that go to the GPU, -1 = all.

    Raises LoadError with libllama's words.
    """

    def __init__(self, path: Path, gpu_layers: int, progress: Callable[[float], None]) -> None:
        C.llama_log_set(log.callback, None)
        C.llama_backend_init()
        log.errors.clear()
        self.device = "gpu" if gpu_layers != 0 and C.llama_supports_gpu_offload() else "cpu"
        self._model = self._load_model(path, gpu_layers, progress)
        self.vocab = C.llama_model_get_vocab(self._model)
        self.n_vocab = int(C.llama_vocab_n_tokens(self.vocab))
        self._pieces = self._read_pieces()
        self.longest_piece = max(map(len, self._pieces), default=1)
        self.eog = frozenset(t for t in range(self.n_vocab) if C.llama_vocab_is_eog(self.vocab, t))

    def _load_model(self, path: Path, gpu_layers: int, progress: Callable[[float], None]) -> int:
        params = C.llama_model_default_params()
        params.n_gpu_layers = gpu_layers

        def report(fraction: float, _: object) -> bool:
            progress(fraction)
            return True

        keep_alive = C.llama_progress_callback(report)
        params.progress_callback = keep_alive
        model = C.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise log.failure(f"cannot load {path.name}")
        return int(model)

    def close(self) -> None:
        """Free the weights."""
        if self._model:
            C.llama_model_free(self._model)
            self._model = 0

    # -- what the file says -------------------------------------------------------------------------------------------

    def meta(self, key: str) -> str | None:
        """A value of the GGUF's metadata as text, or None."""
        size = C.llama_model_meta_val_str(self._model, key.encode(), ctypes.create_string_buffer(1), 1)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        C.llama_model_meta_val_str(self._model, key.encode(), buffer, size + 1)
        return buffer.value.decode("utf-8", "replace")

    @property
    def chat_template(self) -> str | None:
        """The file's own jinja template, or None."""
        text = C.llama_model_chat_template(self._model, None)
        return text.decode("utf-8", "replace") if text else None

    @property
    def parameters(self) -> int:
        return int(C.llama_model_n_params(self._model))

    @property
    def file_bytes(self) -> int:
        return int(C.llama_model_size(self._model))

    # -- tokens -------------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, special: bool, add_special: bool) -> list[int]:
        """Token ids of `text`; `special` reads control tokens in it, `add_special` adds BOS/EOS as the model wants.

        Releases the GIL and may run beside a decode.
        """
        raw = text.encode("utf-8", "surrogatepass")
        size = len(raw) // 2 + 16
        while True:
            out = (C.llama_token * size)()
            count: int = C.llama_tokenize(self.vocab, raw, len(raw), out, size, add_special, special)
            if count >= 0:
                return list(out[:count])
            size = -count

    @property
    def tokenize_address(self) -> int | None:
        """Where llama_tokenize lies in memory, for native code that calls it itself."""
        return ctypes.cast(C._lib.llama_tokenize, ctypes.c_void_p).value

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; empty for control tokens."""
        return self._pieces[token]

    def token_text(self, token: int) -> str:
        """A token's text as shown to people, control tokens included."""
        if piece := self._pieces[token]:
            return piece.decode("utf-8", "replace")
        text = C.llama_vocab_get_text(self.vocab, token)
        return text.decode("utf-8", "replace") if text else ""

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token as shown to people, control tokens included."""
        return self._pieces[token] or C.llama_vocab_get_text(self.vocab, token) or b""

    def check_tokens(self, tokens: Sequence[int], *, param: str) -> None:
        """Raise BadRequest for the first id that is no token of this model."""
        wrong = next((token for token in tokens if not 0 <= token < self.n_vocab), None)
        if wrong is not None:
            raise BadRequest(
                f"this model has no token {wrong}: token ids run from 0 to {self.n_vocab - 1}", param=param
            )

    def _read_pieces(self) -> list[bytes]:
        buffer = ctypes.create_string_buffer(1024)
        pieces = []
        for token in range(self.n_vocab):
            size = C.llama_token_to_piece(self.vocab, token, buffer, 1024, 0, False)
            pieces.append(buffer.raw[:size] if size > 0 else b"")
        return pieces

    @property
    def adds_bos(self) -> bool:
        return bool(C.llama_vocab_get_add_bos(self.vocab))

    @property
    def bos(self) -> int:
        return int(C.llama_vocab_bos(self.vocab))

    @property
    def eos(self) -> int:
        return int(C.llama_vocab_eos(self.vocab))

    @property
    def infill(self) -> tuple[int, int, int] | None:
        """Fill-in-the-middle tokens (prefix, suffix, middle), where the model has all three."""
        found = (
            int(C.llama_vocab_fim_pre(self.vocab)),
            int(C.llama_vocab_fim_suf(self.vocab)),
            int(C.llama_vocab_fim_mid(self.vocab)),
        )
        return None if min(found) < 0 else found
