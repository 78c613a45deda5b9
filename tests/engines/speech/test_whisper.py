"""What CTranslate2 is told and what it answers, on models of random numbers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from oxlo_local.calls import SpeechOptions
from oxlo_local.engines.speech.whisper import Encoded, LoadError, Whisper, shapes_of
from tests.engines.speech.sounds import speech

CPU = SpeechOptions(device="cpu", threads=1, beam=1)


@pytest.fixture(scope="module")
def whisper(whisper_folder: Path) -> Whisper:
    return Whisper(whisper_folder, CPU)


def test_what_a_model_says_of_itself(whisper: Whisper, english_folder: Path) -> None:
    assert whisper.multilingual and len(whisper.languages) == 100 and "de" in whisper.languages
    assert whisper.window == 8.0 and whisper.positions == 64 and whisper.compute_type.startswith("int8")
    assert whisper.parameters > 100_000 and whisper.vocab == 2_400
    english = Whisper(english_folder, CPU)
    assert english.languages == ["en"] and not english.multilingual
    assert english.tokenizer("en").sot_sequence == [english.tokenizer("en").sot]


def test_rows_come_apart_and_together(whisper: Whisper) -> None:
    features = [whisper.features(speech(seconds, seed)) for seed, seconds in enumerate((8.0, 3.0, 1.0))]
    together = whisper.encode(features)
    assert len(together) == 3
    rows = together.rows([2, 0])
    alone = whisper.encode([features[2]]).rows([0])[0]
    assert np.allclose(np.asarray(rows[0], np.float32), np.asarray(alone, np.float32), atol=1e-3)
    again = Encoded.of(rows)
    assert np.array_equal(again.rows([1])[0], together.rows([0])[0])


def test_what_is_likely_and_what_was_chosen(whisper: Whisper) -> None:
    tokenizer = whisper.tokenizer("en")
    encoded = whisper.encode([whisper.features(speech(4))])
    prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
    (plain,) = whisper.decode(encoded, [prompt], 0.0, logprobs=False)
    (tried,) = whisper.decode(encoded, [prompt], 0.0, logprobs=True)
    assert tried.tokens == plain.tokens and plain.logprobs == () and 0 < len(tried.tokens) <= 64
    assert len(tried.logprobs) == len(tried.tokens) and all(chance < 0 for chance in tried.logprobs)
    # The mean counts the end of the text too, whose probability is not given.
    mean = sum(tried.logprobs) / (len(tried.tokens) + 1)
    assert tried.avg_logprob == pytest.approx(mean, abs=0.3)


def test_what_is_drawn_differs(whisper: Whisper) -> None:
    tokenizer = whisper.tokenizer("en")
    encoded = whisper.encode([whisper.features(speech(4))])
    found = {
        whisper.decode(encoded, [tokenizer.sot_sequence], 1.0, logprobs=False)[0].tokens for _ in range(4)
    }
    assert len(found) > 1


def test_words_have_times_within_the_chunk(whisper: Whisper) -> None:
    tokenizer = whisper.tokenizer("en")
    text = tokenizer.encode(" w1 w22, w333. w4444")
    encoded = whisper.encode([whisper.features(speech(4)), whisper.features(speech(2, 1))])
    rows = whisper.align(encoded, [text, text[:5]], [4.0, 2.0], tokenizer)
    assert len(rows) == 2
    for row, limit in zip(rows, (4.0, 2.0), strict=True):
        times = [time for word in row for time in (word.start, word.end)]
        assert times == sorted(times) and 0 <= times[0] and times[-1] <= limit
        assert all(0 <= word.probability <= 1 for word in row)
    assert "".join(word.text for word in rows[0]) == " w1 w22, w333. w4444"
    assert [word.text for word in rows[0]] == [" w1", " w22,", " w333.", " w4444"]
    assert sum(word.tokens for word in rows[0]) == len(text)


def test_tokens_stand_for_bytes(whisper: Whisper) -> None:
    text = " naïve “日本”"
    assert b"".join(whisper.piece(token) for token in whisper.tokenizer("en").encode(text)).decode() == text


def test_folders_that_hold_no_model(whisper_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"model\.bin, config\.json, tokenizer\.json is missing"):
        Whisper(tmp_path, CPU)
    broken = tmp_path / "broken"
    shutil.copytree(whisper_folder, broken)
    content = (broken / "model.bin").read_bytes()
    (broken / "model.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(LoadError, match="is cut off: pull it again"):
        Whisper(broken, CPU)
    (broken / "model.bin").write_bytes(b"GGUF" * 100)
    with pytest.raises(LoadError, match="no Whisper model in CTranslate2's form"):
        Whisper(broken, CPU)


def test_a_window_that_is_not_the_models_own(whisper_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(whisper_folder, other)
    heard = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**heard, "chunk_length": 30}))
    with pytest.raises(
        LoadError, match="its encoder takes 800 frames and preprocessor_config.json says 3000"
    ):
        Whisper(other, CPU)


def test_shapes_are_read_without_the_numbers(whisper_folder: Path) -> None:
    shapes = shapes_of(whisper_folder / "model.bin")
    assert shapes["decoder/embeddings/weight"] == (2_400, 32)
    assert shapes["encoder/position_encodings/encodings"] == (400, 32)
