"""/v1/completions on the wire: request types, request to call, events to chunks or to the one answer.

The legacy log-probabilities are parallel lists over tokens. `text_offset` is where a token begins in the choice's text,
counted in characters. A token that is no whole character is written as OpenAI does: `bytes:\\xe2\\x82`.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from oxlo_local.calls import Done, Event, Failed, Finished, Started, Text, TextCall, TokenLogprob
from oxlo_local.errors import BadRequest, UnsupportedValue
from oxlo_local.protocol import parts
from oxlo_local.protocol.constraints import constraint_of, unknown_members
from oxlo_local.protocol.fields import COMPLETIONS, refuse_unhonoured

_KNOWN = frozenset(field.name for field in COMPLETIONS)
_STREAM_FIELDS = frozenset(field.name for field in msgspec.structs.fields(parts.StreamOptions))
_Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]


# -- requests ---------------------------------------------------------------------------------------------------------


class CompletionRequest(parts.TextRequest, frozen=True, kw_only=True):
    """A completions request whose fields have the right types and ranges."""

    prompt: str | Annotated[list[str | _Token | list[_Token]], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: Annotated[int, Meta(ge=0, le=128)] | None = None


def decode(body: bytes, *, strict: bool, max_n: int = 128) -> tuple[CompletionRequest, list[str]]:
    """The request in `body` and one warning for each unknown field. Raises BadRequest and its kinds."""
    members = parts.read_object(body)
    refuse_unhonoured(members, COMPLETIONS)
    if members.get("prompt", "") is None:
        members = {**members, "prompt": ""}  # OpenAI: a new document
    request = parts.convert(members, CompletionRequest)
    parts.check_text_request(request, max_n=max_n)
    if request.best_of not in (None, 1, request.choices_each):
        raise UnsupportedValue("'best_of' must be 1 or equal to 'n'.", param="best_of")
    if request.max_tokens == 0 and not request.echo:
        raise BadRequest("'max_tokens' must be at least 1 without 'echo'.", param="max_tokens")
    prompts = prompts_of(request)
    if len(prompts) * request.choices_each > parts.MAX_CHOICES:
        raise BadRequest(f"Prompts times 'n' must be at most {parts.MAX_CHOICES} choices.", param="prompt")
    options = members.get("stream_options")
    unknown = parts.unknown_names(members, _KNOWN)
    if isinstance(options, dict):
        unknown += parts.unknown_names(options, _STREAM_FIELDS, "stream_options.")
    unknown += unknown_members(members)
    return request, parts.warn_unknown(unknown, _KNOWN, strict=strict)


def prompts_of(request: CompletionRequest) -> list[str | list[int]]:
    """The prompts one by one. Raises BadRequest for a mixed list or an empty list of tokens."""
    return parts.texts_or_tokens(request.prompt, "prompt")


def to_call(request: CompletionRequest, model_defaults: Mapping[str, float], id: str) -> TextCall:
    """The request in the engine's words. `model_defaults` are the model's own sampling values."""
    return TextCall(
        id=id,
        prompts=prompts_of(request),
        suffix=request.suffix,
        sampling=parts.sampling_of(request, model_defaults),
        max_tokens=16 if request.max_tokens is None else request.max_tokens,
        stop=parts.stop_strings(request),
        n=request.choices_each,
        logprobs=request.logprobs,
        echo=bool(request.echo),
        truncate=request.truncation == "auto",
        constraint=constraint_of(request),
    )


# -- answers ----------------------------------------------------------------------------------------------------------


def renderer(request: CompletionRequest, head: parts.Head) -> parts.Renderer:
    """What turns the events of `request` into the bytes that its client asked for."""
    choices = len(prompts_of(request)) * request.choices_each
    if request.stream:
        return Chunks(head, logprobs=request.logprobs is not None, include_usage=request.include_usage)
    return Answer(head, choices=choices, logprobs=request.logprobs is not None)


class TokenTable(Struct):
    """The legacy log-probabilities of one choice, or of one chunk of it."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


def _token_name(text: str, data: list[int]) -> str:
    """The token's text; its bytes, escaped, where they are no whole characters."""
    if "\ufffd" not in text:
        return text
    raw = bytes(data)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _characters_begun(data: list[int]) -> int:
    """How many characters begin in these bytes: all but UTF-8's continuation bytes."""
    return sum(byte & 0xC0 != 0x80 for byte in data)


