"""POST /v1/messages and its count_tokens: Anthropic's API over the same path that a chat takes."""

from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from oxlo_local.api.body import read_request
from oxlo_local.api.exchange import State, exchange_of
from oxlo_local.api.stream import RunAnswer, facts_of, require_kind
from oxlo_local.api.tokens import ask
from oxlo_local.calls import CountCall, Done, TextCall
from oxlo_local.catalogue import Model
from oxlo_local.limits import Tier
from oxlo_local.protocol.messages import answer
from oxlo_local.protocol.messages.request import Asked, decode, decode_count


async def create(state: State, request: Request) -> RunAnswer:
    """Anthropic's messages in, the assistant's next one out, streamed or whole."""
    exchange = exchange_of(request)
    asked = await read_request(state, request, decode)
    id = f"msg_{uuid4().hex}"
    caller = exchange.caller
    assert caller is not None
    own = caller.limits.tier
    tier: Tier = "standard" if own == "priority" and asked.request.service_tier == "standard_only" else own
    return RunAnswer(
        state,
        exchange,
        facts_of(request, asked.request.kept_metadata, tier),
        model=asked.request.model,
        call_for=lambda model: _call_for(state, request, asked, model, id),
        renderer_for=lambda model: answer.renderer(asked.request, id, model.id, tier),
        streamed=bool(asked.request.stream),
    )


async def count(state: State, request: Request) -> Response:
    """The same messages in, the number of tokens that the model would be given out."""
    asked = await read_request(state, request, decode_count)

    def call_for(model: Model, id: str) -> CountCall:
        require_kind(model, "chat")
        return CountCall(id, _call_for(state, request, asked, model, id))

    done = await ask(state, request, asked.request.model, call_for)
    assert isinstance(done, Done)
    return Response(answer.count_answer(done.usage.prompt_tokens), media_type="application/json")


def _call_for(state: State, request: Request, asked: Asked, model: Model, id: str) -> TextCall:
    """The call for this model; what has no effect on it is added to the warnings."""
    call, warnings = asked.call(model.sampling, state.fleet.facts(model.id), id)
    exchange_of(request).warnings += warnings
    return call
