"""A model whose answer to a token list is one vector: the contact with libllama for embeddings and reranking.

libllama's rules that shape this room:

1. Attention that looks both ways cannot be cut into pieces: the whole batch is one graph, and a batch longer than
   n_ubatch aborts the process. So n_ctx = n_batch = n_ubatch = `capacity`, and no step is larger.
2. An input longer than the model's position table reads beyond it: `longest` never exceeds what the file was made for.
3. Models made from a text model (attention backwards only) keep a KV cache, which is emptied before each step.
"""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import llama_cpp.llama_cpp as C
import numpy as np
from numpy.typing import NDArray

from oxlo_local.calls import EmbeddingOptions
from oxlo_local.engines.weights import FLASH_ATTENTION, LoadError, Weights, default_threads, log

F32 = NDArray[np.float32]

POOLING = {None: -1, "mean": 1, "cls": 2, "last": 3}  # llama_pooling_type; -1 = what the file says
RANK = 4
USUAL_CONTEXT = 8192
STEP_ON_CPU, STEP_ON_GPU = (
    512,
    2048,
)  # tokens: beyond that attention across inputs costs more than a full step saves
SEQUENCES_MAX = 256  # libllama's own bound
TOKENS_EACH = 4  # of the shortest inputs worth packing


class ComputeFailed(Exception):
    """The step could not be computed; nothing of it is known."""


