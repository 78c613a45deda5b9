"""What the model is asked about a window: the tokens to say, where each word sounds, and which phoneme each row holds.

A sentence is said between timestamps. As in Whisper's own training, one that the window cuts off is announced by its
start alone, so that a long recording's next window begins there; only a window that holds nothing else says its words.
Without timestamps all whole words are said. Where nobody speaks, <|nospeech|> is due, then the end.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .grammar import WORDS, is_held_out
from .tokens import READER_STEPS, STEP_SECONDS, Vocabulary
from .windows import Heard, from_bytes

IGNORED = -100
STAMPED_SHARE, PROMPTED_SHARE, WRONG_WORD_SHARE = 0.65, 0.15, 0.03
EMPTY_ROWS, EMPTY_SHARE = 48, 0.8  # that stand for all behind a window, and of the batches that have them
STAMP_LOOK = 0.06  # seconds on both sides of the time that a timestamp says
AFTER_WORDS = 0.3  # seconds after the last word in which the end is to be seen


@dataclass(frozen=True)
class Lesson:
    """Tokens given and due at each place, and the seconds (start, end) of the sound that a place should look at."""

    given: list[int]
    due: list[int]
    looks: list[tuple[float, float] | None]


def gives_away(heard: Heard) -> bool:
    """Whether cutting has left a held-out sentence."""
    return any(is_held_out(" ".join(word.name for word in one.words)) for one in heard.sentences)


def lesson(rng: random.Random, vocabulary: Vocabulary, heard: Heard, prompt: Sequence[int]) -> Lesson:
    """One way to ask about the window, with the tokens of earlier text before it."""
    said: list[tuple[int, tuple[float, float] | None]] = []
    stamped = rng.random() < STAMPED_SHARE
    last = 0.0
    for number, one in enumerate(heard.sentences):
        if stamped:
            said.append((vocabulary.stamp(one.start), (one.start - STAMP_LOOK, one.start + STAMP_LOOK)))
        if one.ends or number == 0 or not stamped:
            for word in one.words:
                said.append((vocabulary.words[word.name], (word.start, word.end)))
                last = word.end
        if stamped and one.ends:
            end = one.words[-1].end if one.words else one.start
            said.append((vocabulary.stamp(end), (end - STAMP_LOOK, end + STAMP_LOOK)))
    said.append((vocabulary.end, (last, last + AFTER_WORDS) if last else None))
    opening = [vocabulary.start] if stamped else [vocabulary.start, vocabulary.no_timestamps]
    given, due = [*opening, *(token for token, _ in said)][:-1], [token for token, _ in said]
    due = [IGNORED] * (len(given) - len(due)) + due
    if not heard.sentences:
        if stamped:
            given = [vocabulary.start, vocabulary.stamp(0.0)]
            due = [vocabulary.stamp(0.0), vocabulary.end]
        if rng.random() < 0.8:
            due[0] = vocabulary.no_speech
    elif stamped and rng.random() < 0.1:
        given[1] = vocabulary.stamp(0.0)  # faster-whisper's batched pipeline forces it
    words = list(vocabulary.words.values())
    given = [
        rng.choice(words) if token in words and rng.random() < WRONG_WORD_SHARE else token for token in given
    ]
    looks = [look for _, look in said] if heard.sentences else []
    looks = [None] * (len(given) - len(looks)) + looks
    before = [vocabulary.previous, *prompt] if prompt else []
    return Lesson(before + given, [IGNORED] * len(before) + due, [None] * len(before) + looks)


def earlier_text(rng: random.Random, vocabulary: Vocabulary) -> list[int]:
    """Tokens as of earlier windows: mostly none, else words, sometimes with timestamps, up to the 223 there may be."""
    if rng.random() >= PROMPTED_SHARE:
        return []
    size = rng.randint(1, 40) if rng.random() < 0.7 else rng.randint(1, 222)
    stamped = rng.random() < 0.5
    tokens: list[int] = []
    at = 0.0
    while len(tokens) < size:
        if stamped:
            tokens.append(vocabulary.stamp(at))
        tokens += [vocabulary.words[rng.choice(WORDS)] for _ in range(rng.randint(1, 7))]
        if stamped:
            at = (at + rng.uniform(0.5, 3.0)) % 8.0
            tokens.append(vocabulary.stamp(at))
    return tokens[:size]


@dataclass(frozen=True)
class Batch:
    """mel (batch, 80, frames); given, due (batch, length); before, looks (batch, length, rows): each row's share in the
    word given and in the word due; phonemes, words (batch, rows): 0 where there is none; empty (any,): positions."""

    mel: Tensor
    given: Tensor
    due: Tensor
    before: Tensor
    looks: Tensor
    phonemes: Tensor
    words: Tensor
    empty: Tensor


def rows_of(start: float, end: float) -> slice:
    """The encoder's rows of a stretch of time in seconds, at least one."""
    first = max(0, round(start / STEP_SECONDS))
    return slice(first, max(first + 1, round(end / STEP_SECONDS)))


