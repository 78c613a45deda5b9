"""What the text endpoints share on the wire: reading a JSON body, sampling fields, usage, ids, errors, warnings.

Reading goes in three steps, each with its own 400: the bytes are one JSON object without duplicate members
(`read_object`), known fields have the right types and ranges (`convert`, `param` is the path), and every name is
a known one (`unknown_names`). No I/O here.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from hashlib import sha256
from typing import Annotated, Literal, Protocol, TypeVar
from uuid import uuid4

import msgspec
from msgspec import Meta, Struct

from oxlo_local.calls import Event, Sampling, Usage
from oxlo_local.errors import BadRequest, OxloError, UnknownParameter, UnsupportedValue
from oxlo_local.protocol.constraints import ConstrainedRequest, constraint_of

T = TypeVar("T")

# A body of brackets and commas costs 50 times its size as objects; nothing that a model could read has so many.
MAX_ELEMENTS = 1_000_000
MAX_WARNINGS = 10
MAX_WARNING_CHARS = 100
MAX_CHOICES = 2048  # prompts times n in one completions request


# -- reading ----------------------------------------------------------------------------------------------------------


def read_object(body: bytes) -> dict[str, object]:
    """The members of the one JSON object in `body`. Raises BadRequest for anything else."""
    if not body.strip():
        raise BadRequest("The body is empty; send a JSON object.")
    if body.count(b"[") + body.count(b"{") + body.count(b",") > MAX_ELEMENTS:
        raise BadRequest(f"The body has more than {MAX_ELEMENTS} elements.")
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not UTF-8 (byte {error.start}).") from None
    except msgspec.DecodeError as error:
        member = _no_number(body)
        raise BadRequest(
            f"'{member}' is NaN or infinite, which JSON has no word for; send a number."
            if member is not None
            else f"The body is not valid JSON: {error}.",
            param=member,
        ) from None
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object.")
    _refuse_duplicates(body, value)
    return value


def _no_number(body: bytes) -> str | None:
    """The first member that is NaN or infinite, as Python's encoder writes such numbers; None where none is."""
    if b"NaN" not in body and b"Infinity" not in body:
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    members = value.items() if isinstance(value, dict) else ()
    return next((printable(name)[1:-1] for name, each in members if _endless(each)), None)


