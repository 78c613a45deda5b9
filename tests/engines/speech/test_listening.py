"""A recording comes in chunks of a window's length, in order, and hours of it take the memory of a minute."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from oxlo_local.calls import SpeechCall, Vad
from oxlo_local.engines.speech.listening import BITE, Chunk, Listening
from oxlo_local.engines.speech.recording import RATE
from oxlo_local.engines.speech.stretches import Stretch
from tests.engines.speech.sounds import F32, silence, speech, wav

WINDOW = 8.0
DEFAULT = Vad()


def all_of(path: Path, vad: Vad | None = DEFAULT) -> tuple[list[Chunk], Listening]:
    """Every chunk, whose features are the sound itself."""
    call = SpeechCall("c", str(path), vad=vad)
    listening = Listening(call, lambda sound: sound[None], WINDOW, 24 * 3600.0)
    chunks = []
    while not listening.over:
        chunks += listening.more()
    listening.close()
    return chunks, listening


def joined(chunks: list[Chunk]) -> F32:
    return np.concatenate([chunk.features[0] for chunk in chunks])


def test_speech_in_chunks_and_silence_left_out(tmp_path: Path) -> None:
    sound = np.concatenate(
        [silence(5), speech(3), silence(20), speech(2, 1), silence(40), speech(14, 2), silence(3)]
    )
    chunks, listening = all_of(wav(tmp_path / "talk.wav", sound))
    assert listening.seconds == len(sound) / RATE == listening.declared
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert all(0 < chunk.seconds <= WINDOW for chunk in chunks)
    first = chunks[0]
    assert len(first.stretches) == 2  # 3 s and 2 s, 20 s apart, share a chunk
    assert first.stretches[0].start / RATE == pytest.approx(4.6, abs=0.2)
    assert first.stretches[1].end / RATE == pytest.approx(30.4, abs=0.2)
    assert 18 < sum(chunk.seconds for chunk in chunks) < 25
    for chunk in chunks:
        cut = np.concatenate([sound[stretch.start : stretch.end] for stretch in chunk.stretches])
        assert np.abs(chunk.features[0] - cut).max() < 1e-3


def test_silence_has_no_chunks(tmp_path: Path) -> None:
    chunks, listening = all_of(wav(tmp_path / "hush.wav", silence(100)))
    assert chunks == [] and listening.seconds == 100


def test_without_vad_every_second_is_heard_and_cut_where_it_is_quiet(tmp_path: Path) -> None:
    sound = np.concatenate([speech(7), silence(0.5), speech(20, 1), silence(3)])
    chunks, _ = all_of(wav(tmp_path / "talk.wav", sound), vad=None)
    assert np.abs(joined(chunks) - sound).max() < 1e-3
    assert all(chunk.seconds <= WINDOW for chunk in chunks)
    assert 7.0 <= chunks[0].end <= 7.5
    edges = [stretch for chunk in chunks for stretch in chunk.stretches]
    assert all(one.end == other.start for one, other in zip(edges, edges[1:], strict=False))


def test_a_bite_is_bounded(tmp_path: Path) -> None:
    path = wav(tmp_path / "hush.wav", silence(100))
    listening = Listening(SpeechCall("c", str(path)), lambda sound: sound[None], WINDOW, 3600.0)
    assert listening.more() == [] and not listening.over
    assert BITE / RATE <= listening.seconds <= BITE / RATE + 5
    listening.close()


def test_one_word_before_hours_of_silence_holds_on_to_nothing(tmp_path: Path) -> None:
    path = wav(tmp_path / "long.wav", np.concatenate([speech(2), silence(1200)]))
    listening = Listening(SpeechCall("c", str(path)), lambda sound: sound[None], WINDOW, 3600.0 * 24)
    listening.more()
    tracemalloc.start()
    chunks = []
    while not listening.over:
        chunks += listening.more()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    listening.close()
    (chunk,) = chunks
    assert chunk.stretches[0].start < RATE and isinstance(chunk.stretches[0], Stretch)
    assert peak < 16_000_000  # the file is 38 MB, its sound as numbers 77 MB
