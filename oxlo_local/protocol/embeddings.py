"""/v1/embeddings on the wire: request types, request to call, vectors to the one answer."""

from base64 import b64encode
from struct import unpack
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from oxlo_local.calls import Done, EmbedCall, Event, Vector
from oxlo_local.errors import BadRequest, UnsupportedValue
from oxlo_local.protocol import parts
from oxlo_local.protocol.fields import EMBEDDINGS, refuse_unhonoured

MAX_INPUTS = 2048  # OpenAI's own bound
_KNOWN = frozenset(field.name for field in EMBEDDINGS)
_Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Encoding = Literal["float", "base64"]


class EmbeddingsRequest(Struct, frozen=True, kw_only=True):
    """An embeddings request whose fields have the right types and ranges; None = not given."""

    model: parts.ModelName
    input: str | Annotated[list[str | _Token | list[_Token]], Meta(min_length=1)]
    encoding_format: Encoding | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None


def decode(body: bytes, *, strict: bool) -> tuple[EmbeddingsRequest, list[str]]:
    """The request in `body` and one warning for each unknown field. Raises BadRequest and its kinds."""
    members = parts.read_object(body)
    refuse_unhonoured(members, EMBEDDINGS)
    request = parts.convert(members, EmbeddingsRequest)
    parts.check_metadata(request.metadata)
    inputs = inputs_of(request)
    if len(inputs) > MAX_INPUTS:
        raise BadRequest(f"'input' has {len(inputs)} items; at most {MAX_INPUTS} are allowed.", param="input")
    if "" in inputs:
        where = "input" if isinstance(request.input, str) else f"input[{inputs.index('')}]"
        raise BadRequest(f"'{where}' is empty; send at least one character.", param=where)
    return request, parts.warn_unknown(parts.unknown_names(members, _KNOWN), _KNOWN, strict=strict)


def inputs_of(request: EmbeddingsRequest) -> list[str | list[int]]:
    """The inputs one by one. Raises BadRequest for a mixed list or an empty list of tokens."""
    return parts.texts_or_tokens(request.input, "input")


def to_call(request: EmbeddingsRequest, id: str, *, width: int | None, shortens: bool) -> EmbedCall:
    """The request in the engine's words. `width`: the model's dimensions, None = not known; `shortens`: may be cut.

    Raises UnsupportedValue for `dimensions` that the model was not trained to have.
    """
    asked = request.dimensions
    if asked is not None and asked != width:
        if not shortens:
            own = f" has {width} dimensions and" if width else ""
            raise UnsupportedValue(
                f"This model{own} was not trained to be shortened; leave 'dimensions' out.",
                param="dimensions",
            )
        if width is not None and asked > width:
            raise BadRequest(f"'dimensions' is {asked}, and this model has {width}.", param="dimensions")
    return EmbedCall(id=id, inputs=inputs_of(request), dimensions=asked)


class Answer:
    """The whole answer: encodes each vector as it comes, and renders at `Done`."""

    def __init__(self, request: EmbeddingsRequest, model: str) -> None:
        self._model = model
        self._base64 = request.encoding_format == "base64"
        self._items: dict[int, bytes] = {}

    def add(self, event: Event) -> bytes:
        """Nothing, until `Done` brings the body."""
        if isinstance(event, Vector):
            self._items[event.index] = b'{"object":"embedding","index":%d,"embedding":%b}' % (
                event.index,
                encoded(event.data, base64=self._base64),
            )
        elif isinstance(event, Done):
            tokens = event.usage.prompt_tokens
            return (
                b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
                % (
                    b",".join(self._items[index] for index in sorted(self._items)),
                    msgspec.json.encode(self._model),
                    tokens,
                    tokens,
                )
            )
        return b""


def encoded(data: bytes, *, base64: bool) -> bytes:
    """A vector of little-endian float32 as JSON: a list of numbers, or the bytes in base64."""
    if base64:
        return b'"' + b64encode(data) + b'"'
    return msgspec.json.encode(unpack(f"<{len(data) // 4}f", data))
