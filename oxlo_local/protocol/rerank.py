"""/v1/rerank on the wire, as Cohere and Jina have it: request types, request to call, scores to the one answer."""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from oxlo_local.calls import Done, Event, RerankCall, Score
from oxlo_local.protocol import parts
from oxlo_local.protocol.fields import RERANK, refuse_unhonoured

MAX_DOCUMENTS = 2048
_KNOWN = frozenset(field.name for field in RERANK)


class Document(Struct, frozen=True):
    """A document in an object of its own."""

    text: str


class RerankRequest(Struct, frozen=True, kw_only=True):
    """A rerank request whose fields have the right types and ranges; None = not given."""

    model: parts.ModelName
    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    return_documents: bool | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None


def decode(body: bytes, *, strict: bool) -> tuple[RerankRequest, list[str]]:
    """The request in `body` and one warning for each unknown field. Raises BadRequest and its kinds."""
    members = parts.read_object(body)
    refuse_unhonoured(members, RERANK)
    request = parts.convert(members, RerankRequest)
    parts.check_metadata(request.metadata)
    return request, parts.warn_unknown(_unknown(members), _KNOWN, strict=strict)


def _unknown(members: Mapping[str, object]) -> list[str]:
    """Paths of unknown members, also inside documents. The shapes are known to be right."""
    paths = parts.unknown_names(members, _KNOWN)
    documents = members.get("documents")
    for index, document in enumerate(documents if isinstance(documents, list) else ()):
        if isinstance(document, dict):
            paths += parts.unknown_names(document, frozenset({"text"}), f"documents[{index}].")
    return paths


def texts_of(request: RerankRequest) -> list[str]:
    """The documents' texts."""
    return [each if isinstance(each, str) else each.text for each in request.documents]


def to_call(request: RerankRequest, id: str) -> RerankCall:
    """The request in the engine's words."""
    return RerankCall(id=id, query=request.query, documents=texts_of(request))


class Answer:
    """The whole answer: collects the scores, and renders at `Done`: the best first, equal ones as given."""

    def __init__(self, request: RerankRequest, id: str, model: str) -> None:
        self._id = id
        self._model = model
        self._texts = texts_of(request)
        self._with_text = bool(request.return_documents)
        self._top = request.top_n
        self._scores: dict[int, float] = {}

    def add(self, event: Event) -> bytes:
        """Nothing, until `Done` brings the body."""
        if isinstance(event, Score):
            self._scores[event.index] = event.relevance
        elif isinstance(event, Done):
            tokens = event.usage.prompt_tokens
            best = sorted(self._scores.items(), key=lambda item: (-item[1], item[0]))[: self._top]
            return msgspec.json.encode(
                {
                    "id": self._id,
                    "object": "list",
                    "model": self._model,
                    "results": [self._result(index, relevance) for index, relevance in best],
                    "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
                }
            )
        return b""

    def _result(self, index: int, relevance: float) -> dict[str, object]:
        result: dict[str, object] = {"index": index, "relevance_score": relevance}
        return {**result, "document": {"text": self._texts[index]}} if self._with_text else result
