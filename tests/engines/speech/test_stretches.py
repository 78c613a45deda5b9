"""Where recordings are cut: like the library that read whole files, but in order and in little memory."""

import numpy as np
import pytest
from faster_whisper.vad import VadOptions, get_speech_timestamps
from hypothesis import given
from hypothesis import strategies as st

from oxlo_local.calls import Vad
from oxlo_local.engines.speech.stretches import FRAME, RATE, Packed, Stretch, Stretches, moment, place


def cut(probabilities: list[float], vad: Vad, longest: float, *, feed: int = 1000) -> list[Stretch]:
    """The stretches, with so many probabilities known at once."""
    made = Stretches(vad, int(longest * RATE))
    found = []
    for start in range(0, len(probabilities), feed):
        found += made.feed(probabilities[start : start + feed])
    return found + made.end(len(probabilities) * FRAME)


def by_library(
    probabilities: list[float], vad: Vad, longest: float, monkeypatch: pytest.MonkeyPatch
) -> list[Stretch]:
    """What faster-whisper makes of the same probabilities, which it is given in place of its model's."""
    # It appends a frame of silence to a whole number of frames: the sound is one sample short of that.
    sound = np.zeros(len(probabilities) * FRAME - 1, np.float32)
    monkeypatch.setattr("faster_whisper.vad.get_vad_model", lambda: lambda audio: probabilities)
    options = VadOptions(
        threshold=vad.threshold,
        min_speech_duration_ms=vad.speech_ms,
        max_speech_duration_s=longest,
        min_silence_duration_ms=vad.silence_ms,
        speech_pad_ms=vad.padding_ms,
    )
    return [Stretch(one["start"], one["end"]) for one in get_speech_timestamps(sound, options)]


def wave(seed: int, frames: int) -> list[float]:
    """Probabilities that come and go like speech."""
    random = np.random.default_rng(seed)
    out: list[float] = []
    while len(out) < frames:
        speaking = len(out) == 0 or random.random() < 0.5
        level = random.uniform(0.45, 1.0) if speaking else random.uniform(0.0, 0.4)
        out += list(np.clip(level + random.normal(0, 0.1, int(random.integers(1, 120))), 0, 1))
    return [float(each) for each in out[:frames]]


@pytest.mark.parametrize(
    "vad", [Vad(), Vad(silence_ms=2000), Vad(padding_ms=30, speech_ms=250), Vad(threshold=0.7)]
)
@pytest.mark.parametrize("seed", range(12))
def test_the_same_stretches_as_the_library(seed: int, vad: Vad, monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities = wave(seed, 4000)
    ours = cut(probabilities, vad, 8.0)
    theirs = by_library(probabilities, vad, 8.0, monkeypatch)
    assert len(ours) == len(theirs) > 3
    for one, other in zip(ours, theirs, strict=True):
        assert abs(one.start - other.start) <= 1 and abs(one.end - other.end) <= 1


@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([0, 30, 400]), st.integers(1, 12))
def test_any_window_gives_the_same_in_order_and_within_bounds(
    seed: int, feed: int, padding: int, longest: int
) -> None:
    vad = Vad(padding_ms=padding)
    probabilities = wave(seed, 600)
    found = cut(probabilities, vad, longest, feed=feed)
    assert found == cut(probabilities, vad, longest)
    edges = [edge for stretch in found for edge in (stretch.start, stretch.end)]
    assert edges == sorted(edges) and all(0 <= edge <= 600 * FRAME for edge in edges)
    assert all(len(stretch) <= longest * RATE + FRAME for stretch in found)


@given(st.integers(0, 10_000))
def test_nothing_is_asked_for_that_was_given_up(seed: int) -> None:
    made = Stretches(Vad(), 8 * RATE)
    needed = 0
    for probability in wave(seed, 600):
        for stretch in made.feed([probability]):
            assert stretch.start >= needed
        assert made.needed() >= needed
        needed = made.needed()
    for stretch in made.end(600 * FRAME):
        assert stretch.start >= needed


def test_hours_of_silence_need_no_sound() -> None:
    made = Stretches(Vad(), 30 * RATE)
    assert made.feed([0.9] * 50) == []
    (spoken,) = made.feed([0.0] * 100_000)
    assert spoken == Stretch(0, 50 * FRAME + 400 * RATE // 1000)
    assert made.needed() > 99_000 * FRAME and spoken.voice == 0


def test_chunks_take_as_many_stretches_as_fit() -> None:
    packed: Packed[Stretch] = Packed(100)
    full = [packed.add(Stretch(n * 1000, n * 1000 + size)) for n, size in enumerate((40, 60, 1, 100, 99))]
    assert [None if chunk is None else [len(each) for each in chunk] for chunk in full] == [
        None, None, [40, 60], [1], [100],
    ]  # fmt: skip
    assert packed.end() == [Stretch(4000, 4099)] and packed.end() is None


def test_times_in_a_chunk_are_times_of_the_recording() -> None:
    chunk = [Stretch(16_000, 32_000), Stretch(160_000, 176_000)]
    assert place(chunk, 15_999) == 0 and place(chunk, 16_000) == 1
    assert place(chunk, 16_000, ending=True) == 0 and place(chunk, 99_999) == 1
    assert moment(chunk, 0.5, 0) == 1.5 and moment(chunk, 1.5, 1) == 10.5


def test_a_padding_longer_than_a_chunk_leaves_room_for_speech() -> None:
    found = cut([0.9] * 2000, Vad(padding_ms=60_000), 8.0)
    assert sum(map(len, found)) == pytest.approx(2000 * FRAME, rel=0.01)
