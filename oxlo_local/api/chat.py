"""POST /v1/chat/completions."""

from functools import partial

from starlette.requests import Request

from oxlo_local import __version__
from oxlo_local.api.body import read_request
from oxlo_local.api.exchange import State, exchange_of
from oxlo_local.api.stream import RunAnswer, facts_of
from oxlo_local.calls import TextCall
from oxlo_local.catalogue import Model
from oxlo_local.protocol import chat, parts


async def create(state: State, request: Request) -> RunAnswer:
    """Messages in, the assistant's turn out, streamed or whole."""
    exchange = exchange_of(request)
    decode = partial(chat.decode, max_n=state.settings.choices_max)
    asked = await read_request(state, request, decode)
    id = parts.new_id("chatcmpl")
    caller = exchange.caller
    assert caller is not None
    tier = chat.tier_name(caller.limits.tier_for(asked.tier))

    def call_for(model: Model) -> TextCall:
        exchange.warnings += chat.in_vain(asked, state.fleet.facts(model.id))
        return chat.to_call(asked, model.sampling, id)

    return RunAnswer(
        state,
        exchange,
        facts_of(request, asked.metadata, asked.tier),
        model=asked.model,
        call_for=call_for,
        renderer_for=lambda model: chat.renderer(
            asked, parts.head_of(id, exchange.created, model.id, __version__, tier=tier)
        ),
        streamed=bool(asked.stream),
    )
