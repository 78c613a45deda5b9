"""Random models load and decode in libllama as the architectures that they stand for."""

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from numpy.typing import NDArray

from oxlo_local import random_model
from oxlo_local.random_model import BOS, EOS, SHAPES, SPECIALS, Architecture, Shape

TEXT = "Once upon a time there was a kind dog who lived near the river and liked the rain."


class Model:
    """As much of libllama as these tests need: one context, one sequence."""

    def __init__(self, path: Path) -> None:
        options = llama_cpp.llama_model_default_params()
        options.use_mmap = False
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        assert self.model, f"libllama refuses {path.name}"
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        sizes = llama_cpp.llama_context_default_params()
        sizes.n_ctx, sizes.n_batch, sizes.n_ubatch = 1024, 1024, 32
        sizes.n_threads, sizes.n_threads_batch = 1, 1
        sizes.swa_full = False
        self.context = llama_cpp.llama_init_from_model(self.model, sizes)
        assert self.context
        self.memory = llama_cpp.llama_get_memory(self.context)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        raw = text.encode()
        found = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), found, len(found), special, special)
        return list(found[:count])

    def detokenize(self, tokens: list[int]) -> bytes:
        out = ctypes.create_string_buffer(64)
        text = b""
        for token in tokens:
            size = llama_cpp.llama_token_to_piece(self.vocab, token, out, len(out), 0, True)
            text += out.raw[:size]
        return text

    def logits(self, tokens: list[int], start: int = 0) -> NDArray[np.float32]:
        """Decode tokens at positions from `start` on; the logits after the last one, shape (vocab,)."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
            batch.logits[i] = i == len(tokens) - 1
        batch.n_tokens = len(tokens)
        assert llama_cpp.llama_decode(self.context, batch) == 0
        llama_cpp.llama_batch_free(batch)
        row = llama_cpp.llama_get_logits_ith(self.context, len(tokens) - 1)
        return np.ctypeslib.as_array(row, shape=(self.size,)).copy()

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self.memory, True)


@contextmanager
def loaded(path: Path) -> Iterator[Model]:
    model = Model(path)
    yield model
    llama_cpp.llama_free(model.context)
    llama_cpp.llama_model_free(model.model)


@pytest.fixture(scope="module", params=["llama", "gemma2", "mamba", "jamba"])
def tiny(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Model]]:
    architecture: Architecture = request.param
    path = tmp_path_factory.mktemp("models") / f"{architecture}.gguf"
    random_model.write(path, architecture)
    with loaded(path) as model:
        yield architecture, model


def test_each_architecture_has_its_kind_of_memory(tiny: tuple[str, Model]) -> None:
    architecture, model = tiny
    facts = (
        llama_cpp.llama_model_is_recurrent(model.model),
        llama_cpp.llama_model_is_hybrid(model.model),
        llama_cpp.llama_model_n_swa(model.model),
    )
    kinds = {
        "llama": (False, False, 0),
        "gemma2": (False, False, Shape().window),
        "mamba": (True, False, 0),
        "jamba": (False, True, 0),
    }
    assert facts == kinds[architecture]


def test_each_architecture_decodes_in_pieces_as_in_one(tiny: tuple[str, Model]) -> None:
    _, model = tiny
    tokens = model.tokenize(TEXT * 3)
    model.clear()
    whole = model.logits(tokens)
    model.clear()
    model.logits(tokens[:50])
    pieces = model.logits(tokens[50:], start=50)
    assert np.isfinite(whole).all() and whole.std() > 0.3
    assert np.abs(whole - pieces).max() < 0.05


def test_the_far_history_matters(tiny: tuple[str, Model]) -> None:
    """Otherwise a test of prefix reuse could not fail. 40 tokens back: beyond one sliding window of 32."""
    _, model = tiny
    tokens = model.tokenize(TEXT * 3)
    model.clear()
    true = model.logits(tokens[:80])
    tokens[39] += 1
    model.clear()
    false = model.logits(tokens[:80])
    assert np.abs(true - false).max() > 0.01


def test_a_tail_can_be_removed_only_where_there_is_a_whole_cache(tiny: tuple[str, Model]) -> None:
    """And gemma2 says that it removed one while cells before it are gone: 500 tokens through a cache of 256 cells."""
    architecture, model = tiny
    tokens = model.tokenize(TEXT * 12)[:500]
    model.clear()
    fresh = model.logits([*tokens[:60], 300])
    model.clear()
    model.logits(tokens)
    oldest = llama_cpp.llama_memory_seq_pos_min(model.memory, 0)
    removed = llama_cpp.llama_memory_seq_rm(model.memory, 0, 60, -1)
    assert removed is (architecture in ("llama", "gemma2"))
    assert oldest == 0 if architecture == "llama" else oldest > 60
    if architecture == "llama":
        assert np.abs(model.logits([300], start=60) - fresh).max() < 0.05


def test_the_made_up_vocabulary_keeps_every_byte(tiny: tuple[str, Model]) -> None:
    _, model = tiny
    text = "Grüße, 世界! 🦙 def f(x):\n\treturn x  # 12 + 34"
    assert model.detokenize(model.tokenize(text)) == text.encode()
    assert len(model.tokenize(TEXT)) < len(TEXT) / 1.5
    assert model.tokenize(f"<|im_start|>user{EOS}", special=True)[:2] == [
        SPECIALS.index(BOS),
        SPECIALS.index("<|im_start|>"),
    ]
    assert llama_cpp.llama_vocab_is_eog(model.vocab, SPECIALS.index(EOS))
    assert llama_cpp.llama_vocab_fim_mid(model.vocab) == SPECIALS.index("<|fim_middle|>")
    assert b"<|im_start|>" in (llama_cpp.llama_model_chat_template(model.model, None) or b"")


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf")]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        random_model.write(path, seed=seed)
    a, b, c = (path.read_bytes() for path in paths)
    assert a == b
    assert a != c


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mamba", "jamba"])
def test_quantised_models_decode(tmp_path: Path, architecture: Architecture) -> None:
    path = tmp_path / "q8.gguf"
    random_model.write(path, architecture, quant="Q8_0")
    with loaded(path) as model:
        logits = model.logits(model.tokenize(TEXT))
    assert np.isfinite(logits).all() and logits.std() > 0.3


def test_a_vocabulary_comes_from_another_file(tmp_path: Path) -> None:
    random_model.write(tmp_path / "source.gguf", shape=Shape(vocab=700), chat_template="{{ messages }}")
    random_model.write(tmp_path / "copy.gguf", vocab_from=tmp_path / "source.gguf")
    with loaded(tmp_path / "copy.gguf") as model:
        assert model.size == 700
        assert model.detokenize(model.tokenize(TEXT)) == TEXT.encode()
        assert llama_cpp.llama_model_chat_template(model.model, None) == b"{{ messages }}"


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("150m", 149e6, 153e6), ("0.5b", 0.48e9, 0.51e9), ("8b", 7.9e9, 8.1e9), ("32b", 32e9, 33e9)],
)
def test_a_shape_has_the_weights_of_its_name(name: str, low: float, high: float) -> None:
    shape = SHAPES[name]
    tensors = random_model.layout("llama", shape, shape.vocab)
    assert low < sum(math.prod(tensor.shape) for tensor in tensors) < high
    random_model.check("llama", shape)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_K", "Q6_K"])
def test_a_drawn_matrix_has_the_spread_of_its_inputs(kind: random_model.Stored) -> None:
    tensor = random_model.Tensor("blk.0.ffn_up.weight", (64, 512))
    drawn = random_model.draw(tensor, kind, np.random.default_rng(0))
    weights = gguf.quants.dequantize(drawn, gguf.GGMLQuantizationType[kind])
    assert weights.size == 64 * 512
    assert abs(weights.mean()) < 0.05 / 512**0.5  # the integers of Q6_K lie around -0.5
    assert weights.std() == pytest.approx(1 / 512**0.5, rel=0.03)


@pytest.mark.parametrize("quant", ["F16", "Q8_0", "Q4_K_M"])
def test_every_form_loads_and_computes(tmp_path: Path, quant: random_model.Quant) -> None:
    path = tmp_path / "x.gguf"
    random_model.write(path, shape=Shape(d=256, layers=8, heads=4, kv_heads=2, ff=512), quant=quant)
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds == {"F16": {"F32", "F16"}, "Q8_0": {"F32", "Q8_0"}, "Q4_K_M": {"F32", "Q4_K", "Q6_K"}}[quant]
    with loaded(path) as model:
        logits = model.logits(model.tokenize(TEXT)[:8])
        assert np.isfinite(logits).all() and 0.3 < logits.std() < 3


def test_rows_that_make_no_large_block_are_stored_in_a_smaller_one() -> None:
    shape = SHAPES["0.5b"]
    kinds = {
        random_model.stored_as(tensor, "Q4_K_M", shape)
        for tensor in random_model.layout("llama", shape, shape.vocab)
    }
    assert kinds == {"F32", "Q8_0", "Q4_K", "Q6_K"}  # 896 inputs are no whole 256s, 4,864 are


def test_the_150m_model_is_written_and_loads(tmp_path: Path) -> None:
    path = tmp_path / "150m.gguf"
    assert random_model.main(["--shape", "150m", str(path)]) == 0
    assert path.stat().st_size < 200e6
    with loaded(path) as model:
        assert model.size == 151_936
        assert 2.3 < len(TEXT) / len(model.tokenize(TEXT)) < 5
        assert np.isfinite(model.logits(model.tokenize(TEXT)[:4])).all()


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        (Shape(vocab=100), "262"),
        (Shape(vocab=2_000_000), "at most"),
        (Shape(heads=5), "heads"),
        (Shape(kv_heads=3), "multiple"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(tmp_path: Path, shape: Shape, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        random_model.write(tmp_path / "x.gguf", shape=shape)


def test_a_file_without_vocabulary_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare.gguf"
    writer = gguf.GGUFWriter(bare, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert random_model.main(["--vocab-from", str(bare), str(tmp_path / "x.gguf")]) == 1
    assert "no vocabulary" in capsys.readouterr().err
