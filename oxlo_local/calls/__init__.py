"""The hinge: what crosses between the HTTP world and a worker process. Calls go down, events come up.

The HTTP side never sees llama.cpp and the engines never see OpenAI; both see this file. Frames are msgpack-encoded
tagged structs (`workers/pipe.py` adds the length). Rules of the traffic:

1. The parent sends `Load` once; the child answers `Loading`* and then `Ready` or `LoadFailed`, once.
2. Every submitted call gets zero or one `Started`, any number of events of its own kind, and exactly one terminal one:
   `Done` or `Failed`. Nothing about a call follows its terminal event.
3. `Cancel` of an unknown or finished call is ignored; of a running one it ends in `Failed(code="cancelled")`.
4. `Ping` is answered by `Pong` at any time, also in the middle of a long decode.

What text, speech and images say is in files of their own; everybody imports it from here. Imports nothing else of ours.
"""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct, field
from msgspec.msgpack import Decoder, Encoder

from oxlo_local.calls.image import (
    Denoised,
    Drawn,
    ImageCall,
    ImageFacts,
    ImageOptions,
    Lora,
    Mode,
    Preview,
)
from oxlo_local.calls.speech import (
    Heard,
    Language,
    Segment,
    SpeechCall,
    SpeechOptions,
    Vad,
    Word,
)
from oxlo_local.calls.text import (
    CallArguments,
    CallBegun,
    CallBroken,
    Constraint,
    CountCall,
    DetokenizeCall,
    EmbedCall,
    Finished,
    FinishReason,
    Message,
    Output,
    Picture,
    PromptCall,
    Reasoning,
    RerankCall,
    Sampling,
    Score,
    Text,
    TextCall,
    Thinking,
    TokenCall,
    TokenizeCall,
    TokenLogprob,
    Tokens,
    Tool,
    ToolCall,
    TopLogprob,
    Vector,
)

Call = (
    TextCall
    | EmbedCall
    | RerankCall
    | SpeechCall
    | ImageCall
    | TokenizeCall
    | DetokenizeCall
    | PromptCall
    | CountCall
)


class Usage(Struct, frozen=True, omit_defaults=True):
    """What one call took: tokens, all its choices counted and the prompt once, seconds of audio, or images."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_prediction: int = 0  # tokens of the client's prediction that were checked and are in the answer
    rejected_prediction: int = 0  # those that were checked and are not
    audio_seconds: float = 0.0
    language: str = ""  # of the audio
    images: int = 0  # drawn
    steps: int = 0  # denoising steps of each of them


class Started(Struct, frozen=True, tag="started", array_like=True):
    """The call has left the worker's queue: its first sequence has a slot."""

    id: str
    prompt_tokens: int
    cached_tokens: int


class Done(Struct, frozen=True, tag="done", array_like=True):
    """Terminal: every choice is complete."""

    id: str
    usage: Usage


class Failed(Struct, frozen=True, tag="failed", array_like=True):
    """Terminal: the call ended without a whole answer. `code` is one of errors.py."""

    id: str
    code: str
    message: str
    param: str | None = None
    usage: Usage = Usage()


Event = (
    Started
    | Output
    | Finished
    | Vector
    | Score
    | Tokens
    | Language
    | Segment
    | Heard
    | Denoised
    | Preview
    | Drawn
    | Done
    | Failed
)


# -- life of a worker -------------------------------------------------------------------------------------------------


class TextOptions(Struct, frozen=True, omit_defaults=True, tag="text"):
    """How the text engine runs a model; None = the engine decides by what it measures or reads from the file."""

    ctx: int | None = None  # tokens per sequence
    parallel: int | None = None  # sequences at once (slots)
    batch: int | None = None  # tokens per step when nobody is waiting for a next token
    chunk: int | None = None  # prefill tokens per step beside running sequences
    together: int | None = None  # from how many sequences on their next tokens share a graph
    threads: int | None = None
    gpu_layers: int | None = None  # -1 = all
    kv_layout: Literal["streams", "unified"] | None = None
    kv_type: Literal["f32", "f16", "q8_0"] | None = None
    flash_attention: bool | None = None
    backend_sampling: bool | None = None
    speculation: Literal["none", "lookup", "draft"] | None = None
    draft: str | None = None  # path of the model that drafts
    guesses: int | None = None  # tokens that a guess has, whatever it costs; None = as many as pay
    chat_template: str | None = None  # jinja text, instead of the file's own
    mmproj: str | None = None  # path of the image encoder; None = the model does not see
    allow_remote_media: bool | None = None  # images by address are fetched


class EmbeddingOptions(Struct, frozen=True, omit_defaults=True, tag="embedding"):
    """How the embedding engine runs a model; None = as the file or the machine suggests."""

    ctx: int | None = None  # tokens of the longest input
    batch: int | None = None  # tokens per step; never less than `ctx`
    threads: int | None = None
    gpu_layers: int | None = None  # -1 = all
    flash_attention: bool | None = None
    pooling: Literal["mean", "cls", "last"] | None = None  # for a file that does not say its own


class EchoOptions(Struct, frozen=True, omit_defaults=True, tag="echo"):
    """Faults to inject: the echo engine exists to test workers/, never an API."""

    load_seconds: float = 0.0
    load_error: str | None = None
    load_exit: int | None = None  # leave with this status in mid-load, without a word
    step_seconds: float = 0.0
    parallel: int = 4
    ctx: int = 4096


