"""Segments to what the client asked for: one document, or a stream of OpenAI's transcript events.

A stream of `verbose_json`, which OpenAI does not have, says more in the same events: each delta brings the segment that
it is the text of, deltas without text say how far the file has been heard, and the last event has what the whole
document would have.
"""

from typing import Final

import msgspec

from oxlo_local.calls import Done, Event, Heard, Language, Segment, TokenLogprob, Word
from oxlo_local.protocol import parts
from oxlo_local.protocol.audio import formats
from oxlo_local.protocol.audio.formats import Cue
from oxlo_local.protocol.audio.languages import name_of
from oxlo_local.protocol.audio.request import AudioRequest, Format, Task

MEDIA_TYPES: Final[dict[Format, bytes]] = {
    "json": b"application/json",
    "verbose_json": b"application/json",
    "text": b"text/plain; charset=utf-8",
    "srt": b"text/plain; charset=utf-8",  # as OpenAI has it; there is no registered name
    "vtt": b"text/vtt; charset=utf-8",
}
FRAMES: Final = 100  # a second, of Whisper's spectrograms
UNKNOWN: Final = "unknown"  # the language of a file in which nobody speaks

_Object = dict[str, object]


def renderer(request: AudioRequest, task: Task) -> parts.Renderer:
    """What turns the events of `request` into the bytes that its client asked for."""
    return Events(request, task) if request.stream else Answer(request, task)


class Transcript:
    """What has been heard so far, and the objects that tell it."""

    def __init__(self, request: AudioRequest, task: Task) -> None:
        self._request = request
        self._task = task
        self._segments: list[Segment] = []
        self._language: str | None = request.code

    def add(self, event: Event) -> None:
        """Take the call's next event."""
        if isinstance(event, Segment):
            self._segments.append(event)
        elif isinstance(event, Language):
            self._language = event.language or self._language

    @property
    def text(self) -> str:
        """All of it."""
        return formats.joined(segment.text for segment in self._segments)

    @property
    def languages(self) -> list[_Object]:
        """What is spoken; empty where nobody speaks."""
        return [{"code": self._language}] if self._language else []

    @property
    def logprobs(self) -> list[_Object]:
        """Of all tokens."""
        return [one for segment in self._segments for one in logprobs_of(segment.logprobs)]

    def cues(self) -> list[Cue]:
        """What a player shows: a segment each, or a word each."""
        if self._request.words:
            return [Cue(word.start, word.end, word.text) for each in self._segments for word in each.words]
        return [Cue(each.start, each.end, each.text) for each in self._segments]

    def verbose(self, seconds: float) -> _Object:
        """The verbose document, without its usage. `seconds` is how long the file is."""
        spoken = "en" if self._task == "translate" else self._language
        told: _Object = {
            "task": self._task,
            "language": name_of(spoken) if spoken else UNKNOWN,
            "duration": round(seconds, 3),
            "text": self.text,
        }
        if self._request.segments:
            told["segments"] = [segment_object(each) for each in self._segments]
        if self._request.words:
            told["words"] = [word_object(word) for each in self._segments for word in each.words]
        return told


class Answer:
    """A whole answer: collects the segments, and renders at `Done`."""

    def __init__(self, request: AudioRequest, task: Task) -> None:
        self._request = request
        self._transcript = Transcript(request, task)

    def add(self, event: Event) -> bytes:
        """Nothing, until `Done` brings the body."""
        self._transcript.add(event)
        return self._body(event.usage.audio_seconds) if isinstance(event, Done) else b""

    def _body(self, seconds: float) -> bytes:
        transcript = self._transcript
        match self._request.format:
            case "text":
                return formats.text(transcript.cues()).encode()
            case "srt":
                return formats.srt(transcript.cues()).encode()
            case "vtt":
                return formats.vtt(transcript.cues()).encode()
            case "verbose_json":
                told = transcript.verbose(seconds)
            case "json":
                told = {"text": transcript.text}
                if self._request.logprobs:
                    told["logprobs"] = transcript.logprobs
        told["languages"] = transcript.languages
        told["usage"] = {"type": "duration", "seconds": round(seconds, 3)}
        return msgspec.json.encode(told)


class Events:
    """A streamed answer. The deltas, joined, are the text of the last event."""

    def __init__(self, request: AudioRequest, task: Task) -> None:
        self._request = request
        self._verbose = request.format == "verbose_json"
        self._transcript = Transcript(request, task)
        self._begun = False
        self._space = ""  # at the end of the last delta, which the text does not have if no other follows

    def add(self, event: Event) -> bytes:
        """The server-sent events of one event."""
        self._transcript.add(event)
        match event:
            case Segment():
                return self._delta(event)
            case Language() if self._verbose:
                return self._progress(0.0, event.seconds)
            case Heard() if self._verbose:
                return self._progress(event.seconds, event.of)
            case Done():
                return self._last(event)
            case _:
                return b""

    def _delta(self, segment: Segment) -> bytes:
        text = self._space + segment.text
        said = text.rstrip()
        self._space = text[len(said) :]
        said = said if self._begun else said.lstrip()
        self._begun = self._begun or bool(said)
        if not said and not self._verbose:
            return b""
        told: _Object = {"type": "transcript.text.delta", "delta": said}
        if self._request.logprobs:
            told["logprobs"] = logprobs_of(segment.logprobs)
        if self._verbose:
            told["segment"] = segment_object(segment)
            told["words"] = [word_object(word) for word in segment.words]
        return parts.sse(told)

    def _progress(self, seconds: float, of: float | None) -> bytes:
        return parts.sse(
            {"type": "transcript.text.delta", "delta": "", "progress": {"seconds": seconds, "of": of}}
        )

    def _last(self, done: Done) -> bytes:
        seconds = done.usage.audio_seconds
        told: _Object = {"type": "transcript.text.done", "text": self._transcript.text}
        if self._request.logprobs:
            told["logprobs"] = self._transcript.logprobs
        told["languages"] = self._transcript.languages
        told |= self._transcript.verbose(seconds) if self._verbose else {"duration": round(seconds, 3)}
        return parts.sse(told) + parts.DONE


def segment_object(segment: Segment) -> _Object:
    """OpenAI's segment. `seek` is where it begins in the frames of the spectrogram, a hundredth of a second each."""
    return {
        "id": segment.index,
        "seek": round(segment.start * FRAMES),
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": segment.tokens,
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def word_object(word: Word) -> _Object:
    """OpenAI's word, which has no spaces around it."""
    return {
        "word": word.text.strip(),
        "start": round(word.start, 3),
        "end": round(word.end, 3),
    }


def logprobs_of(tokens: list[TokenLogprob]) -> list[_Object]:
    """OpenAI's log-probabilities, a token each."""
    return [
        {"token": each.token, "bytes": each.bytes, "logprob": parts.finite(each.logprob or 0.0)}
        for each in tokens
    ]
