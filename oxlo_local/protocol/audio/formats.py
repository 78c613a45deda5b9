"""A transcript as text, SRT or WebVTT. Pure: cues in, a document out.

A cue's text is what a player shows, so it is one line: a blank line would end the cue. WebVTT reads markup in it, which
is escaped, and wants every cue to last; SRT has neither escapes nor rules for markup.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Cue(NamedTuple):
    """A text and when it was said, in seconds."""

    start: float
    end: float
    text: str


def text(cues: Iterable[Cue]) -> str:
    """All of them as one line."""
    return joined(cue.text for cue in cues) + "\n"


def joined(pieces: Iterable[str]) -> str:
    """Pieces of a transcript, which bring their own spaces, as one text."""
    return "".join(pieces).strip()


def srt(cues: Iterable[Cue]) -> str:
    """SubRip: numbered from 1, a comma before the milliseconds."""
    return "".join(
        f"{number}\n{_times(cue, ',')}\n{line(cue.text)}\n\n" for number, cue in enumerate(_shown(cues), 1)
    )


def vtt(cues: Iterable[Cue]) -> str:
    """WebVTT."""
    body = "".join(f"{_times(cue, '.')}\n{_escaped(line(cue.text))}\n\n" for cue in _shown(cues))
    return f"WEBVTT\n\n{body}"


def _shown(cues: Iterable[Cue]) -> Iterable[Cue]:
    return (cue for cue in cues if cue.text.strip())


def line(text: str) -> str:
    """One line without runs of white space."""
    return " ".join(text.split())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _times(cue: Cue, point: str) -> str:
    """No cue is over when it begins: players drop such ones."""
    start, end = (round(max(0.0, seconds) * 1000) for seconds in (cue.start, cue.end))
    return f"{stamp(start, point)} --> {stamp(max(end, start + 1), point)}"


def stamp(milliseconds: int, point: str) -> str:
    """Hours, minutes, seconds, milliseconds: `01:02:03.450`; hours may have more than two digits."""
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
