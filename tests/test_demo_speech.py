"""oxlo-demo-speech: the shipped folder hears voices and sentences that it was not trained on, and says when."""

import json
import re
from functools import cache
from pathlib import Path
from statistics import median

import pytest

np = pytest.importorskip("numpy")
faster_whisper = pytest.importorskip("faster_whisper")

from demo_speech import evaluate  # noqa: E402
from demo_speech.espeak import Spoken  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "oxlo_local" / "embedded" / "oxlo-demo-speech"
RECORDINGS = ROOT / "tests" / "recordings" / "demo_speech"


@cache
def model() -> evaluate.WhisperModel:
    return evaluate.load(FOLDER)


def recordings() -> list[evaluate.Question]:
    """Recordings of held-out voices and sentences, with what is said in them when."""
    said = json.loads((RECORDINGS / "said.json").read_text("utf-8"))
    return [
        evaluate.Question(
            name,
            faster_whisper.decode_audio(str(RECORDINGS / name)),
            [[Spoken(*word) for word in sentence] for sentence in sentences],
        )
        for name, sentences in said.items()
    ]


def test_the_folder_is_small_and_has_all_that_faster_whisper_reads() -> None:
    files = {file.name for file in FOLDER.iterdir()}
    assert files == {
        "config.json",
        "model.bin",
        "preprocessor_config.json",
        "tokenizer.json",
        "vocabulary.json",
    }
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 8_000_000


def test_it_hears_nine_words_of_ten_and_when_they_are_said() -> None:
    score = evaluate.total(evaluate.scored(model(), recordings()))
    assert score.words > 50 and score.error_rate <= 0.1, score.faults
    assert median(score.word_starts) < 0.06 and median(score.word_ends) < 0.06
    assert median(score.segment_starts) < 0.1 and median(score.segment_ends) < 0.1


def test_it_hears_nothing_in_silence_and_noise() -> None:
    quiet = np.zeros(16_000 * 10, np.float32)
    hiss = np.random.default_rng(1).normal(size=16_000 * 5).astype(np.float32) * 0.02
    assert not evaluate.speaks(model(), quiet) and not evaluate.speaks(model(), hiss)


def test_it_says_english_of_anything() -> None:
    segments, info = model().transcribe(recordings()[0].sound, language=None)
    assert info.language == "en" and list(segments)


def test_the_card_describes_the_shipped_folder() -> None:
    card = FOLDER.with_suffix(".md").read_text("utf-8")
    weight = sum(file.stat().st_size for file in FOLDER.iterdir())
    assert f"{weight / 1e6:.1f} MB" in card
    assert "A demonstration, not a general transcriber" in card
    rate = re.search(r"held-out voices and sentences.*?\*\*([0-9.]+) %\*\*", card)
    assert rate and float(rate[1]) <= 10
