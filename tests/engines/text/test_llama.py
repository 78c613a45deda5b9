"""The contact with libllama: what it computes, what its cache can do, how it refuses."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from oxlo_local.calls import TextOptions
from oxlo_local.engines.text.batcher import Piece
from oxlo_local.engines.text.llama import F32, CacheFull, DecodeFailed, Llama
from oxlo_local.engines.weights import LoadError
from oxlo_local.random_model import SPECIALS, Architecture

ModelPath = Callable[[Architecture], Path]
PROMPTS = [random.Random(i).choices(range(10, 400), k=64) for i in range(8)]


@pytest.fixture
def load(model_path: ModelPath) -> Iterator[Callable[..., Llama]]:
    loaded: list[Llama] = []

    def make(kind: Architecture = "llama", **options: object) -> Llama:
        wanted = {"ctx": 512, "parallel": 8, "batch": 512, "threads": 1} | options
        loaded.append(Llama(model_path(kind), TextOptions(**wanted), lambda _: None))  # type: ignore[arg-type]
        return loaded[-1]

    yield make
    for llama in loaded:
        llama.close()


def rounding(llama: Llama) -> float:
    """Largest difference of a logit between prompts computed alone and in one batch, by libllama itself."""
    alone: list[F32] = []
    for prompt in PROMPTS:
        llama.clear(0)
        (row,) = llama.decode([Piece(0, 0, 64, "last")], [prompt].__getitem__)
        alone.append(llama.logits(row).copy())
    llama.clear(0)
    rows = llama.decode([Piece(slot, 0, 64, "last") for slot in range(8)], lambda slot: PROMPTS[slot])
    return max(float(np.abs(llama.logits(row) - alone[row.slot]).max()) for row in rows)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mamba", "jamba"])
def test_a_batch_in_f32_differs_by_rounding_alone(load: Callable[..., Llama], kind: Architecture) -> None:
    # The tolerance of test_engine (1e-3) stands on this; gemma2's GELU comes from a table in f16.
    limit = 5e-4 if kind == "gemma2" else 1e-5
    assert rounding(load(kind, kv_type="f32", flash_attention=False)) < limit


def test_a_file_that_is_no_model_is_refused_in_libllamas_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really" * 10)
    with pytest.raises(LoadError, match=r"broken\.gguf: .*GGUF|broken\.gguf: .*gguf"):
        Llama(broken, TextOptions(), lambda _: None)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"none\.gguf"):
        Llama(tmp_path / "none.gguf", TextOptions(), lambda _: None)


def test_loading_reports_progress(model_path: ModelPath) -> None:
    seen: list[float] = []
    Llama(model_path("llama"), TextOptions(ctx=256, parallel=1), seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_text_and_tokens(load: Callable[..., Llama]) -> None:
    llama = load()
    text = "Once upon a time, größer than 日本 🙂\n"
    tokens = llama.tokenize(text, special=False, add_special=False)
    assert b"".join(map(llama.piece, tokens)).decode() == text
    marker = next(special for special in SPECIALS if special == "<|im_end|>")
    (end,) = llama.tokenize(marker, special=True, add_special=False)
    assert end in llama.eog
    assert llama.piece(end) == b""
    assert llama.token_text(end) == marker
    assert len(llama.tokenize(marker, special=False, add_special=False)) > 1
    assert llama.infill is not None


def test_a_token_beyond_the_vocabulary_fails_the_decode(load: Callable[..., Llama]) -> None:
    llama = load()
    with pytest.raises(DecodeFailed, match="invalid token"):
        llama.decode([Piece(0, 0, 1, "last")], lambda _: [10**6])


def test_a_full_unified_cache_says_so_and_keeps_what_it_has(load: Callable[..., Llama]) -> None:
    llama = load(kv_layout="unified", ctx=256, parallel=8)
    for slot in range(4):
        llama.decode([Piece(slot, 0, 64, "none")], lambda slot: PROMPTS[slot])
    with pytest.raises(CacheFull):
        llama.decode([Piece(4, 0, 64, "none")], lambda slot: PROMPTS[slot])
    assert [llama.computed(slot) for slot in range(5)] == [64, 64, 64, 64, 0]


def test_what_each_kind_of_cache_can_continue_from(load: Callable[..., Llama]) -> None:
    expected = {
        "llama": (True, True),
        "gemma2": (True, False),
        "mamba": (True, False),
        "jamba": (True, False),
    }
    for kind, (whole, part) in expected.items():
        llama = load(kind, ctx=2048, batch=32, parallel=1)
        prompt = PROMPTS[0] * 16
        for start in range(0, 1024, 32):
            llama.decode([Piece(0, start, 32, "none")], [prompt].__getitem__)
        assert llama.holds(0, 1024, 1024) is whole
        # 100 tokens back a window of 32 is long gone (its cache holds the window and one batch, padded to 256).
        assert llama.holds(0, 1024, 600) is part, kind
