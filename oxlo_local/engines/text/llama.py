"""The only contact with libllama: load a model, decode batches, move KV cache between sequences, tokenise.

libllama's rules that shape this room (all of them abort the process or spoil the cache silently when broken):

1. A batch is packed into one graph only where sequence ids follow each other upwards, so rows come sorted by slot.
2. With streams (kv_unified = False) a copy between sequences is a copy of the whole stream, carried out at the next
   decode; the destination's old content is gone. The tail is trimmed after it.
3. Recurrent and hybrid models cannot drop a part of a sequence. Sliding-window ones say that they can while the
   window's old cells are gone: `holds` looks before `trim` is asked.
4. A return value of 1 from llama_decode means "no room" and leaves the cache as it was; below -1 the part already
   computed stays, so the caller trims every sequence of the batch back.

This file does not know about calls, sequences' states or scheduling.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_cpp.llama_cpp as C
import numpy as np
from numpy.typing import NDArray

from oxlo_local.calls import TextOptions
from oxlo_local.engines.text.batcher import Piece

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # ggml_type numbers
FLASH_ATTENTION = {None: -1, False: 0, True: 1}
ERROR_LEVEL = 4  # ggml_log_level; 3 = warning
DECODE_NO_ROOM = 1


class CacheFull(Exception):
    """No free cells for this batch; the cache is as it was."""


class DecodeFailed(Exception):
    """The batch could not be computed; its sequences have to be trimmed back to what was known before."""


class LoadError(Exception):
    """The model could not be loaded, in libllama's own words."""


@dataclass(frozen=True)
class Row:
    """A row of the last decode: logits for what follows position `position` of the sequence in `slot`."""

    slot: int
    position: int
    index: int  # row in the batch


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


_log = _Log()


def default_threads() -> int:
    """Engine threads: one core is left to the parent, since a third busy process ruins two spinning ones."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(1, cores - 1)


class Llama:
    """A loaded model with its context: `parallel` slots of `context_length` tokens each.

    Raises LoadError with libllama's words.
    """

    def __init__(self, path: Path, options: TextOptions, progress: Callable[[float], None]) -> None:
        C.llama_log_set(_log.callback, None)
        C.llama_backend_init()
        _log.errors.clear()
        gpu = bool(C.llama_supports_gpu_offload())
        gpu_layers = options.gpu_layers if options.gpu_layers is not None else (-1 if gpu else 0)
        self._model = self._load_model(path, gpu_layers, progress)
        self.vocab = C.llama_model_get_vocab(self._model)
        self.n_vocab = int(C.llama_vocab_n_tokens(self.vocab))
        if not C.llama_model_has_decoder(self._model):
            raise LoadError(f"{path.name} has no decoder: it cannot generate text")
        self.recurrent = bool(C.llama_model_is_recurrent(self._model) or C.llama_model_is_hybrid(self._model))
        self.n_swa = int(C.llama_model_n_swa(self._model))
        self.options = self._resolve(options, gpu and gpu_layers != 0, gpu_layers)
        self._ctx = self._new_context()
        self.context_length = min(self._wanted_ctx, int(C.llama_n_ctx_seq(self._ctx)))
        self._memory = C.llama_get_memory(self._ctx)
        self.device = "gpu" if gpu and gpu_layers != 0 else "cpu"
        self._batch = _Batch(self.options.batch or 512, self.options.parallel or 1)
        self._pieces = self._read_pieces()
        self.longest_piece = max(map(len, self._pieces), default=1)
        self.eog = frozenset(t for t in range(self.n_vocab) if C.llama_vocab_is_eog(self.vocab, t))

    # -- loading ------------------------------------------------------------------------------------------------------

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
            raise _log.failure(f"cannot load {path.name}")
        return int(model)

    def _resolve(self, asked: TextOptions, gpu: bool, gpu_layers: int) -> TextOptions:
        train = C.llama_model_n_ctx_train(self._model)
        batch = asked.batch or (2048 if gpu else 512)
        parallel = asked.parallel or 4
        return TextOptions(
            ctx=asked.ctx or min(train, 4096),
            parallel=parallel,
            batch=max(batch, 2 * parallel),  # room for prompts beside every slot's next token
            chunk=min(asked.chunk or (512 if gpu else 256), batch),
            threads=asked.threads or default_threads(),
            gpu_layers=gpu_layers,
            kv_layout=asked.kv_layout or "streams",
            kv_type=asked.kv_type or "f16",
            flash_attention=asked.flash_attention,
            backend_sampling=gpu if asked.backend_sampling is None else asked.backend_sampling,
            chat_template=asked.chat_template,
        )

    def _new_context(self) -> int:
        options = self.options
        self._wanted_ctx = options.ctx or 4096
        parallel = options.parallel or 1
        self.unified = options.kv_layout == "unified"
        params = C.llama_context_default_params()
        params.n_ctx = self._wanted_ctx if self.unified else self._wanted_ctx * parallel
        params.n_batch = params.n_ubatch = options.batch or 512
        params.n_ubatch = min(params.n_batch, 512)
        params.n_seq_max = parallel
        params.n_threads = params.n_threads_batch = options.threads or 1
        params.kv_unified = self.unified
        params.swa_full = False  # a full cache for every layer costs more than computing a window again
        params.type_k = params.type_v = KV_TYPES[options.kv_type or "f16"]
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
        params.no_perf = True
        ctx = C.llama_init_from_model(self._model, params)
        if not ctx:
            raise _log.failure("cannot make a context")
        return int(ctx)

    def close(self) -> None:
        """Free context and model."""
        if self._ctx:
            C.llama_free(self._ctx)
            C.llama_model_free(self._model)
            self._ctx = self._model = 0

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

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; empty for control tokens."""
        return self._pieces[token]

    def token_text(self, token: int) -> str:
        """A token's text as shown to people, control tokens included."""
        if piece := self._pieces[token]:
            return piece.decode("utf-8", "replace")
        text = C.llama_vocab_get_text(self.vocab, token)
        return text.decode("utf-8", "replace") if text else ""

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

    # -- the cache ----------------------------------------------------------------------------------------------------

    def clear(self, slot: int) -> None:
        """Forget a slot's tokens."""
        C.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def trim(self, slot: int, keep: int) -> bool:
        """Forget all but the first `keep` tokens; False when this kind of cache cannot (then nothing changed)."""
        return bool(C.llama_memory_seq_rm(self._memory, slot, keep, -1))

    def copy(self, source: int, target: int, keep: int) -> bool:
        """Make `target` hold the first `keep` tokens of `source`; False when the tail cannot be dropped."""
        self.clear(target)
        end = keep if self.unified and not self.recurrent else -1
        C.llama_memory_seq_cp(self._memory, source, target, -1, end)
        return end == keep or self.trim(target, keep)

    def holds(self, slot: int, computed: int, keep: int) -> bool:
        """Whether the first `keep` of a slot's `computed` tokens can be continued from, without the others."""
        if keep == computed:
            return True
        if self.recurrent:
            return False
        if self.n_swa == 0:
            return True
        oldest = int(C.llama_memory_seq_pos_min(self._memory, slot))
        return 0 <= oldest <= max(0, keep - self.n_swa)

    def computed(self, slot: int) -> int:
        """Tokens that the cache itself says a slot holds."""
        return int(C.llama_memory_seq_pos_max(self._memory, slot)) + 1

    # -- computing ----------------------------------------------------------------------------------------------------

    def decode(self, pieces: Sequence[Piece], tokens: Callable[[int], Sequence[int]]) -> list[Row]:
        """Compute `pieces` (sorted by slot); `tokens(slot)` gives a slot's token ids from position 0.

        Returns the rows that have logits, valid until the next decode. Raises CacheFull or DecodeFailed.
        """
        rows = self._batch.fill(pieces, tokens)
        _log.errors.clear()
        code: int = C.llama_decode(self._ctx, self._batch.struct)
        if code == DECODE_NO_ROOM:
            raise CacheFull
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code}: {'; '.join(_log.errors[-3:])}")
        return rows

    def logits(self, row: Row) -> F32:
        """Raw logits of a row, shape (n_vocab,): a view, valid until the next decode."""
        pointer = C.llama_get_logits_ith(self._ctx, row.index)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    @property
    def context(self) -> int:
        """The llama_context, for the sampler room."""
        return self._ctx


