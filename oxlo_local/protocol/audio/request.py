"""A form that asks for a transcript or a translation: its fields read and checked, and what the engine is told of it.

A translation takes whatever a transcription does; OpenAI's own takes less.
"""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from oxlo_local.calls import SpeechCall, Vad
from oxlo_local.calls.speech import LADDER
from oxlo_local.errors import BadRequest, UnsupportedValue
from oxlo_local.protocol import forms, parts
from oxlo_local.protocol.audio import languages
from oxlo_local.protocol.fields import TRANSCRIPTIONS, TRANSLATIONS, Field, refuse_unhonoured

Task = Literal["transcribe", "translate"]
Format = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity = Literal["word", "segment"]

FILE: Final = "file"
GREEDY: Final = (
    "'include' logprobs has the text decoded greedily: a beam search, the default, tells no probabilities"
)
_TABLES: Final[dict[Task, tuple[Field, ...]]] = {"transcribe": TRANSCRIPTIONS, "translate": TRANSLATIONS}
_KINDS: Final = forms.Kinds(
    lists=frozenset(
        "include keywords languages timestamp_granularities known_speaker_names known_speaker_references".split()
    ),
    objects=frozenset(("chunking_strategy", "metadata")),
)
_TIMED: Final = frozenset(("verbose_json", "srt", "vtt"))
_Words = list[Annotated[str, Meta(min_length=1, max_length=200)]]


class ServerVad(Struct, frozen=True, forbid_unknown_fields=True):
    """What counts as speech, in OpenAI's words and with OpenAI's defaults."""

    type: Literal["server_vad"]
    threshold: Annotated[float, Meta(ge=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, Meta(ge=0, le=10_000)] = 300
    silence_duration_ms: Annotated[int, Meta(ge=0, le=30_000)] = 200


class AudioRequest(Struct, frozen=True, kw_only=True):
    """A form whose fields have the right types and ranges; None = not given. The file is kept apart."""

    model: parts.ModelName
    response_format: Format | None = None
    language: str | None = None
    languages: _Words | None = None
    prompt: str | None = None
    hotwords: str | None = None
    keywords: _Words | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    timestamp_granularities: list[Granularity] | None = None
    include: list[Literal["logprobs"]] | None = None
    chunking_strategy: Literal["auto"] | ServerVad | None = None
    vad_filter: bool | None = None
    stream: bool | None = None
    metadata: dict[str, str] | None = None

    @property
    def format(self) -> Format:
        """What is answered."""
        return self.response_format or "json"

    @property
    def words(self) -> bool:
        """Whether the answer says when each word was said."""
        return "word" in (self.timestamp_granularities or ())

    @property
    def segments(self) -> bool:
        """Whether a verbose answer has the segments."""
        return "segment" in (self.timestamp_granularities or ("segment",))

    @property
    def logprobs(self) -> bool:
        """Whether the answer has the log-probability of each token."""
        return "logprobs" in (self.include or ())

    @property
    def code(self) -> str | None:
        """The language to transcribe from; None = the one that is heard. Raises BadRequest for one that is none."""
        given = self.language or (self.languages[0] if self.languages else None)
        param = "language" if self.language else "languages"
        return languages.code_of(given, param) if given else None


def decode(fields: Sequence[tuple[str, str]], task: Task, *, strict: bool) -> tuple[AudioRequest, list[str]]:
    """The request in a form's text fields, and warnings: one for each unknown field, and what else comes with a wish.

    Raises BadRequest and its kinds.
    """
    table = _TABLES[task]
    known = frozenset(field.name for field in table)
    members = forms.members_of(fields, _KINDS)
    if FILE in members:
        raise BadRequest(f"'{FILE}' must be a file: a part of the form with a filename.", param=FILE)
    if members.get("response_format") == "diarized_json":
        raise UnsupportedValue(
            "'response_format' diarized_json needs a model that tells speakers apart, and there is none here; send "
            "verbose_json for segments and words with their times.",
            param="response_format",
        )
    refuse_unhonoured(members, table)
    request = parts.convert(members, AudioRequest, strict=False)
    _check(request)
    warnings = parts.warn_unknown(parts.unknown_names(members, known), known, strict=strict)
    return request, [*warnings, *([GREEDY] if request.logprobs else [])]


def _check(request: AudioRequest) -> None:
    """Rules that types cannot say. Raises BadRequest."""
    parts.check_metadata(request.metadata)
    _check_language(request)
    if request.words and request.format not in _TIMED:
        raise UnsupportedValue(
            f"'timestamp_granularities' word has no place in the format {request.format}; send 'response_format' "
            "verbose_json, srt or vtt.",
            param="timestamp_granularities",
        )
    if request.logprobs and request.format != "json":
        raise UnsupportedValue(
            f"'include' logprobs has no place in the format {request.format}; send 'response_format' json.",
            param="include",
        )
    if request.stream and request.format not in ("json", "verbose_json"):
        raise UnsupportedValue(
            f"A stream is one of JSON events, and 'response_format' is {request.format}; send json, or verbose_json "
            "for the segments too.",
            param="response_format",
        )
    if request.vad_filter is False and request.chunking_strategy is not None:
        raise BadRequest(
            "'vad_filter' false and 'chunking_strategy' contradict each other; send one of them.",
            param="vad_filter",
        )
    if request.hotwords and request.keywords:
        raise BadRequest("'hotwords' and 'keywords' are two names of one thing; send one.", param="keywords")


def _check_language(request: AudioRequest) -> None:
    if request.languages is not None and (request.language or len(request.languages) > 1):
        raise UnsupportedValue(
            "'languages' takes one language, and stands alone; leave it out to have the language detected.",
            param="languages",
        )
    _ = request.code


def to_call(request: AudioRequest, task: Task, path: str, id: str) -> SpeechCall:
    """The request in the engine's words; `path` is where its file lies."""
    return SpeechCall(
        id=id,
        path=path,
        task=task,
        language=request.code,
        prompt=request.prompt,
        hotwords=request.hotwords or (", ".join(request.keywords) if request.keywords else None),
        temperatures=(request.temperature,) if request.temperature else LADDER,
        timestamps=request.format in _TIMED,
        words=request.words,
        logprobs=request.logprobs,
        vad=_vad(request),
    )


def _vad(request: AudioRequest) -> Vad | None:
    if request.vad_filter is False:
        return None
    asked = request.chunking_strategy
    if not isinstance(asked, ServerVad):
        return Vad()
    return Vad(
        threshold=asked.threshold, silence_ms=asked.silence_duration_ms, padding_ms=asked.prefix_padding_ms
    )