def token_table(tokens: list[TokenLogprob], text: str, offset: int) -> tuple[TokenTable, int]:
    """The table of `tokens` of `text`, whose first begins at character `offset`; and where the next will begin."""
    table = TokenTable([], [], [], [])
    for token in tokens:
        name = _token_name(token.token, token.bytes)
        candidates = {_token_name(top.token, top.bytes): parts.finite(top.logprob) for top in token.top}
        if token.logprob is not None:
            candidates.setdefault(name, parts.finite(token.logprob))
        table.tokens.append(name)
        # OpenAI's description has no null here. 0 leaves a sum over the text what it is without this token.
        table.token_logprobs.append(0.0 if token.logprob is None else parts.finite(token.logprob))
        table.top_logprobs.append(candidates)
        table.text_offset.append(offset)
        # Some tokenizers write a text's first word with a space that the text does not have.
        spare = offset == 0 and token.bytes[:1] == [0x20] and not text.startswith(" ")
        offset += _characters_begun(token.bytes) - spare
    return table, offset


class Chunks:
    """A streamed answer. A chunk's `finish_reason` is null until the choice's last, as OpenAI sends it."""

    def __init__(self, head: parts.Head, *, logprobs: bool, include_usage: bool) -> None:
        encode = msgspec.json.encode
        self._open = (
            b'data: {"id":%b,"object":"text_completion","created":%d,"model":%b,"system_fingerprint":%b,"choices":['
            % (
                encode(head.id),
                head.created,
                encode(head.model),
                encode(head.fingerprint),
            )
        )
        self._close = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._include_usage = include_usage
        self._logprobs = logprobs
        self._offsets: dict[int, int] = {}

    def add(self, event: Event) -> bytes:
        """The chunk of one event, as a server-sent event."""
        match event:
            case Text():
                return self._text(event)
            case Finished():
                return self._chunk(event.choice, b'""', b"null", msgspec.json.encode(event.reason))
            case Done():
                return self._last(event)
            case _:
                return b""

    def _chunk(self, choice: int, text: bytes, logprobs: bytes, reason: bytes) -> bytes:
        middle = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}' % (choice, text, logprobs, reason)
        return self._open + middle + self._close

    def _text(self, event: Text) -> bytes:
        if not event.text and not event.logprobs:
            return b""
        logprobs = b"null"
        if self._logprobs:
            offset = self._offsets.get(event.choice, 0)
            table, self._offsets[event.choice] = token_table(event.logprobs, event.text, offset)
            logprobs = msgspec.json.encode(table)
        return self._chunk(event.choice, msgspec.json.encode(event.text), logprobs, b"null")

    def _last(self, event: Done) -> bytes:
        if not self._include_usage:
            return parts.DONE
        usage = msgspec.json.encode(parts.usage_object(event.usage))
        return self._open + b'],"usage":' + usage + b"}\n\n" + parts.DONE


class Answer:
    """A whole answer: collects the choices, and renders at `Done`."""

    def __init__(self, head: parts.Head, *, choices: int, logprobs: bool) -> None:
        self._head = head
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._tokens: list[list[TokenLogprob]] = [[] for _ in range(choices)]
        self._reasons: list[str] = ["stop"] * choices
        self._logprobs = logprobs

    def add(self, event: Event) -> bytes:
        """Nothing, until `Done` brings the body."""
        match event:
            case Text():
                self._texts[event.choice].append(event.text)
                self._tokens[event.choice].extend(event.logprobs)
            case Finished():
                self._reasons[event.choice] = event.reason
            case Done():
                return self._body(event)
            case Started() | Failed():
                pass
        return b""

    def _body(self, event: Done) -> bytes:
        texts = ["".join(pieces) for pieces in self._texts]
        choices: list[dict[str, object]] = [
            {
                "index": index,
                "text": texts[index],
                "logprobs": token_table(self._tokens[index], texts[index], 0)[0] if self._logprobs else None,
                "finish_reason": reason,
            }
            for index, reason in enumerate(self._reasons)
        ]
        return msgspec.json.encode(parts.answer_object(self._head, "text_completion", choices, event.usage))