class _Batch:
    """One llama_batch over numpy arrays, filled by slices: no Python work per token."""

    def __init__(self, capacity: int, slots: int) -> None:
        self.token: I32 = np.zeros(capacity, np.int32)
        self.position: I32 = np.zeros(capacity, np.int32)
        self._counts: I32 = np.ones(capacity, np.int32)
        self._outputs: NDArray[np.int8] = np.zeros(capacity, np.int8)
        self._slot_ids: I32 = np.arange(slots, dtype=np.int32)
        self._slot_pointers: NDArray[np.uintp] = (
            self._slot_ids.ctypes.data + 4 * np.arange(slots, dtype=np.uintp)
        ).astype(np.uintp)
        self._pointers: NDArray[np.uintp] = np.zeros(capacity, np.uintp)
        self._steps: I32 = np.arange(capacity, dtype=np.int32)
        self.struct = C.llama_batch(
            n_tokens=0,
            token=self._as(self.token, C.llama_token),
            embd=None,
            pos=self._as(self.position, C.llama_pos),
            n_seq_id=self._as(self._counts, ctypes.c_int32),
            seq_id=self._as(self._pointers, ctypes.POINTER(C.llama_seq_id)),
            logits=self._as(self._outputs, ctypes.c_int8),
        )

    @staticmethod
    def _as(array: NDArray[np.generic], kind: type) -> object:
        return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))

    def fill(self, pieces: Sequence[Piece], tokens: Callable[[int], Sequence[int]]) -> list[Row]:
        rows: list[Row] = []
        at = 0
        for piece in pieces:
            end, start, count = at + piece.count, piece.start, piece.count
            self.token[at:end] = tokens(piece.slot)[start : start + count]
            self.position[at:end] = self._steps[:count] + start
            self._pointers[at:end] = self._slot_pointers[piece.slot]
            self._outputs[at:end] = piece.outputs == "all"
            if piece.outputs == "all":
                rows += [Row(piece.slot, start + i, at + i) for i in range(count)]
            elif piece.outputs == "last":
                self._outputs[end - 1] = 1
                rows.append(Row(piece.slot, start + count - 1, end - 1))
            at = end
        self.struct.n_tokens = at
        return rows
