"""/tokenize, /detokenize and /apply-template on the wire, as llama-server has them, with `model` where several run."""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from oxlo_local.calls import DetokenizeCall, Event, Text, TokenizeCall, Tokens
from oxlo_local.protocol import parts
from oxlo_local.protocol.fields import DETOKENIZE, TOKENIZE

_Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    """A text to be cut into tokens; None = not given."""

    content: str
    model: parts.ModelName | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(Struct, frozen=True, kw_only=True):
    """Tokens to be made text again."""

    tokens: list[_Token]
    model: parts.ModelName | None = None


def decode_tokenize(body: bytes, *, strict: bool) -> tuple[TokenizeRequest, list[str]]:
    """The request in `body` and one warning for each unknown field. Raises BadRequest and its kinds."""
    members = parts.read_object(body)
    known = frozenset(field.name for field in TOKENIZE)
    warnings = parts.warn_unknown(parts.unknown_names(members, known), known, strict=strict)
    return parts.convert(members, TokenizeRequest), warnings


def decode_detokenize(body: bytes, *, strict: bool) -> tuple[DetokenizeRequest, list[str]]:
    """The request in `body` and one warning for each unknown field. Raises BadRequest and its kinds."""
    members = parts.read_object(body)
    known = frozenset(field.name for field in DETOKENIZE)
    warnings = parts.warn_unknown(parts.unknown_names(members, known), known, strict=strict)
    return parts.convert(members, DetokenizeRequest), warnings


def tokenize_call(request: TokenizeRequest, id: str) -> TokenizeCall:
    """The request in the engine's words."""
    parse = True if request.parse_special is None else request.parse_special
    return TokenizeCall(id, request.content, add_special=bool(request.add_special), parse_special=parse)


def detokenize_call(request: DetokenizeRequest, id: str) -> DetokenizeCall:
    """The request in the engine's words."""
    return DetokenizeCall(id, list(request.tokens))


def with_model(body: bytes, model: str) -> bytes:
    """The same JSON object, naming `model` where it names none. Raises BadRequest for what is no object."""
    members = parts.read_object(body)
    if "model" in members or not members or not model:
        return body
    return b'{"model":' + msgspec.json.encode(model) + b"," + body.strip()[1:]


def tokens_answer(event: Event, *, with_pieces: bool) -> bytes:
    """The body of /tokenize: ids, or ids with their pieces; a piece that is no whole character is a list of bytes."""
    assert isinstance(event, Tokens)
    if not with_pieces:
        return msgspec.json.encode({"tokens": event.tokens})
    pieces = zip(event.tokens, event.pieces, strict=True)
    return msgspec.json.encode({"tokens": [{"id": token, "piece": _piece(raw)} for token, raw in pieces]})


def text_answer(event: Event, member: str) -> bytes:
    """The body of /detokenize (`content`) and of /apply-template (`prompt`)."""
    assert isinstance(event, Text)
    return msgspec.json.encode({member: event.text})


def _piece(raw: bytes) -> str | list[int]:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)
