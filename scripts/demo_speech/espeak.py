"""Speech from libespeak-ng, with the times at which it says so itself that each word and phoneme begins.

The program espeak-ng can write a file but not its events, so that the library is called: `espeak_Synth` in its
retrieval mode hands out 16-bit sound and the events of words and phonemes, counted in samples.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .voices import Voice

RATE = 16_000  # samples a second of everything made here, Whisper's
SYNCHRONOUS, PHONEME_EVENTS, CHARS_UTF8, POS_CHARACTER = 2, 1, 1, 1
WORD, PHONEME, LIST_END = 1, 7, 0
PARAMETERS = {"rate": 1, "pitch": 3, "pitch_range": 4, "gap": 7}


class _Identity(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user", ctypes.c_void_p),
        ("id", _Identity),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True)
class Spoken:
    """A name (word or phoneme) and when it sounds, in seconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """Sound (samples,) in -1..1 at 16 kHz, its words, and its phonemes; pauses are in neither."""

    sound: NDArray[np.float32]
    words: list[Spoken]
    phonemes: list[Spoken]


class Espeak:
    """libespeak-ng; one a process, for its voice and settings are global."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise SystemExit(
                "libespeak-ng is not installed: apt-get install espeak-ng (brew install espeak-ng)"
            )
        self._library = ctypes.CDLL(name)
        self._library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self._rate = self._library.espeak_Initialize(SYNCHRONOUS, 0, None, PHONEME_EVENTS)
        self._sound: list[NDArray[np.int16]] = []
        self._events: list[tuple[int, int, int, str]] = []  # type, text position, sample, phoneme
        self._callback = _CALLBACK(self._take)
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: object, count: int, events: object) -> int:
        if samples and count:
            self._sound.append(np.ctypeslib.as_array(samples, (count,)).copy())
        at = 0
        while events[at].type != LIST_END:  # type: ignore[index]
            event = events[at]  # type: ignore[index]
            phoneme = event.id.string.decode() if event.type == PHONEME else ""
            self._events.append((event.type, event.text_position, event.sample, phoneme))
            at += 1
        return 0

    def say(self, sentence: str, voice: Voice) -> Utterance:
        """Speaks words parted by single spaces."""
        if self._library.espeak_SetVoiceByName(voice.name.encode()):
            raise ValueError(f"espeak-ng has no voice {voice.name}")
        for name, number in PARAMETERS.items():
            self._library.espeak_SetParameter(number, getattr(voice, name), 0)
        self._sound, self._events = [], []
        text = sentence.encode()
        self._library.espeak_Synth(text, len(text) + 1, 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
        sound = np.concatenate(self._sound).astype(np.float32) / np.float32(32768)
        return Utterance(resampled(sound, self._rate, RATE), *timed(sentence, self._events, self._rate))


def resampled(sound: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """The sound (samples,) at another rate, its spectrum cut."""
    blocks = len(sound) * 10 // rate + 2  # of a tenth of a second: whole numbers of samples at both rates
    spectrum = np.fft.rfft(sound, blocks * (rate // 10))
    length = blocks * (wanted // 10)
    out = np.fft.irfft(spectrum[: length // 2 + 1], length) * (wanted / rate)
    return out[: round(len(sound) * wanted / rate)].astype(np.float32)


def timed(
    sentence: str, events: list[tuple[int, int, int, str]], rate: int
) -> tuple[list[Spoken], list[Spoken]]:
    """(words, phonemes) with their times, from espeak-ng's events.

    "in the" and the like come as one event; the article then begins at its own consonant (D, or d in the
    Caribbean). ValueError where that is not to be found.
    """
    phonemes = [
        (name, start, events[at + 1][2] if at + 1 < len(events) else start)
        for at, (kind, _, start, name) in enumerate(events)
        if kind == PHONEME
    ]
    sounding = [
        Spoken(name, start / rate, end / rate)
        for name, start, end in _until_next(phonemes)
        if not name.startswith("_")
    ]
    starts = {position - 1: start / rate for kind, position, start, _ in events if kind == WORD}
    words: list[Spoken] = []
    at = 0
    begun: list[tuple[str, float]] = []
    for word in sentence.split():
        if at in starts:
            begun.append((word, starts[at]))
        else:
            after = begun[-1][1] if begun else 0.0
            dental = next((p.start for p in sounding if p.start > after and p.name[0] in "Dd"), None)
            if word != "the" or dental is None:
                raise ValueError(f"espeak-ng does not say when {word!r} of {sentence!r} begins")
            begun.append((word, dental))
        at += len(word) + 1
    for number, (word, start) in enumerate(begun):
        limit = begun[number + 1][1] if number + 1 < len(begun) else float("inf")
        own = [phoneme for phoneme in sounding if start - 1e-4 <= phoneme.start < limit - 1e-4]
        words.append(Spoken(word, start, min(limit, own[-1].end if own else start + 0.1)))
    return words, sounding


def _until_next(phonemes: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Each phoneme up to the next one's start."""
    starts = [start for _, start, _ in phonemes]
    return [
        (name, start, starts[at + 1] if at + 1 < len(starts) else end)
        for at, (name, start, end) in enumerate(phonemes)
    ]
