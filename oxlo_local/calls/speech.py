"""A call of speech, and the events that answer it. Structs only; imports nothing of ours but a token's form."""

from typing import Literal

from msgspec import Struct, field

from oxlo_local.calls.text import TokenLogprob

LADDER = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # temperatures that Whisper's authors tried one after another


class Vad(Struct, frozen=True, omit_defaults=True):
    """What counts as speech. Only that is transcribed, and silence is where a file is cut into chunks."""

    threshold: float = 0.5  # probability of speech, 0 to 1
    silence_ms: int = 160  # so long a pause ends a stretch of speech
    padding_ms: int = 400  # kept before and after a stretch
    speech_ms: int = 0  # shorter stretches are no speech


class SpeechCall(Struct, frozen=True, omit_defaults=True, tag="speech"):
    """A file to be transcribed, or translated to English. The worker reads `path`; whoever submits removes it.

    Answered by one `Language`, then `Segment`s in order of time with a `Heard` now and then between them, then `Done`,
    whose usage says how long the file was. A file without speech has no segments. `temperatures` is a ladder: a chunk
    whose text fails Whisper's quality thresholds is decoded again at the next one.
    """

    id: str
    path: str
    task: Literal["transcribe", "translate"] = "transcribe"
    language: str | None = None  # a Whisper code such as "en"; None = that of the first speech
    prompt: str | None = None  # what was said before, as it were: names, spelling, style
    hotwords: str | None = None  # words to expect
    temperatures: tuple[float, ...] = LADDER  # one = no second try
    timestamps: bool = True  # segments as the model cuts them; False = one for each stretch of up to a window
    words: bool = False  # when each word was said
    logprobs: bool = False
    vad: Vad | None = Vad()  # None = every second of the file is transcribed


class Language(Struct, frozen=True, tag="language", array_like=True):
    """The language of the file, given or found. `seconds` = its length, None where its header is silent."""

    id: str
    language: str
    probability: float
    seconds: float | None


class Word(Struct, frozen=True, array_like=True):
    """A word with the space before it and the marks around it. Times in seconds of the file."""

    text: str
    start: float
    end: float
    probability: float


class Segment(Struct, frozen=True, tag="segment", array_like=True):
    """A piece of the transcript; `index` counts from 0. Times in seconds of the file.

    `avg_logprob`, `compression_ratio`, `no_speech_prob` and `temperature` are the quality of the chunk it is from.
    `words` and `logprobs` are empty unless asked for.
    """

    id: str
    index: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: list[Word] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Heard(Struct, frozen=True, tag="heard", array_like=True):
    """Progress: the file is transcribed up to here. `of` = its length as far as that is known, None where it is not."""

    id: str
    seconds: float
    of: float | None


class SpeechOptions(Struct, frozen=True, omit_defaults=True, tag="speech"):
    """How the speech engine runs a model; None = as the machine suggests."""

    device: Literal["cpu", "cuda"] | None = None
    compute_type: (
        Literal["float32", "float16", "bfloat16", "int8", "int8_float16", "int8_bfloat16", "int8_float32"]
        | None
    ) = None
    threads: int | None = None
    batch: int | None = None  # chunks a step
    parallel: int | None = None  # files under way at once
    beam: int | None = None  # hypotheses at temperature 0; 1 = greedy
    longest: float | None = None  # seconds of the longest file
