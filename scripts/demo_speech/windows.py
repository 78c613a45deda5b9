"""The windows of up to 8 seconds that the model learns from: sound, sentences with their times, and their log-mel.

Most hold one sentence; some hold several, cut off where the window ends; some begin within a sentence, as windows do
when a long recording is cut up; one in twelve holds no speech. Window number n of a seed always says the same with the
same voices at the same times (the breath in espeak-ng's voices comes from a random generator of its own).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from faster_whisper.feature_extractor import FeatureExtractor
from numpy.typing import NDArray

from .acoustics import Sound, noise, travelled
from .espeak import RATE, Espeak, Spoken
from .grammar import training_sentence
from .tokens import WINDOW_SECONDS
from .voices import Voice, training_voice

LONGEST = WINDOW_SECONDS * RATE
MEL_RANGE = 2.0  # Whisper's log-mel spans at most this below its maximum


@dataclass(frozen=True)
class Sentence:
    """When it begins, its words heard whole in the window with their times, and whether it ends within the window."""

    start: float
    words: list[Spoken]
    ends: bool


@dataclass(frozen=True)
class Window:
    """Sound (samples,), the sentences in it, and the phonemes of its speech."""

    sound: Sound
    sentences: list[Sentence]
    phonemes: list[Spoken]


def _shifted(spoken: list[Spoken], by: float, limit: float) -> list[Spoken]:
    """Moved in time; what is not whole between 0 and the limit is dropped."""
    moved = (Spoken(one.name, one.start + by, one.end + by) for one in spoken)
    return [one for one in moved if one.start > -0.03 and one.end <= limit + 0.03]


class Studio:
    """Makes windows by number."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.espeak = Espeak()

    def window(self, number: int) -> Window:
        """Window `number` of this seed."""
        rng = random.Random(f"{self.seed}:{number}")
        acoustics = np.random.default_rng(rng.getrandbits(64))
        kind = rng.random()
        if kind < 0.08:
            return self._without_speech(rng, acoustics)
        if kind < 0.62:
            laid = self._laid(rng, sentences=1, late=rng.random() < 0.1)
        else:
            laid = self._laid(rng, sentences=5, late=False)
            if rng.random() < 0.35:
                laid = _begun_within(rng, laid)
        return Window(travelled(acoustics, laid.sound), laid.sentences, laid.phonemes)

    def _without_speech(self, rng: random.Random, acoustics: np.random.Generator) -> Window:
        size = int(rng.uniform(0.3, WINDOW_SECONDS) * RATE)
        level = 10 ** rng.uniform(-5, -0.7) if rng.random() < 0.75 else 0.0
        return Window(noise(acoustics, size) * np.float32(level * 0.3), [], [])

    def _say(self, rng: random.Random, voice: Voice) -> tuple[Sound, list[Spoken], list[Spoken]]:
        while True:
            try:
                made = self.espeak.say(training_sentence(rng), voice)
            except ValueError:  # a rare pair of words whose times espeak-ng keeps to itself
                continue
            if len(made.sound) < LONGEST - RATE:
                return made.sound, made.words, made.phonemes

    def _laid(self, rng: random.Random, sentences: int, late: bool) -> Window:
        """One voice, sometimes two, saying sentences one after another until the window is full."""
        voice = training_voice(rng)
        at = int((rng.uniform(0.8, 3.0) if late else min(0.9, rng.expovariate(5.0))) * RATE)
        parts: list[Sound] = [np.zeros(at, np.float32)]
        said: list[Sentence] = []
        phonemes: list[Spoken] = []
        for _ in range(sentences):
            sound, words, sounded = self._say(rng, voice)
            if at + int(words[0].start * RATE) > LONGEST - RATE // 10:
                break
            heard = _shifted(words, at / RATE, WINDOW_SECONDS)
            said.append(Sentence(at / RATE + words[0].start, heard, len(heard) == len(words)))
            phonemes += _shifted(sounded, at / RATE, WINDOW_SECONDS)
            silence = np.zeros(int(rng.uniform(0.15, 1.0) * RATE), np.float32)
            parts += [sound, silence]
            at += len(sound) + len(silence)
            if rng.random() < 0.15:
                voice = training_voice(rng)
        if sentences == 1:
            parts.append(np.zeros(int(min(1.5, rng.expovariate(4.0)) * RATE), np.float32))
        return Window(np.concatenate(parts)[:LONGEST], said, phonemes)


