"""The only contact with libllama: load a model, decode batches, move KV cache between sequences, tokenise.

libllama's rules that shape this room (all of them abort the process or spoil the cache silently when broken):

1. A batch is packed into one graph only where sequence ids follow each other upwards, so rows come sorted by slot.
2. With streams (kv_unified = False) a copy between sequences is a copy of the whole stream, carried out at the next
   decode; the destination's old content is gone. The tail is trimmed after it.
3. Recurrent and hybrid models cannot drop a part of a sequence. Sliding-window ones say that they can while the
   window's old cells are gone: `holds` looks before `trim` is asked.
4. A return value of 1 from llama_decode means "no room" and leaves the cache as it was; below -1 the part already
   computed stays, so the caller trims every sequence of the batch back.
5. A batch holds tokens or rows (embeddings, of an image), never both. A model that looks at an image as a whole must
   get all its rows in one physical batch, with the causal mask off.

This file does not know about calls, sequences' states or scheduling.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_cpp.llama_cpp as C
import numpy as np
from numpy.typing import NDArray

from oxlo_local.calls import TextOptions
from oxlo_local.engines.text.batcher import Piece
from oxlo_local.engines.text.eye import Eye
from oxlo_local.engines.weights import FLASH_ATTENTION, LoadError, Weights, default_threads, log

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # ggml_type numbers
DECODE_NO_ROOM = 1


class CacheFull(Exception):
    """No free cells for this batch; the cache is as it was."""


class DecodeFailed(Exception):
    """The batch could not be computed; its sequences have to be trimmed back to what was known before."""


@dataclass(frozen=True)
class Row:
    """A row of the last decode: logits for what follows position `position` of the sequence in `slot`."""

    slot: int
    position: int
    index: int  # row in the batch


class Llama(Weights):
    """A loaded model with its context: `parallel` slots of `context_length` tokens each.

    `whole_windows`: layers with a sliding window keep all cells, so that a sequence can be cut anywhere. Raises
    LoadError with libllama's words.
    """

    def __init__(
        self,
        path: Path,
        options: TextOptions,
        progress: Callable[[float], None],
        *,
        whole_windows: bool = False,
    ) -> None:
        gpu = bool(C.llama_supports_gpu_offload())
        gpu_layers = options.gpu_layers if options.gpu_layers is not None else (-1 if gpu else 0)
        super().__init__(path, gpu_layers, progress)
        if not C.llama_model_has_decoder(self._model):
            raise LoadError(f"{path.name} has no decoder: it cannot generate text")
        self.recurrent = bool(C.llama_model_is_recurrent(self._model) or C.llama_model_is_hybrid(self._model))
        self._whole_windows = whole_windows
        self.n_swa = 0 if whole_windows else int(C.llama_model_n_swa(self._model))
        self.width = int(C.llama_model_n_embd_inp(self._model))
        self.eye = self._open_eye(options, gpu and gpu_layers != 0)
        self.options = self._resolve(options, gpu and gpu_layers != 0, gpu_layers)
        self._ctx = self._new_context()
        self.mixes = self.unified and not self.recurrent
        """Whether one graph takes pieces of different lengths."""
        self.context_length = min(self._wanted_ctx, int(C.llama_n_ctx_seq(self._ctx)))
        self._memory = C.llama_get_memory(self._ctx)
        self._batch = _Batch(self.options.batch or 512, self.options.parallel or 1)
        self._row_batch = _RowBatch()

    # -- loading ------------------------------------------------------------------------------------------------------

    def _open_eye(self, options: TextOptions, gpu: bool) -> Eye | None:
        if options.mmproj is None:
            return None
        threads = options.threads or default_threads()
        return Eye(Path(options.mmproj), self._model, gpu=gpu, threads=threads, width=self.width)

    def _resolve(self, asked: TextOptions, gpu: bool, gpu_layers: int) -> TextOptions:
        train = C.llama_model_n_ctx_train(self._model)
        batch = asked.batch or (2048 if gpu else 512)
        parallel = asked.parallel or 4
        return TextOptions(
            ctx=asked.ctx or min(train, 4096),
            parallel=parallel,
            # Room for prompts beside every slot's next token, and for an image in one piece.
            batch=max(batch, 2 * parallel, self.eye.most if self.eye is not None else 0),
            chunk=min(asked.chunk or (512 if gpu else 256), batch),
            threads=asked.threads or default_threads(),
            gpu_layers=gpu_layers,
            kv_layout=asked.kv_layout or "streams",
            kv_type=asked.kv_type or "f16",
            flash_attention=asked.flash_attention,
            together=asked.together,
            # A sampler in the graph draws one token, so that no guess can be checked.
            backend_sampling=gpu and asked.speculation in (None, "none") and asked.draft is None
            if asked.backend_sampling is None
            else asked.backend_sampling,
            speculation=asked.speculation,
            draft=asked.draft,
            guesses=asked.guesses,
            chat_template=asked.chat_template,
            mmproj=asked.mmproj,
            allow_remote_media=asked.allow_remote_media,
        )

    def _new_context(self) -> int:
        options = self.options
        self._wanted_ctx = options.ctx or 4096
        parallel = options.parallel or 1
        self.unified = options.kv_layout == "unified"
        params = C.llama_context_default_params()
        params.n_ctx = self._wanted_ctx if self.unified else self._wanted_ctx * parallel
        params.n_batch = params.n_ubatch = options.batch or 512
        params.n_ubatch = min(params.n_batch, max(512, self.eye.most if self.eye is not None else 0))
        params.n_seq_max = parallel
        params.n_threads = params.n_threads_batch = options.threads or 1
        params.kv_unified = self.unified
        # A full cache for every layer costs more than computing a window again, as a rule.
        params.swa_full = self._whole_windows
        params.type_k = params.type_v = KV_TYPES[options.kv_type or "f16"]
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
        params.no_perf = True
        ctx = C.llama_init_from_model(self._model, params)
        if not ctx:
            raise log.failure("cannot make a context")
        return int(ctx)

    def close(self) -> None:
        """Free context, encoder and model."""
        if self._ctx:
            C.llama_free(self._ctx)
            self._ctx = 0
        if self.eye is not None:
            self.eye.close()
        super().close()

    # -- the cache ----------------------------------------------------------------------------------------------------

    def clear(self, slot: int) -> None:
        """Forget a slot's tokens."""
        C.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def trim(self, slot: int, keep: int) -> bool:
        """Forget what lies from position `keep` on; False when this kind of cache cannot (then nothing changed)."""
        return bool(C.llama_memory_seq_rm(self._memory, slot, keep, -1))

    def copy(self, source: int, target: int, keep: int) -> bool:
        """Make `target` hold what `source` has before position `keep`; False when the tail cannot be dropped."""
        self.clear(target)
        end = keep if self.unified and not self.recurrent else -1
        C.llama_memory_seq_cp(self._memory, source, target, -1, end)
        return end == keep or self.trim(target, keep)

    def holds(self, slot: int, computed: int, keep: int) -> bool:
        """Whether the first `keep` of a slot's `computed` positions can be continued from, without the others."""
        if keep == computed:
            return True
        if self.recurrent:
            return False
        if self.n_swa == 0:
            return True
        oldest = int(C.llama_memory_seq_pos_min(self._memory, slot))
        return 0 <= oldest <= max(0, keep - self.n_swa)

    def computed(self, slot: int) -> int:
        """Positions that the cache itself says a slot holds."""
        return int(C.llama_memory_seq_pos_max(self._memory, slot)) + 1

    # -- computing ----------------------------------------------------------------------------------------------------

    def decode(self, pieces: Sequence[Piece], tokens: Callable[[int], Sequence[int]]) -> list[Row]:
        """Compute `pieces` (sorted by slot); `tokens(slot)` gives a slot's token ids from position 0.

        Returns the rows that have logits, valid until the next decode. Raises CacheFull or DecodeFailed.
        """
        rows = self._batch.fill(pieces, tokens)
        self._decode(self._batch.struct)
        return rows

    def decode_rows(self, piece: Piece, embeddings: F32, positions: I32 | None) -> list[Row]:
        """Compute a piece of an image. `embeddings` has shape (piece.count, width), C-contiguous.

        `positions` has shape (4, piece.count) under M-RoPE; None = one behind the other. Otherwise as `decode`.
        """
        assert self.eye is not None
        self._row_batch.fill(piece, embeddings, positions)
        if self.eye.whole:
            C.llama_set_causal_attn(self._ctx, False)
        try:
            self._decode(self._row_batch.struct)
        finally:
            if self.eye.whole:
                C.llama_set_causal_attn(self._ctx, True)
        last = piece.count - 1
        return [Row(piece.slot, piece.start + last, last)] if piece.outputs == "last" else []

    def _decode(self, batch: C.llama_batch) -> None:
        log.errors.clear()
        code: int = C.llama_decode(self._ctx, batch)
        if code == DECODE_NO_ROOM:
            raise CacheFull
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code}: {'; '.join(log.errors[-3:])}")

    def wait(self) -> None:
        """Until the last decode is computed; reading its logits waits by itself."""
        C.llama_synchronize(self._ctx)

    def logits(self, row: Row) -> F32:
        """Raw logits of a row, shape (n_vocab,): a view, valid until the next decode."""
        pointer = C.llama_get_logits_ith(self._ctx, row.index)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    @property
    def context(self) -> int:
        """The llama_context, for the sampler room."""
        return self._ctx


