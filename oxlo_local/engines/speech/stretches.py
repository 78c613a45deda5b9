"""Pure: where a recording is cut. Probabilities of speech become stretches of it, and stretches become chunks.

A stretch begins with the first frame that is speech and ends where a pause of `silence_ms` began. What is too long
for a chunk is cut at the last pause in it of about a tenth of a second, else where it is. Stretches are padded on both
sides, up to half of the silence between two. Chunks take as many stretches as fit, silence left out.

All positions are samples of the recording at `RATE` a second. Both classes are fed in order and forget what they have
given away, so that a recording of any length takes the memory of a chunk.
"""

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from oxlo_local.calls import Vad

RATE = 16_000
FRAME = 512  # samples a probability is about
SHORTEST_CUT = 98 * RATE // 1000  # a pause, within a stretch that is too long, at which it may be cut
HYSTERESIS = 0.15  # speech ends so much below the probability at which it begins
LEAST = 0.01

Piece = TypeVar("Piece", bound=Sized)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Speech from `start` to `end`, samples of the recording; it was first noticed at `voice`, behind the padding."""

    start: int
    end: int
    voice: int | None = field(default=None, compare=False)  # None: nobody listened for it

    def __len__(self) -> int:
        return self.end - self.start


@dataclass
class Stretches:
    """Probabilities in, padded stretches out. `longest` is in samples, padding included."""

    vad: Vad
    longest: int
    _at: int = 0  # samples of which the probability is known
    _start: int | None = None  # of the stretch under way
    _quiet: int | None = None  # where the pause began that is under way in it
    _cut: tuple[int, int | None] | None = (
        None  # the last pause in it that would do for a cut: start, end if over
    )
    _found: list[Stretch] = field(default_factory=list)  # over, and not padded yet
    _bare: bool = True  # whether the first of those has no padding before it

    def feed(self, probabilities: Sequence[float]) -> list[Stretch]:
        """The stretches that are certain by now."""
        for probability in probabilities:
            self._step(probability)
            self._at += FRAME
        return list(self._padded(end=None))

    def end(self, samples: int) -> list[Stretch]:
        """The last ones; the recording has so many samples."""
        if self._start is not None and samples - self._start > self._least:
            self._found.append(Stretch(self._start, samples, self._start))
        self._start = None
        return list(self._padded(end=samples))

    def needed(self) -> int:
        """The first sample that may still be asked for."""
        begins = [stretch.start for stretch in self._found[:1]]
        begins += [self._start] if self._start is not None else []
        return max(min(begins, default=self._at) - self._pad, 0)

    @property
    def _pad(self) -> int:
        return min(self.vad.padding_ms * RATE // 1000, self.longest // 4)

    @property
    def _least(self) -> float:
        return self.vad.speech_ms * RATE / 1000

    def _step(self, probability: float) -> None:
        """One frame, which begins at `_at`."""
        speech = probability >= self.vad.threshold
        if self._start is None:
            if speech:
                self._start = self._at
            return
        if speech:
            if self._cut is not None and self._cut[1] is None and self._quiet is not None:
                self._cut = (self._cut[0], self._at)
            self._quiet = None
        if self._at - self._start > self.longest - FRAME - 2 * self._pad:
            if not self._goes_on_after_a_cut():
                return
        if probability < max(self.vad.threshold - HYSTERESIS, LEAST):
            self._hush()

    def _goes_on_after_a_cut(self) -> bool:
        """A stretch has become too long: end it; whether the next has begun already."""
        assert self._start is not None
        end, after = self._cut if self._cut is not None else (self._at, None)
        self._found.append(Stretch(self._start, end, self._start))
        self._start = after
        self._quiet = self._cut = None
        return after is not None

    def _hush(self) -> None:
        """A frame of silence within a stretch."""
        assert self._start is not None
        if self._quiet is None:
            self._quiet = self._at
        if self._at - self._quiet > SHORTEST_CUT:
            self._cut = (self._quiet, None)
        if self._at - self._quiet < self.vad.silence_ms * RATE / 1000:
            return
        if self._quiet - self._start > self._least:
            self._found.append(Stretch(self._start, self._quiet, self._start))
        self._start = self._quiet = self._cut = None

    def _padded(self, end: int | None) -> Iterator[Stretch]:
        """What is found, as soon as the silence behind it is known to be long enough, or whom to share it with."""
        while self._found:
            this = self._found[0]
            after = self._found[1] if len(self._found) > 1 else None
            soonest = self._at if self._start is None else self._start
            if after is None and end is None and soonest - this.end < 2 * self._pad:
                return
            self._found.pop(0)
            start = max(this.start - self._pad, 0) if self._bare else this.start
            shared = self._pad if after is None else min((after.start - this.end) // 2, self._pad)
            stop = this.end + shared
            yield Stretch(start, stop if end is None else min(stop, end), this.voice)
            if after is not None:
                self._found[0] = Stretch(after.start - shared, after.end, after.voice)
            self._bare = after is None


class Packed(Generic[Piece]):
    """Pieces in, chunks out: as many pieces in a row as `longest` samples hold."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._held: list[Piece] = []

    def add(self, piece: Piece) -> list[Piece] | None:
        """The chunk that is complete because this piece does not fit in."""
        full = None
        if self._held and sum(map(len, self._held)) + len(piece) > self._longest:
            full, self._held = self._held, []
        self._held.append(piece)
        return full

    def end(self) -> list[Piece] | None:
        """The last one."""
        held, self._held = self._held, []
        return held or None


def place(stretches: Sequence[Stretch], sample: int, *, ending: bool = False) -> int:
    """Which stretch of a chunk a sample of the chunk lies in; at a seam the later one, `ending` the earlier."""
    behind = 0
    for number, stretch in enumerate(stretches):
        behind += len(stretch)
        if sample < behind or (ending and sample == behind):
            return number
    return len(stretches) - 1


def moment(stretches: Sequence[Stretch], seconds: float, number: int) -> float:
    """A time within a chunk as a time of the recording, as seen from one of its stretches."""
    before = sum(len(stretch) for stretch in stretches[:number])
    return seconds + (stretches[number].start - before) / RATE
