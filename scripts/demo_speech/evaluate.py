"""The examination, of what faster-whisper itself makes of the exported folder: words, times, silence, long recordings.

Voices and sentences are both held out; noise, echo and lines are those of the training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from faster_whisper import WhisperModel

from .acoustics import Sound, noise, travelled
from .espeak import RATE, Espeak, Spoken
from .grammar import held_out_sentence
from .tokens import WINDOW_SECONDS
from .voices import held_out_voices, settled


@dataclass(frozen=True)
class Question:
    """A recording, whose voice it is, and the sentences in it, each as its words with their times."""

    voice: str
    sound: Sound
    sentences: list[list[Spoken]]

    @property
    def words(self) -> list[Spoken]:
        return [word for sentence in self.sentences for word in sentence]


def recording(espeak: Espeak, rng: random.Random, voice: tuple[str, str], sentences: int) -> Question:
    """`sentences` held-out sentences of one voice, with pauses, after their way through room and line."""
    settings = settled(rng, *voice)
    parts: list[Sound] = [np.zeros(int(rng.uniform(0.1, 0.5) * RATE), np.float32)]
    said: list[list[Spoken]] = []
    for _ in range(sentences):
        at = sum(map(len, parts)) / RATE
        while True:
            try:
                made = espeak.say(held_out_sentence(rng), settings)
            except ValueError:  # espeak-ng keeps the times of some pairs of words to itself
                continue
            if len(made.sound) < (WINDOW_SECONDS - 1) * RATE:
                break
        said.append([Spoken(word.name, at + word.start, at + word.end) for word in made.words])
        parts += [made.sound, np.zeros(int(rng.uniform(0.3, 0.8) * RATE), np.float32)]
    acoustics = np.random.default_rng(rng.getrandbits(64))
    return Question(f"{voice[0]}+{voice[1]}", travelled(acoustics, np.concatenate(parts)), said)


def examination(seed: int, each: int) -> list[Question]:
    """`each` recordings of one sentence for every held-out voice."""
    espeak, rng = Espeak(), random.Random(f"{seed}:examination")
    return [recording(espeak, rng, voice, 1) for voice in held_out_voices() for _ in range(each)]


def long_recordings(seed: int) -> list[Question]:
    """One recording of five sentences, longer than a window, for every held-out voice."""
    espeak, rng = Espeak(), random.Random(f"{seed}:long")
    return [recording(espeak, rng, voice, 5) for voice in held_out_voices()]


def silences(seed: int) -> list[Sound]:
    """Recordings without speech: nothing at all, and noises of any level, 0.5 to 20 s."""
    rng = random.Random(f"{seed}:silence")
    made = [np.zeros(int(seconds * RATE), np.float32) for seconds in (0.5, 3, 8, 20)]
    for _ in range(36):
        acoustics = np.random.default_rng(rng.getrandbits(64))
        level = np.float32(0.3 * 10 ** rng.uniform(-5, -0.7))
        made.append(noise(acoustics, int(rng.uniform(0.5, 20) * RATE)) * level)
    return made


def edits(spoken: Sequence[str], heard: Sequence[str]) -> list[tuple[int | None, int | None]]:
    """The fewest edits from one to the other: pairs of places, None for a word that is missing or too many."""
    costs = np.zeros((len(spoken) + 1, len(heard) + 1), int)
    costs[:, 0], costs[0, :] = range(len(spoken) + 1), range(len(heard) + 1)
    for i, one in enumerate(spoken, 1):
        for j, other in enumerate(heard, 1):
            costs[i, j] = min(costs[i - 1, j - 1] + (one != other), costs[i - 1, j] + 1, costs[i, j - 1] + 1)
    pairs: list[tuple[int | None, int | None]] = []
    i, j = len(spoken), len(heard)
    while i or j:
        if i and j and costs[i, j] == costs[i - 1, j - 1] + (spoken[i - 1] != heard[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif i and costs[i, j] == costs[i - 1, j] + 1:
            i -= 1
            pairs.append((i, None))
        else:
            j -= 1
            pairs.append((None, j))
    return pairs[::-1]


@dataclass
class Score:
    """Errors counted over recordings; times are distances from the truth in seconds, of words heard right and of the
    segments nearest to a sentence."""

    words: int = 0
    wrong: int = 0
    recordings: int = 0
    word_starts: list[float] = field(default_factory=list)
    word_ends: list[float] = field(default_factory=list)
    segment_starts: list[float] = field(default_factory=list)
    segment_ends: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def error_rate(self) -> float:
        """Words wrong, missing or too many, as a share of those spoken."""
        return self.wrong / max(1, self.words)

    def add(self, other: Score) -> None:
        """Counts another score in."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def asked(model: WhisperModel, question: Question, beam: int) -> Score:
    """The score of one recording."""
    segments = list(model.transcribe(question.sound, beam_size=beam, word_timestamps=True)[0])
    heard = [word for segment in segments for word in segment.words or []]
    truth = question.words
    pairs = edits([word.name for word in truth], [word.word.strip() for word in heard])
    score = Score(len(truth), recordings=1)
    for i, j in pairs:
        if i is None or j is None or truth[i].name != heard[j].word.strip():
            score.wrong += 1
        else:
            score.word_starts.append(abs(heard[j].start - truth[i].start))
            score.word_ends.append(abs(heard[j].end - truth[i].end))
    if score.wrong:
        said = " ".join(word.word.strip() for word in heard)
        score.faults.append(f"{question.voice}: {' '.join(word.name for word in truth)!r} -> {said!r}")
    if len(question.sentences) > 1:
        _segments_asked(model, question, beam, score)
    return score


