"""Models of random numbers are models: faster-whisper itself loads and runs them."""

from pathlib import Path

import numpy as np
import pytest
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer

from oxlo_local.random_whisper import SIZES, VOCABULARY, Shape, tokenizer_of, write


@pytest.mark.parametrize("multilingual", [True, False])
def test_the_library_runs_it(multilingual: bool, tmp_path: Path) -> None:
    write(tmp_path, Shape(multilingual=multilingual))
    model = WhisperModel(str(tmp_path), device="cpu", compute_type="int8", cpu_threads=1)
    assert model.model.is_multilingual == multilingual
    features = model.feature_extractor(np.zeros(40_000, np.float32))[..., :800]
    padded = np.pad(features, ((0, 0), (0, 800 - features.shape[1])))
    tokenizer = Tokenizer(model.hf_tokenizer, multilingual, task="transcribe", language="en")
    (found,) = model.model.generate(
        model.encode(padded), [tokenizer.sot_sequence], beam_size=1, max_length=64
    )
    assert found.sequences_ids[0]


def test_the_same_seed_is_the_same_model(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(tmp_path / folder, Shape(multilingual=False), seed=seed)
    a, b, c = ((tmp_path / folder / "model.bin").read_bytes() for folder in "abc")
    assert a == b != c


def test_the_vocabulary_is_as_large_as_whispers() -> None:
    assert tokenizer_of(SIZES["tiny"]).get_vocab_size() == VOCABULARY


def test_a_model_that_takes_everything_for_one_text_is_sure_of_it(tmp_path: Path) -> None:
    write(tmp_path, Shape(window=30, said=40))
    model = WhisperModel(str(tmp_path), device="cpu", compute_type="int8", cpu_threads=1)
    texts = set()
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(size=100_000).astype(np.float32)
        (segment,), info = model.transcribe(noise, temperature=0)
        texts.add(segment.text)
        assert segment.avg_logprob > -0.1 and segment.compression_ratio < 2 and info.language == "en"
    (text,) = texts
    assert len(text) == 40 and text.isalpha()