def _pointer(array: NDArray[np.generic], kind: type) -> object:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


class _RowBatch:
    """One llama_batch of rows; an image comes now and then, so its arrays are made anew for each."""

    def __init__(self) -> None:
        self.struct = C.llama_batch()

    def fill(self, piece: Piece, embeddings: F32, positions: I32 | None) -> None:
        count = piece.count
        if positions is None:
            positions = np.arange(count, dtype=np.int32) + np.int32(piece.start - piece.lag)
        outputs = np.zeros(count, np.int8)
        outputs[-1] = piece.outputs == "last"
        slot = np.full(1, piece.slot, np.int32)
        pointers = np.full(count, slot.ctypes.data, np.uintp)
        ones = np.ones(count, np.int32)
        positions = np.ascontiguousarray(positions)
        # libllama is given their addresses only.
        self._held = (embeddings, positions, outputs, slot, pointers, ones)
        self.struct = C.llama_batch(
            n_tokens=count,
            token=None,
            embd=_pointer(embeddings, ctypes.c_float),
            pos=_pointer(positions, C.llama_pos),
            n_seq_id=_pointer(ones, ctypes.c_int32),
            seq_id=_pointer(pointers, ctypes.POINTER(C.llama_seq_id)),
            logits=_pointer(outputs, ctypes.c_int8),
        )


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
        return _pointer(array, kind)

    def fill(self, pieces: Sequence[Piece], tokens: Callable[[int], Sequence[int]]) -> list[Row]:
        rows: list[Row] = []
        at = 0
        for piece in pieces:
            end, start, count = at + piece.count, piece.start, piece.count
            self.token[at:end] = tokens(piece.slot)[start : start + count]
            self.position[at:end] = self._steps[:count] + (start - piece.lag)
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
