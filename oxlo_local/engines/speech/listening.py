"""One recording on its way to chunks: decoded, cut at silence, and turned into what the encoder takes, bit by bit.

`more` is called on threads beside the steps, one at a time, and does a bounded piece of work: up to `BITE` samples.
Only the sound that is not in a chunk yet is kept, so a recording of any length takes the memory of a minute.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oxlo_local.calls import SpeechCall, Vad
from oxlo_local.engines.speech.recording import RATE, Recording
from oxlo_local.engines.speech.stretches import Packed, Stretch, Stretches
from oxlo_local.engines.speech.voice import Voice

F32 = NDArray[np.float32]
Features = Callable[[F32], F32]

BITE = 30 * RATE  # samples that one call of `more` reads, unless a chunk comes of fewer
QUIET = (
    RATE // 10
)  # the length of the quietest moment, at which a chunk is cut where nobody asks what is speech


@dataclass(frozen=True, slots=True)
class Chunk:
    """Up to a window of a recording. `features` have the shape (mels, frames), 100 frames a second."""

    index: int
    stretches: tuple[Stretch, ...]
    features: F32

    @property
    def seconds(self) -> float:
        """Of sound in it."""
        return sum(map(len, self.stretches)) / RATE

    @property
    def end(self) -> float:
        """Where it ends in the recording, seconds."""
        return self.stretches[-1].end / RATE


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch and its sound."""

    stretch: Stretch
    sound: F32

    def __len__(self) -> int:
        return len(self.stretch)


class Listening:
    """A recording, and how far it has been read. `window` is in seconds. Raises UndecodableFile, here and in `more`."""

    def __init__(self, call: SpeechCall, features: Features, window: float, longest: float) -> None:
        self._recording = Recording(Path(call.path), longest)
        self._blocks = self._recording.blocks()
        self._features = features
        size = int(window * RATE)
        self._ear: _Speech | _Everything = _Everything(size) if call.vad is None else _Speech(call.vad, size)
        self._packing: Packed[_Piece] = Packed(size)
        self._sound = np.zeros(0, np.float32)
        self._from = 0  # the sample that `_sound` begins with
        self._count = 0
        self.over = False

    @property
    def seconds(self) -> float:
        """How much was read by now; the length of the recording when it is `over`."""
        return (self._from + len(self._sound)) / RATE

    @property
    def declared(self) -> float | None:
        """The length by the header, seconds."""
        return self._recording.seconds

    def more(self) -> list[Chunk]:
        """Read on until there are chunks, or a bite has been read."""
        read = 0
        while read < BITE:
            block = next(self._blocks, None)
            if block is None:
                return self._end()
            read += len(block)
            self._sound = np.concatenate([self._sound, block])
            chunks = self._packed(self._ear.hear(block))
            needed = self._ear.needed() - self._from
            if needed > 0:
                self._sound, self._from = self._sound[needed:].copy(), self._from + needed
            if chunks:
                return chunks
        return []

    def close(self) -> None:
        """Let go of the file."""
        self._recording.close()

    def _end(self) -> list[Chunk]:
        self.over = True
        chunks = self._packed(self._ear.end(self._from + len(self._sound)))
        last = self._packing.end()
        return [*chunks, self._chunk(last)] if last else chunks

    def _packed(self, stretches: list[Stretch]) -> list[Chunk]:
        chunks = []
        for stretch in stretches:
            # Copied at once: what follows may be hours of silence.
            sound = self._sound[stretch.start - self._from : stretch.end - self._from].copy()
            full = self._packing.add(_Piece(stretch, sound))
            if full is not None:
                chunks.append(self._chunk(full))
        return chunks

    def _chunk(self, pieces: list[_Piece]) -> Chunk:
        index, self._count = self._count, self._count + 1
        features = self._features(np.concatenate([piece.sound for piece in pieces]))
        return Chunk(index, tuple(piece.stretch for piece in pieces), features)


class _Speech:
    """Stretches of speech; silence is left out."""

    def __init__(self, vad: Vad, size: int) -> None:
        self._voice = Voice()
        self._stretches = Stretches(vad, size)

    def hear(self, sound: F32) -> list[Stretch]:
        return self._stretches.feed(self._voice.hear(sound))

    def end(self, samples: int) -> list[Stretch]:
        return self._stretches.feed(self._voice.end()) + self._stretches.end(samples)

    def needed(self) -> int:
        return self._stretches.needed()


class _Everything:
    """Every second, cut where it is quietest in the last third of a window."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sound = np.zeros(0, np.float32)
        self._from = 0

    def hear(self, sound: F32) -> list[Stretch]:
        self._sound = np.concatenate([self._sound, sound])
        cuts = []
        while len(self._sound) > self._size:
            cuts.append(self._take(self._quietest()))
        return cuts

    def end(self, samples: int) -> list[Stretch]:
        return [self._take(samples - self._from)] if samples > self._from else []

    def needed(self) -> int:
        return self._from

    def _take(self, count: int) -> Stretch:
        start, self._from = self._from, self._from + count
        self._sound = self._sound[count:]
        return Stretch(start, self._from)

    def _quietest(self) -> int:
        """Where to cut, samples from the start of what is held."""
        first = 2 * self._size // 3
        moments = self._sound[first : self._size]
        moments = moments[: len(moments) - len(moments) % QUIET].reshape(-1, QUIET)
        return first + int(np.square(moments).sum(axis=1).argmin()) * QUIET + QUIET // 2
