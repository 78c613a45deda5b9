"""POST /v1/embeddings."""

from starlette.requests import Request

from oxlo_local.api.body import read_request
from oxlo_local.api.exchange import State, exchange_of
from oxlo_local.api.stream import RunAnswer, facts_of
from oxlo_local.calls import EmbedCall
from oxlo_local.catalogue import Model
from oxlo_local.protocol import embeddings, parts


async def create(state: State, request: Request) -> RunAnswer:
    """Texts in, their vectors out, each 1 long."""
    exchange = exchange_of(request)
    asked = await read_request(state, request, embeddings.decode)

    def call_for(model: Model) -> EmbedCall:
        facts, known = state.fleet.facts(model.id), model.embedding
        width = facts.dimensions if facts is not None else known.dimensions if known is not None else None
        shortens = known is not None and known.matryoshka
        return embeddings.to_call(asked, parts.new_id("embd"), width=width, shortens=shortens)

    return RunAnswer(
        state,
        exchange,
        facts_of(request, asked.metadata),
        model=asked.model,
        call_for=call_for,
        renderer_for=lambda model: embeddings.Answer(asked, model.id),
        kind="embedding",
    )