class Load(Struct, frozen=True, omit_defaults=True, tag="load"):
    """First frame to a child: which engine, which file, how. `engine` is a key of `engines.ENGINES`."""

    engine: str
    model: str
    path: str
    options: TextOptions | EmbeddingOptions | SpeechOptions | ImageOptions | EchoOptions


class Submit(Struct, frozen=True, tag="submit"):
    """A call for the engine."""

    call: Call


class Cancel(Struct, frozen=True, tag="cancel"):
    """Nobody waits for this call any more."""

    id: str


class Ping(Struct, frozen=True, tag="ping"):
    """Are you there? Answered by a thread of its own."""

    number: int


class Stop(Struct, frozen=True, tag="stop"):
    """Leave now; every call still running has been answered for by the parent."""


Down = Load | Submit | Cancel | Ping | Stop


class ModelFacts(Struct, frozen=True, omit_defaults=True):
    """What a loaded model turned out to be."""

    architecture: str
    context_length: int  # tokens per sequence: the number a context_length_exceeded quotes
    parallel: int
    vocab_size: int = 0
    parameters: int = 0
    file_bytes: int = 0
    chat: bool = True  # it has, or was given, a chat template
    sees: bool = False  # it takes images
    thinks: bool = False  # before it answers, if its template does not switch that off
    thinking_knows: list[str] = field(default_factory=list)  # what its template reads of a `Thinking`
    kind: Literal["chat", "embedding", "rerank", "speech", "image"] = "chat"
    dimensions: int = 0  # of its embeddings
    device: str = "cpu"
    compute_type: str = ""  # of a speech model: the numbers it computes with
    languages: list[str] = field(default_factory=list)  # that a speech model knows
    window: float = 0.0  # seconds of the longest chunk that a speech model hears at once
    image: ImageFacts | None = None
    options: TextOptions | None = None  # with every default resolved


class Gauges(Struct, frozen=True, omit_defaults=True):
    """The engine's counters, as of the last step; totals since load."""

    running: int = 0
    waiting: int = 0
    kv_used: int = 0  # tokens held in the cache, running and idle
    kv_idle: int = 0  # of these, what is cached in slots where nothing runs
    kv_strayed: int = (
        0  # tokens by which the engine's account differed from libllama's when it last fell idle
    )
    kv_total: int = 0
    prefill_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0  # sum over steps
    preemptions: int = 0
    guessed_tokens: int = 0  # by speculation, and checked
    accepted_tokens: int = 0  # of these, what the model drew too
    audio_seconds: float = 0.0  # transcribed
    encoder_seconds: float = 0.0
    decoder_seconds: float = 0.0
    images: int = 0  # drawn
    denoising_steps: int = 0  # of an image; a batch of four counts four a step


class Loading(Struct, frozen=True, tag="loading"):
    """Load progress, 0 to 1."""

    fraction: float


class Ready(Struct, frozen=True, tag="ready"):
    """Loaded; calls may come."""

    facts: ModelFacts


class LoadFailed(Struct, frozen=True, tag="load_failed"):
    """The load failed, in the engine's own words; the child exits after it."""

    message: str


class Pong(Struct, frozen=True, tag="pong"):
    """`step` counts begun steps and moves only while the engine works; `busy` says whether it has work."""

    number: int
    step: int
    busy: bool
    gauges: Gauges
    rss_bytes: int = 0


class Events(Struct, frozen=True, tag="events"):
    """All that one step brought up: one frame a step, not one a token. `seconds` = how long the step took."""

    events: Sequence[Event]
    seconds: float = 0.0


Up = Loading | Ready | LoadFailed | Pong | Events


encoder = Encoder()
decode_down: Decoder[Down] = Decoder(Down)
decode_up: Decoder[Up] = Decoder(Up)


__all__ = [
    "Call",
    "CallArguments",
    "CallBegun",
    "CallBroken",
    "Cancel",
    "Constraint",
    "CountCall",
    "decode_down",
    "decode_up",
    "Denoised",
    "DetokenizeCall",
    "Done",
    "Down",
    "Drawn",
    "EchoOptions",
    "EmbedCall",
    "EmbeddingOptions",
    "encoder",
    "Event",
    "Events",
    "Failed",
    "Finished",
    "FinishReason",
    "Gauges",
    "Heard",
    "ImageCall",
    "ImageFacts",
    "ImageOptions",
    "Language",
    "Load",
    "LoadFailed",
    "Loading",
    "Lora",
    "Message",
    "Mode",
    "ModelFacts",
    "Output",
    "Picture",
    "Ping",
    "Pong",
    "Preview",
    "PromptCall",
    "Ready",
    "Reasoning",
    "RerankCall",
    "Sampling",
    "Score",
    "Segment",
    "SpeechCall",
    "SpeechOptions",
    "Started",
    "Stop",
    "Submit",
    "Text",
    "TextCall",
    "TextOptions",
    "Thinking",
    "TokenCall",
    "TokenizeCall",
    "TokenLogprob",
    "Tokens",
    "Tool",
    "ToolCall",
    "TopLogprob",
    "Up",
    "Usage",
    "Vad",
    "Vector",
    "Word",
]