class Pooled(Weights):
    """A loaded model with its context. Inputs have at most `longest` tokens, a step `capacity`, for `sequences` inputs.

    `ranks` tells a reranker, `width` how many numbers a vector has. Raises LoadError with libllama's words.
    """

    def __init__(self, path: Path, options: EmbeddingOptions, progress: Callable[[float], None]) -> None:
        gpu = bool(C.llama_supports_gpu_offload())
        gpu_layers = options.gpu_layers if options.gpu_layers is not None else (-1 if gpu else 0)
        super().__init__(path, gpu_layers, progress)
        train = int(C.llama_model_n_ctx_train(self._model))
        self.longest = min(train, options.ctx or USUAL_CONTEXT)
        usual = STEP_ON_CPU if self.device == "cpu" else STEP_ON_GPU
        self.capacity = max(self.longest, options.batch or usual)
        self.sequences = min(SEQUENCES_MAX, max(1, self.capacity // TOKENS_EACH))
        self._ctx = self._new_context(options)
        pooling = int(C.llama_pooling_type(self._ctx))
        if pooling == 0:
            raise LoadError(
                f"{path.name} does not say how a text's vector is made of its tokens: give it an entry in models.toml "
                'with kind = "embedding" and embedding = { dimensions = ..., pooling = "mean" } (or "cls", "last")'
            )
        self.ranks = pooling == RANK
        self.width = self._head() if self.ranks else int(C.llama_model_n_embd_out(self._model))
        self._memory = C.llama_get_memory(self._ctx)
        self._run = C.llama_decode if C.llama_model_has_decoder(self._model) else C.llama_encode
        prompt = C.llama_model_chat_template(self._model, b"rerank") if self.ranks else None
        self._rerank_prompt = _around(prompt.decode("utf-8", "replace")) if prompt else None

    def _new_context(self, options: EmbeddingOptions) -> int:
        params = C.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.capacity
        params.n_seq_max = self.sequences
        params.n_threads = params.n_threads_batch = options.threads or default_threads()
        params.embeddings = True
        said = self.meta(f"{self.meta('general.architecture')}.pooling_type")
        params.pooling_type = POOLING[options.pooling if said in (None, "0") else None]
        params.kv_unified = True  # a sequence may fill the whole step
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
        params.no_perf = True
        ctx = C.llama_init_from_model(self._model, params)
        if not ctx:
            raise log.failure("cannot make a context")
        return int(ctx)

    def _head(self) -> int:
        """Outputs of a reranker's head, and which of them means yes."""
        outputs = int(C.llama_model_n_cls_out(self._model))
        labels = [C.llama_model_cls_label(self._model, index) or b"" for index in range(outputs)]
        self._yes = labels.index(b"yes") if b"yes" in labels else 0
        if outputs > 1 and b"yes" not in labels:
            raise LoadError(f"its head gives {outputs} classes, none of them 'yes': it does not rank")
        return outputs

    def close(self) -> None:
        """Free context and weights."""
        if self._ctx:
            C.llama_free(self._ctx)
            self._ctx = 0
        super().close()

    # -- tokens -------------------------------------------------------------------------------------------------------

    def hopeless(self, text: str) -> bool:
        """Whether no tokenizer could make the text fit, which spares tokenising megabytes. False where unknown.

        Vocabularies that have one token for any unknown word (WordPiece, unigram) have no longest token.
        """
        bounded = C.llama_vocab_type(self.vocab) in (C.LLAMA_VOCAB_TYPE_BPE, C.LLAMA_VOCAB_TYPE_SPM)
        return bounded and len(text) // self.longest_piece >= self.longest

    def pair(self, query: str, document: str) -> list[int]:
        """Query and document as the reranker wants them: by its own prompt, else with separators as BERT has them."""
        if self._rerank_prompt is not None:
            before, middle, after = self._rerank_prompt
            texts = ((before, True), (query, False), (middle, True), (document, False), (after, True))
            return [t for text, special in texts for t in self._plain(text, special=special)]
        end = self.eos if self.eos >= 0 else self._sep
        between = [end] if C.llama_vocab_get_add_eos(self.vocab) else []
        separator = [self._sep] if C.llama_vocab_get_add_sep(self.vocab) else []
        begin = [self.bos] if self.adds_bos else []
        return [*begin, *self._plain(query), *between, *separator, *self._plain(document), *between]

    @property
    def _sep(self) -> int:
        return int(C.llama_vocab_sep(self.vocab))

    def _plain(self, text: str, *, special: bool = False) -> list[int]:
        return self.tokenize(text, special=special, add_special=False) if text else []

    # -- computing ----------------------------------------------------------------------------------------------------

    def compute(self, inputs: Sequence[Sequence[int]]) -> F32:
        """One row for each input, shape (inputs, width), as the model gives it. Raises ComputeFailed.

        At most `sequences` inputs of at most `capacity` tokens in all, none of them empty.
        """
        counts = [len(tokens) for tokens in inputs]
        total = sum(counts)
        assert 0 < total <= self.capacity and 0 < len(inputs) <= self.sequences and min(counts) > 0
        if self._memory:
            C.llama_memory_clear(self._memory, False)
        token = np.concatenate([np.asarray(tokens, np.int32) for tokens in inputs])
        position = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
        slot = np.repeat(np.arange(len(inputs), dtype=np.int32), counts)
        pointer = (slot.ctypes.data + 4 * np.arange(total, dtype=np.uintp)).astype(np.uintp)
        ones = np.ones(total, np.int32)
        outputs = np.ones(total, np.int8)
        batch = C.llama_batch(
            n_tokens=total,
            token=_as(token, C.llama_token),
            embd=None,
            pos=_as(position, C.llama_pos),
            n_seq_id=_as(ones, ctypes.c_int32),
            seq_id=_as(pointer, ctypes.POINTER(C.llama_seq_id)),
            logits=_as(outputs, ctypes.c_int8),
        )
        log.errors.clear()
        code: int = self._run(self._ctx, batch)
        if code != 0:
            raise ComputeFailed(f"libllama returned {code}: {'; '.join(log.errors[-3:])}")
        rows = [C.llama_get_embeddings_seq(self._ctx, index) for index in range(len(inputs))]
        return np.stack([np.ctypeslib.as_array(row, shape=(self.width,)) for row in rows])

    def relevance(self, row: F32) -> float:
        """A row of a reranker as one number, 0 to 1: a head with one output gives a logit, others give shares."""
        value = float(row[self._yes])
        return value if self.width > 1 else float(1 / (1 + np.exp(-np.float64(value))))


def _as(array: NDArray[np.generic], kind: type) -> object:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


def _around(prompt: str) -> tuple[str, str, str]:
    """A reranker's prompt without its two places, in this order: {query}, {document}. Raises LoadError for others."""
    before, query, rest = prompt.partition("{query}")
    middle, document, after = rest.partition("{document}")
    if not (query and document):
        raise LoadError("its rerank prompt has no {query} followed by a {document}")
    return before, middle, after