def _endless(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _refuse_duplicates(body: bytes, value: dict[str, object]) -> None:
    """A member given twice is a 400, because readers differ on which one counts.

    A decoder keeps one of the two, so the text shrinks when it is written again. It shrinks for other reasons too
    (escapes, forms of numbers): only then the body is read a second time, slowly, by a reader that sees every member.
    """
    try:
        if len(msgspec.json.encode(value)) == len(msgspec.json.format(body, indent=-1)):
            return
    except (
        OverflowError
    ):  # an integer beyond 64 bits can be read but not written; it fails as a wrong value later
        pass
    try:
        json.loads(body, object_pairs_hook=_unique)
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None


def _unique(members: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(members)
    if len(unique) < len(members):
        twice = next(name for name, times in Counter(name for name, _ in members).items() if times > 1)
        raise BadRequest(
            f"The body names the member {printable(twice)} twice.", param=twice[:MAX_WARNING_CHARS]
        )
    return unique


def convert(body: Mapping[str, object], kind: type[T], *, strict: bool = True) -> T:
    """`body` as the struct `kind`; without `strict`, texts may stand for numbers and truths.

    Raises BadRequest whose `param` is the path, such as `messages[0].role`.
    """
    try:
        return msgspec.convert(body, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise _from_validation(str(error)) from None


def _from_validation(text: str) -> BadRequest:
    """msgspec says "Expected `int`, got `str` - at `$.n`"; OpenAI's users look for the path in `param`."""
    what, _, path = text.partition(" - at ")
    param = path.replace("key in ", "").strip("`").removeprefix("$").lstrip(".")
    if what.startswith("Object missing required field"):
        missing = what.split("`")[1]
        param = f"{param}.{missing}" if param else missing
        return BadRequest(f"Missing required parameter: '{param}'.", param=param)
    return BadRequest(
        f"Invalid value for '{param or 'the body'}': {what[:1].lower()}{what[1:]}.", param=param or None
    )


def unknown_names(members: Iterable[str], known: frozenset[str], path: str = "") -> list[str]:
    """Paths of the members that no table knows."""
    return [path + name for name in members if name not in known]


def warn_unknown(paths: list[str], known: frozenset[str], *, strict: bool) -> list[str]:
    """One warning for each unknown field. Raises UnknownParameter under `strict`."""
    if strict and paths:
        near = get_close_matches(paths[0], known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UnknownParameter(
            f"Unknown parameter: {printable(paths[0])}.{hint}", param=paths[0][:MAX_WARNING_CHARS]
        )
    warnings = [f"unknown field {printable(path)} has no effect" for path in paths[:MAX_WARNINGS]]
    if len(paths) > MAX_WARNINGS:
        warnings.append(f"{len(paths) - MAX_WARNINGS} more unknown fields")
    return warnings


def printable(name: str) -> str:
    """A client's own string, cut and escaped to printable ASCII, fit for headers and logs."""
    cut = name if len(name) <= MAX_WARNING_CHARS else name[: MAX_WARNING_CHARS - 3] + "..."
    return json.dumps(cut).replace("\x7f", "\\u007f")


def warnings_header(warnings: Iterable[str]) -> str:
    """The warnings as one printable ASCII header value of bounded length."""
    joined = "; ".join(warnings)
    escaped = "".join(c if " " <= c <= "~" else f"\\u{ord(c):04x}" for c in joined)
    return escaped[:2000]


# -- requests ---------------------------------------------------------------------------------------------------------

_Fraction = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_RepeatPenalty = Annotated[float, Meta(gt=0, le=10)]
_Mirostat = Literal[0, 1, 2]


class StreamOptions(Struct, frozen=True):
    """`include_usage` adds a last chunk with the usage."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


ModelName = Annotated[str, Meta(min_length=1, max_length=512)]


class TextRequest(ConstrainedRequest, frozen=True, kw_only=True):
    """The fields that chat and completions have in common; None = not given."""

    model: ModelName
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: _Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: _Fraction | None = None
    typical_p: _Fraction | None = None
    repeat_penalty: _RepeatPenalty | None = None
    repetition_penalty: _RepeatPenalty | None = None
    repeat_last_n: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    mirostat: _Mirostat | None = None
    mirostat_mode: _Mirostat | None = None
    mirostat_tau: Annotated[float, Meta(ge=0, le=100)] | None = None
    mirostat_eta: _Fraction | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: _Int64 | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None

    @property
    def choices_each(self) -> int:
        """Choices asked for each prompt."""
        return 1 if self.n is None else self.n

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def check_text_request(request: TextRequest, *, max_n: int) -> None:
    """Rules that types cannot say. Raises BadRequest."""
    if request.choices_each > max_n:
        raise BadRequest(f"'n' is {request.n}, and this server allows at most {max_n}.", param="n")
    if request.stream_options is not None and not request.stream:
        raise BadRequest("'stream_options' is only allowed with 'stream': true.", param="stream_options")
    if request.stream_options is not None and request.stream_options.include_obfuscation:
        raise UnsupportedValue(
            "'stream_options.include_obfuscation' is not supported; leave it out or send false.",
            param="stream_options.include_obfuscation",
        )
    stop_strings(request)
    token_biases(request)
    constraint_of(request)
    check_metadata(request.metadata)
    one_of(request.repeat_penalty, request.repetition_penalty, "repeat_penalty", "repetition_penalty")
    one_of(request.mirostat, request.mirostat_mode, "mirostat", "mirostat_mode")


def one_of(first: T | None, second: T | None, first_name: str, second_name: str) -> T | None:
    """The value of a field with two names. Raises BadRequest if both are given and differ."""
    if first is not None and second is not None and first != second:
        raise BadRequest(f"'{first_name}' and '{second_name}' differ; send one of them.", param=second_name)
    return second if first is None else first


def texts_or_tokens(value: str | list[str | int | list[int]], name: str) -> list[str | list[int]]:
    """A text, texts, token ids or lists of token ids, one by one. Raises BadRequest for a mixed or empty list."""
    if isinstance(value, str):
        return [value]
    kind = type(value[0])
    for index, item in enumerate(value):
        if type(item) is not kind:
            raise BadRequest(
                f"'{name}' must be a string, a list of strings, a list of token ids, or a list of such lists.",
                param=f"{name}[{index}]",
            )
        if item == []:
            raise BadRequest("A list of token ids must not be empty.", param=f"{name}[{index}]")
    if kind is int:
        return [[token for token in value if isinstance(token, int)]]
    return [item for item in value if not isinstance(item, int)]


def stop_strings(request: TextRequest) -> list[str]:
    """`stop` as a list. Raises BadRequest for more than 4 or an empty one."""
    stops = [request.stop] if isinstance(request.stop, str) else list(request.stop or ())
    if len(stops) > 4:
        raise BadRequest(f"'stop' has {len(stops)} strings; at most 4 are allowed.", param="stop")
    for index, text in enumerate(stops):
        if not text:
            param = "stop" if isinstance(request.stop, str) else f"stop[{index}]"
            raise BadRequest("A stop string must not be empty.", param=param)
    return stops


def token_biases(request: TextRequest) -> dict[int, float]:
    """`logit_bias` by token id. Raises BadRequest for a key that is none."""
    biases: dict[int, float] = {}
    for key, bias in (request.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 9):
            raise BadRequest(
                f"A key of 'logit_bias' must be a token id, not {printable(key)}.", param="logit_bias"
            )
        biases[int(key)] = bias
    return biases


def check_metadata(metadata: dict[str, str] | None) -> None:
    """Raise BadRequest for more or longer pairs than a row keeps."""
    if metadata is None:
        return
    if len(metadata) > 16:
        raise BadRequest(f"'metadata' has {len(metadata)} pairs; at most 16 are allowed.", param="metadata")
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512:
            raise BadRequest(
                "A key of 'metadata' has at most 64 characters, a value at most 512.", param="metadata"
            )


def sampling_of(request: TextRequest, model_defaults: Mapping[str, float]) -> Sampling:
    """How to sample: what the request says, else the model's own defaults, else OpenAI's.

    `model_defaults` has names and values of `calls.Sampling`, as the catalogue checked when it was read.
    """
    mirostat = one_of(request.mirostat, request.mirostat_mode, "mirostat", "mirostat_mode")
    asked = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": None if request.top_k is None else max(0, request.top_k),
        "min_p": request.min_p,
        "typical_p": request.typical_p,
        "repeat_penalty": one_of(
            request.repeat_penalty, request.repetition_penalty, "repeat_penalty", "repetition_penalty"
        ),
        "repeat_last_n": request.repeat_last_n,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "mirostat": mirostat,
        "mirostat_tau": request.mirostat_tau,
        "mirostat_eta": request.mirostat_eta,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    values = {**model_defaults, **given, "seed": request.seed, "logit_bias": token_biases(request)}
    return msgspec.convert(values, Sampling, strict=False)


# -- answers ----------------------------------------------------------------------------------------------------------


class Head(Struct, frozen=True):
    """What every chunk of one answer repeats. `created` is in Unix seconds, `tier` as OpenAI names them."""

    id: str
    created: int
    model: str
    fingerprint: str
    tier: str = "default"


class Renderer(Protocol):
    """Turns the events of one call into bytes for the wire. Fed every event in order."""

    def add(self, event: Event) -> bytes:
        """What to send now: server-sent events for a stream, nothing before `Done` for a whole answer."""


def new_id(prefix: str) -> str:
    """An id for one call and its answer."""
    return f"{prefix}-{uuid4().hex}"


def head_of(id: str, created: int, model: str, version: str, *, tier: str = "default") -> Head:
    """A head whose fingerprint changes with the model and the program's version only."""
    digest = sha256(f"{model}\0{version}".encode()).hexdigest()
    return Head(id=id, created=created, model=model, fingerprint=f"fp_{digest[:10]}", tier=tier)


def answer_object(head: Head, kind: str, choices: list[dict[str, object]], usage: Usage) -> dict[str, object]:
    """A whole answer of the kind that OpenAI calls `kind`."""
    return {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.fingerprint,
        "choices": choices,
        "usage": usage_object(usage),
    }


def usage_object(usage: Usage) -> dict[str, object]:
    """OpenAI's usage: all choices counted, the prompt once."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": usage.accepted_prediction,
            "rejected_prediction_tokens": usage.rejected_prediction,
        },
    }


def finite(logprob: float) -> float:
    """JSON has no -inf; OpenAI writes -9999 for a token that could not come."""
    return max(logprob, -9999.0)


def error_object(error: OxloError) -> dict[str, object]:
    """The one error shape."""
    return {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
    }


def error_event(error: OxloError) -> bytes:
    """An error inside a stream: one server-sent event, after which the stream ends without [DONE]."""
    return sse(error_object(error))


def sse(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
