"""POST /v1/rerank."""

from starlette.requests import Request

from oxlo_local.api.body import read_request
from oxlo_local.api.exchange import State, exchange_of
from oxlo_local.api.stream import RunAnswer, facts_of
from oxlo_local.protocol import parts, rerank


async def create(state: State, request: Request) -> RunAnswer:
    """A query and documents in, the documents' relevance out, the best first."""
    exchange = exchange_of(request)
    asked = await read_request(state, request, rerank.decode)
    id = parts.new_id("rerank")
    return RunAnswer(
        state,
        exchange,
        facts_of(request, asked.metadata),
        model=asked.model,
        call_for=lambda model: rerank.to_call(asked, id),
        renderer_for=lambda model: rerank.Answer(asked, id, model.id),
        kind="rerank",
    )
