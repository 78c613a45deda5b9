"""From a call to the token lists that are computed for it, checked against the vocabulary and the context.

May run beside a step, on a thread of its own: it reads the model's vocabulary and nothing else.
"""

from oxlo_local.calls import EmbedCall, RerankCall
from oxlo_local.engines.embedding.pooled import Pooled
from oxlo_local.errors import BadRequest, ContextLengthExceeded, UnsupportedValue


def size(call: EmbedCall | RerankCall) -> int:
    """Characters (or tokens) to read; the query of a reranking is read once for each document."""
    if isinstance(call, EmbedCall):
        return sum(map(len, call.inputs))
    return len(call.query) * len(call.documents) + sum(map(len, call.documents))


def read(model: Pooled, call: EmbedCall | RerankCall) -> list[list[int]]:
    """A token list for each input or document. Raises BadRequest and its kinds, which name the first that is wrong."""
    if isinstance(call, RerankCall):
        return _pairs(model, call)
    if model.ranks:
        raise UnsupportedValue(
            "this model ranks documents and makes no embeddings: ask /v1/rerank", param="model"
        )
    if call.dimensions is not None and call.dimensions > model.width:
        message = f"this model's embeddings have {model.width} dimensions, fewer than {call.dimensions}"
        raise BadRequest(message, param="dimensions")
    return [_input(model, each, f"input[{index}]") for index, each in enumerate(call.inputs)]


def _input(model: Pooled, given: str | list[int], param: str) -> list[int]:
    if isinstance(given, str):
        if model.hopeless(given):
            raise _too_long(model, f"at least {len(given) // model.longest_piece}", param)
        tokens = model.tokenize(given, special=True, add_special=True)
    else:
        model.check_tokens(given, param=param)
        tokens = given
    if not tokens:
        raise BadRequest(f"{param} has no tokens", param=param)
    if len(tokens) > model.longest:
        raise _too_long(model, str(len(tokens)), param)
    return tokens


def _pairs(model: Pooled, call: RerankCall) -> list[list[int]]:
    if not model.ranks:
        raise UnsupportedValue(
            "this model makes embeddings and ranks nothing: ask /v1/embeddings", param="model"
        )
    if model.hopeless(call.query):
        raise _too_long(model, f"at least {len(call.query) // model.longest_piece}", "query")
    pairs = []
    for index, document in enumerate(call.documents):
        param = f"documents[{index}]"
        if model.hopeless(document):
            raise _too_long(model, f"at least {len(document) // model.longest_piece}", param)
        tokens = model.pair(call.query, document)
        if len(tokens) > model.longest:
            raise _too_long(model, f"{len(tokens)} (the query's included)", param)
        pairs.append(tokens)
    return pairs


def _too_long(model: Pooled, count: str, param: str) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"{param} has {count} tokens and this model's context holds {model.longest}: split it", param=param
    )
