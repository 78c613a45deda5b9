"""The only contact with libmtmd: load an image encoder, cut an image into chunks, make rows of a chunk.

libmtmd turns an image into chunks: marker tokens of the model's own around it (and between its tiles), and runs of
rows, which are embeddings as wide as the text model's. Cutting (resizing, tiling, counting) is quick and may happen on
several threads; encoding takes long and is one at a time. An encoder asks `between`, on the encoding thread, whether to
go on: its graph is computed a few nodes at a time, or one at a time while others want the cores.
"""

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import llama_cpp.llama_cpp as C
import llama_cpp.mtmd_cpp as M
import numpy as np
from numpy.typing import NDArray

from oxlo_local.engines.text.pixels import EDGE, Pixels
from oxlo_local.engines.text.runs import I32, Run
from oxlo_local.engines.weights import LoadError, log

F32 = NDArray[np.float32]

FEW = 8  # nodes of the graph that are computed in one go; a layer has some 30
AXES = 4  # numbers that make a row's position under M-RoPE: time, height, width, one unused


@dataclass(frozen=True)
class Chunks:
    """An image as libmtmd has cut it: token lists and runs in turn. `handles` are what the runs are encoded from."""

    parts: list[list[int] | Run]
    handles: list[int]
    owner: "_Owner"


@dataclass(eq=False)
class _Owner:
    """Frees libmtmd's list of chunks with the last that holds on to it."""

    pointer: int

    def __post_init__(self) -> None:
        weakref.finalize(self, M.mtmd_input_chunks_free, self.pointer)


class Stopped(Exception):
    """The encoding was given up half-way, because `between` said so."""


class Eye:
    """A loaded encoder for one text model. Raises LoadError with libmtmd's words.

    `whole`: the model looks at all rows of a run at once, so that they have to be in one batch; `most` = the largest
    run there can be (0 where it does not matter).
    """

    def __init__(self, path: Path, model: int, *, gpu: bool, threads: int, width: int) -> None:
        self._width = width
        self._between: Callable[[], tuple[bool, bool]] | None = None
        self._nodes = self._slice = 0
        self._stopped = False
        self._callback = C.ggml_backend_sched_eval_callback(self._evaluated)
        M.mtmd_helper_log_set(log.callback, None)
        log.errors.clear()
        params = M.mtmd_context_params_default()
        params.use_gpu = gpu
        params.n_threads = threads
        params.print_timings = False
        params.warmup = True
        params.cb_eval = self._callback
        self.threads = threads
        self._context = M.mtmd_init_from_file(str(path).encode(), model, params)
        if not self._context:
            raise log.failure(f"cannot load the image encoder {path.name}")
        if not M.mtmd_support_vision(self._context):
            self.close()
            raise LoadError(f"{path.name} is no image encoder")
        self.whole = bool(M.mtmd_decode_use_non_causal(self._context, None))
        self.mrope = bool(M.mtmd_decode_use_mrope(self._context))
        self.most = self._largest() if self.whole else 0

    def close(self) -> None:
        """Free the encoder."""
        if self._context:
            M.mtmd_free(self._context)
            self._context = 0

    def _largest(self) -> int:
        sizes = [self._cut(edge, height, None) for edge in (64, EDGE) for height in (64, EDGE)]
        return max(part.count for chunks in sizes for part in chunks.parts if isinstance(part, Run))

    # -- cutting ------------------------------------------------------------------------------------------------------

    def cut(self, pixels: Pixels) -> Chunks:
        """An image as the model will be given it. Raises ValueError where the encoder cannot take it."""
        return self._cut(pixels.width, pixels.height, pixels.rgb)

    def _cut(self, width: int, height: int, rgb: bytes | None) -> Chunks:
        data = None if rgb is None else ctypes.cast(ctypes.c_char_p(rgb), ctypes.POINTER(ctypes.c_uint8))
        bitmap = M.mtmd_bitmap_init(width, height, data)
        owner = _Owner(M.mtmd_input_chunks_init())
        marker = M.mtmd_default_marker()
        text = M.mtmd_input_text(marker, len(marker), False, True)
        try:
            bitmaps = (M.mtmd_bitmap_p_ctypes * 1)(bitmap)
            code = M.mtmd_tokenize(self._context, owner.pointer, ctypes.byref(text), bitmaps, 1)
        finally:
            M.mtmd_bitmap_free(bitmap)
        if code != 0:
            raise ValueError(f"the encoder cannot take an image of {width} x {height} pixels")
        pointers = [
            M.mtmd_input_chunks_get(owner.pointer, i) for i in range(M.mtmd_input_chunks_size(owner.pointer))
        ]
        parts = [self._part(pointer) for pointer in pointers]
        handles = [pointer for pointer, part in zip(pointers, parts, strict=True) if isinstance(part, Run)]
        return Chunks(parts, handles, owner)

    def _part(self, chunk: int) -> list[int] | Run:
        if M.mtmd_input_chunk_get_type(chunk) == M.MTMD_INPUT_CHUNK_TYPE_TEXT:
            size = ctypes.c_size_t()
            tokens = M.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(size))
            return list(tokens[: size.value])
        count = int(M.mtmd_input_chunk_get_n_tokens(chunk))
        advance = int(M.mtmd_input_chunk_get_n_pos(chunk))
        if not self.mrope:
            return Run(count, advance)
        # Asked for two beginnings, since not every number moves along with the beginning.
        at_0, at_1 = (self._positions(chunk, count, start) for start in (0, 1))
        return Run(count, advance, at_0, at_1 - at_0)

    @staticmethod
    def _positions(chunk: int, count: int, start: int) -> I32:
        """Shape (AXES, count): time, height, width and the unused one of each row."""
        found = (M.mtmd_decoder_pos * count)()
        M.mtmd_helper_image_get_decoder_pos(M.mtmd_input_chunk_get_tokens_image(chunk), start, found)
        numbers = np.frombuffer(found, np.uint32).reshape(count, AXES).astype(np.int32)
        return np.ascontiguousarray(numbers[:, (0, 2, 1, 3)].T)

    # -- encoding -----------------------------------------------------------------------------------------------------

    def encode(self, handle: int, run: Run, between: Callable[[], tuple[bool, bool]]) -> F32:
        """The rows of a run, shape (count, width). One at a time, never on two threads.

        `between` is called between nodes of the graph, now and then; it may take its time, and says whether to go on
        and whether it wants to be asked after each node. Raises Stopped, or RuntimeError where the encoder fails.
        """
        self._between, self._stopped = between, False
        self._nodes, self._slice = 0, FEW
        try:
            code = M.mtmd_encode_chunk(self._context, handle)
        finally:
            self._between = None
        if self._stopped:
            raise Stopped
        if code != 0:
            raise RuntimeError(f"the image encoder failed: {'; '.join(log.errors[-3:])}")
        out = M.mtmd_get_output_embd(self._context)
        rows = np.ctypeslib.as_array(out, shape=(run.count, self._width)).copy()
        if not np.isfinite(rows).all():
            raise RuntimeError("the image encoder gave numbers that are none")
        return rows

    def _evaluated(self, tensor: object, ask: bool, _: object) -> bool:
        """libmtmd asks before each node whether to stop behind it (`ask`), and after such a one whether to go on."""
        if self._between is None:
            return not ask
        if ask:
            self._nodes += 1
            return self._nodes >= self._slice
        go_on, often = self._between()
        self._nodes, self._slice, self._stopped = 0, 1 if often else FEW, not go_on
        return go_on
