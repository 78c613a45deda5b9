"""A file sent to a server to be transcribed: how far it is, and what was said in it, as the server tells it."""

import io
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct

from oxlo_local.client import Client, ErrorObject, raised
from oxlo_local.errors import ServerError

TRANSCRIPTIONS_PATH = "/v1/audio/transcriptions"
TRANSLATIONS_PATH = "/v1/audio/translations"


class SegmentItem(Struct, frozen=True):
    """A piece of a transcript, in OpenAI's form; times in seconds."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class WordItem(Struct, frozen=True):
    """A word, and when it was said."""

    word: str
    start: float
    end: float


class Transcript(Struct, frozen=True, omit_defaults=True):
    """A whole transcript: what `verbose_json` has."""

    task: str
    language: str
    duration: float
    text: str
    segments: list[SegmentItem]
    words: list[WordItem] | None = None


class Heard(Struct, frozen=True):
    """How far a file has been transcribed, in seconds; `of` is its length where that is known."""

    seconds: float
    of: float | None


class _SpeechEvent(Struct, frozen=True):
    """One event of a stream of `verbose_json`; the last one is a `Transcript` as well."""

    type: str = ""
    progress: Heard | None = None
    segment: SegmentItem | None = None
    error: ErrorObject | None = None


_decode_event = msgspec.json.Decoder(_SpeechEvent).decode
_decode_transcript = msgspec.json.Decoder(Transcript).decode


def transcribe(
    client: Client,
    path: str,
    file: io.FileIO,
    name: str,
    fields: Mapping[str, list[str]],
    hear: Callable[[Heard], None],
) -> Transcript:
    """Send a file as it is read, and wait for its transcript; `hear` is told how far it is.

    `path` is that of the endpoint, `fields` are those of the form. Raises the server's error.
    """
    form = {**fields, "response_format": ["verbose_json"], "stream": ["true"]}
    for data in client.send_file(path, file, name, form):
        transcript = _transcript_of(data, hear)
        if transcript is not None:
            return transcript
    raise ServerError("the server ended the transcript without saying why; look at its log")


def _transcript_of(data: bytes, hear: Callable[[Heard], None]) -> Transcript | None:
    """The transcript in a stream's last event; None for others, whose progress goes to `hear`. Raises OxloError."""
    try:
        event = _decode_event(data)
        if event.type == "transcript.text.done":
            return _decode_transcript(data)
    except msgspec.DecodeError as error:
        raise ServerError(
            f"the server sent a stream event that is no part of a transcript: {error}"
        ) from error
    if event.error is not None:
        raise raised(event.error, 500)
    if event.progress is not None:
        hear(event.progress)
    elif event.segment is not None:
        hear(Heard(event.segment.end, None))
    return None