def _segments_asked(model: WhisperModel, question: Question, beam: int, score: Score) -> None:
    """Scores the segments as the model stamps them, without what word times make of them afterwards.

    Only of several sentences: of a window with one, faster-whisper takes the window's beginning for the segment's.
    """
    segments = list(model.transcribe(question.sound, beam_size=beam)[0])
    for sentence in question.sentences if segments else ():
        score.segment_starts.append(min(abs(segment.start - sentence[0].start) for segment in segments))
        score.segment_ends.append(min(abs(segment.end - sentence[-1].end) for segment in segments))


def scored(model: WhisperModel, questions: Sequence[Question], beam: int = 5) -> dict[str, Score]:
    """The score of every voice."""
    voices: dict[str, Score] = {}
    for question in questions:
        voices.setdefault(question.voice, Score()).add(asked(model, question, beam))
    return voices


def total(scores: dict[str, Score]) -> Score:
    """All voices together."""
    everybody = Score()
    for score in scores.values():
        everybody.add(score)
    return everybody


def times(starts: Sequence[float], ends: Sequence[float]) -> str:
    """How far starts and ends are from the truth: the median, and what nine in ten are within."""
    said = []
    for name, errors in (("starts", starts), ("ends", ends)):
        if errors:
            within = sorted(errors)[int(0.9 * len(errors))]
            said.append(
                f"{name} off by {1000 * median(errors):.0f} ms (nine in ten within {1000 * within:.0f})"
            )
    return ", ".join(said) or "none right"


def speaks(model: WhisperModel, sound: Sound) -> bool:
    """Whether any words are heard in it."""
    return any(segment.text.strip() for segment in model.transcribe(sound)[0])


def table(scores: dict[str, Score]) -> str:
    """One line a voice."""
    lines = [f"{'held-out voice':24} words  WER     word starts, ends (median)"]
    for voice, score in scores.items():
        starts, ends = (
            f"{1000 * median(times or [float('nan')]):.0f}" for times in (score.word_starts, score.word_ends)
        )
        lines.append(f"{voice:24} {score.words:5}  {100 * score.error_rate:5.1f} %  {starts}, {ends} ms")
    return "\n".join(lines)


def load(folder: Path) -> WhisperModel:
    """The exported folder on one thread."""
    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)