def row_labels(heard: Heard, phonemes: dict[str, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(phoneme, word) of every row of the window; a word that is not there whole is IGNORED."""
    size = heard.mel.shape[1] // 2
    sounding = np.zeros(size, np.int64)
    for phoneme in heard.phonemes:
        sounding[rows_of(phoneme.start, phoneme.end)] = phonemes.get(phoneme.name, 0)
    saying = np.where(sounding > 0, IGNORED, 0)
    for word in (word for sentence in heard.sentences for word in sentence.words):
        saying[rows_of(word.start, word.end)] = 1 + WORDS.index(word.name)
    return sounding, saying


def collate(
    rng: random.Random, vocabulary: Vocabulary, phonemes: dict[str, int], group: Sequence[Heard], frames: int
) -> Batch:
    """The windows of a group as one batch, filled up with zeros to `frames` as faster-whisper does."""
    prompt = earlier_text(
        rng, vocabulary
    )  # the same for all: a long one would make the others as long anyway
    lessons = [lesson(rng, vocabulary, heard, prompt[rng.randint(0, len(prompt) // 4) :]) for heard in group]
    length, rows = max(len(one.given) for one in lessons), frames // 2
    mel = np.zeros((len(group), 80, frames), np.float32)
    given = np.full((len(group), length), vocabulary.end)
    due = np.full((len(group), length), IGNORED)
    looks = np.zeros((len(group), length, rows), np.float32)
    sounding, saying = np.full((2, len(group), rows), IGNORED)
    for at, (heard, one) in enumerate(zip(group, lessons, strict=True)):
        size = heard.mel.shape[1]
        mel[at, :, :size] = augmented(rng, from_bytes(heard.mel, heard.peak))
        given[at, : len(one.given)], due[at, : len(one.due)] = one.given, one.due
        for place, look in enumerate(one.looks):
            if look is not None:
                looks[at, place, rows_of(*look)] = 1
        sounding[at, : size // 2], saying[at, : size // 2] = row_labels(heard, phonemes)
    looks /= np.maximum(looks.sum(axis=2, keepdims=True), 1)
    before = np.pad(looks[:, :-1], ((0, 0), (1, 0), (0, 0)))
    empty = np.array(
        sorted(rng.sample(range(rows, READER_STEPS), EMPTY_ROWS if rng.random() < EMPTY_SHARE else 0)), int
    )
    return Batch(*map(torch.from_numpy, (mel, given, due, before, looks, sounding, saying, empty)))


def augmented(rng: random.Random, mel: NDArray[np.float32]) -> NDArray[np.float32]:
    """The log-mel at another level, some bands and moments wiped out."""
    mel = mel + np.float32(rng.uniform(-0.25, 0.25))
    for _ in range(rng.randint(0, 2)):
        width, at = rng.randint(1, 10), rng.randrange(70)
        mel[at : at + width] = mel.mean()
    for _ in range(rng.randint(0, 2)):
        width, at = rng.randint(1, 8), rng.randrange(mel.shape[1])
        mel[:, at : at + width] = mel.mean()
    return mel