def _begun_within(rng: random.Random, window: Window) -> Window:
    """The window from a random word of its first sentence on."""
    first = window.sentences[0].words
    if len(first) < 2:
        return window
    cut = max(0.0, first[rng.randrange(1, len(first))].start - rng.uniform(0.0, 0.03))
    size = len(window.sound) / RATE - cut
    sentences = [
        Sentence(max(0.0, one.start - cut), _shifted(one.words, -cut, size), one.ends)
        for one in window.sentences
    ]
    return Window(
        window.sound[int(cut * RATE) :],
        [one for one in sentences if one.words or not one.ends],
        _shifted(window.phonemes, -cut, size),
    )


def log_mel(extractor: FeatureExtractor, sound: Sound) -> NDArray[np.float32]:
    """(80, frames) as faster-whisper computes it: one frame every 10 ms."""
    return np.asarray(extractor(sound), np.float32)


def mel_bytes(mel: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float]:
    """The log-mel in 256 steps below its maximum, and the maximum."""
    peak = float(mel.max())
    return np.clip(np.rint((mel - peak + MEL_RANGE) * (255 / MEL_RANGE)), 0, 255).astype(np.uint8), peak


def from_bytes(mel: NDArray[np.uint8], peak: float) -> NDArray[np.float32]:
    """The inverse of mel_bytes, to within 0.004."""
    return mel.astype(np.float32) * (MEL_RANGE / 255) + np.float32(peak - MEL_RANGE)


@dataclass(frozen=True)
class Heard:
    """One window ready for training: log-mel (80, frames) in bytes, its maximum, what is said and how it sounds."""

    mel: NDArray[np.uint8]
    peak: float
    sentences: list[Sentence]
    phonemes: list[Spoken]


def write_shard(path: Path, seed: int, first: int, count: int) -> None:
    """Makes windows `first` to `first + count` and writes them as one .npz, whole or not at all."""
    studio, extractor = Studio(seed), FeatureExtractor(chunk_length=WINDOW_SECONDS)
    mels, peaks, notes = [], [], []
    for number in range(first, first + count):
        window = studio.window(number)
        mel, peak = mel_bytes(log_mel(extractor, window.sound))
        mels.append(mel)
        peaks.append(peak)
        notes.append(
            {
                "sentences": [
                    [one.start, one.ends, [_noted(w) for w in one.words]] for one in window.sentences
                ],
                "phonemes": [_noted(phoneme) for phoneme in window.phonemes],
            }
        )
    part = path.with_suffix(".part.npz")
    np.savez(
        part,
        mels=np.concatenate(mels, axis=1),
        frames=np.array([mel.shape[1] for mel in mels]),
        peaks=np.array(peaks),
        notes=np.frombuffer(json.dumps(notes).encode(), np.uint8),
    )
    part.replace(path)


def _noted(one: Spoken) -> tuple[str, float, float]:
    return one.name, round(one.start, 4), round(one.end, 4)


def read_shard(path: Path) -> list[Heard]:
    """The windows of one file."""
    with np.load(path) as kept:
        mels = np.split(kept["mels"], np.cumsum(kept["frames"])[:-1], axis=1)
        notes = json.loads(kept["notes"].tobytes())
        peaks = kept["peaks"].tolist()
    return [
        Heard(
            mel,
            peak,
            [
                Sentence(start, [Spoken(*word) for word in words], ends)
                for start, ends, words in note["sentences"]
            ],
            [Spoken(*phoneme) for phoneme in note["phonemes"]],
        )
        for mel, peak, note in zip(mels, peaks, notes, strict=True)
    ]


def phoneme_table(shard: Path) -> dict[str, int]:
    """A number from 1 for every phoneme of the file; 0 is for pauses and what occurs nowhere there."""
    names = {phoneme.name for heard in read_shard(shard) for phoneme in heard.phonemes}
    return {name: number for number, name in enumerate(sorted(names), 1)}
