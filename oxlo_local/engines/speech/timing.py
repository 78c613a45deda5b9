"""Pure: what was said when. The tokens of a chunk become pieces with times, words get their place in these.

Times in here are seconds within a chunk; `Clock` turns them into seconds of the recording.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from oxlo_local.calls import Word
from oxlo_local.engines.speech.stretches import RATE, Stretch, moment, place

PRECISION = 0.02  # seconds that a timestamp token counts
LONGEST_MEDIAN = 0.7  # seconds of a usual word, at most
EARLY = 0.1  # seconds by which a word may begin before speech was noticed
FAR = 0.5  # seconds by which a word may reach out of the piece it is in
ENDINGS = frozenset(".。!！?？")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a chunk's text, with the timestamp tokens around it."""

    start: float
    end: float
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Spoken:
    """A word of a chunk; `tokens` is how many tokens of text it takes."""

    text: str
    start: float
    end: float
    probability: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Clock:
    """Turns times within a chunk into times of the recording."""

    stretches: tuple[Stretch, ...]

    def span(self, start: float, end: float) -> tuple[float, float]:
        """The times between which something was said; what began in one stretch may have ended in a later one."""
        first = place(self.stretches, int(start * RATE))
        last = max(place(self.stretches, int(end * RATE), ending=True), first)
        return round(moment(self.stretches, start, first), 2), round(moment(self.stretches, end, last), 2)

    def word(self, spoken: Spoken) -> Word:
        """A word lies in one stretch whole: that of its middle."""
        number = place(self.stretches, int((spoken.start + spoken.end) / 2 * RATE))
        start = moment(self.stretches, spoken.start, number)
        end = moment(self.stretches, spoken.end, number)
        return Word(spoken.text, round(max(start, 0.0), 2), round(end, 2), round(spoken.probability, 4))


def pieces_of(tokens: Sequence[int], seconds: float, first_timestamp: int, end_of_text: int) -> list[Piece]:
    """The pieces of a chunk that lasts `seconds`: each ends with a timestamp, the last perhaps with the chunk."""
    pieces: list[Piece] = []
    start, held, said = 0.0, [], False
    for token in tokens:
        held.append(token)
        if token < first_timestamp:
            said = said or token < end_of_text
            continue
        at = min((token - first_timestamp) * PRECISION, seconds)
        if said:
            pieces.append(Piece(start, max(at, start), tuple(held)))
            held = []
        else:
            held = [token]
        start, said = at, False
    if said:
        pieces.append(Piece(start, max(seconds, start), tuple(held)))
    return pieces


def noticed(words: Sequence[Spoken], stretches: Sequence[Stretch]) -> list[Spoken]:
    """Words of a chunk, of which none begins long before anybody was heard in its stretch.

    The first word of a stretch is where attention looks for what is in the padding before it.
    """
    out, before = list(words), 0
    for stretch in stretches:
        heard = stretch.start if stretch.voice is None else stretch.voice
        begin, voice = before / RATE, (before + heard - stretch.start) / RATE - EARLY
        before += len(stretch)
        for number, word in enumerate(out):
            if begin <= word.start < voice < word.end - EARLY:
                out[number] = replace(word, start=voice)
    return out


def settled(words: Sequence[Spoken]) -> list[Spoken]:
    """Words of a chunk, none much longer than usual where silence was counted with it.

    Attention cannot tell a pause from the word beside it, so that a word at the end of a sentence, or at the start of
    the chunk, would reach over the pause.
    """
    lengths = [word.end - word.start for word in words if word.end > word.start]
    if not lengths:
        return list(words)
    usual = min(LONGEST_MEDIAN, median(lengths))
    most = 2 * usual
    out = list(words)
    for number, word in enumerate(out):
        if word.end - word.start <= most:
            continue
        if number == 0 or out[number - 1].text.strip()[-1:] in ENDINGS:
            out[number] = replace(word, start=word.end - most)
        elif word.text.strip()[-1:] in ENDINGS:
            out[number] = replace(word, end=word.start + most)
    return out


def within(piece: Piece, words: Sequence[Spoken]) -> tuple[Piece, list[Spoken]]:
    """A piece and its words with the same start and end: the words', unless they reach far out of the piece."""
    out = list(words)
    if not out:
        return piece, out
    usual = min(LONGEST_MEDIAN, median(word.end - word.start for word in out))
    if out[0].start < piece.start - FAR and piece.start < out[0].end:
        out[0] = replace(out[0], start=max(0.0, min(out[0].end - usual, piece.start)))
    if out[-1].end > piece.end + FAR and piece.end > out[-1].start:
        out[-1] = replace(out[-1], end=max(out[-1].start + usual, piece.end))
    return replace(piece, start=out[0].start, end=max(out[-1].end, out[0].start)), out
