"""POST /v1/completions."""

from functools import partial

from starlette.requests import Request

from oxlo_local import __version__
from oxlo_local.api.body import read_request
from oxlo_local.api.exchange import State, exchange_of
from oxlo_local.api.stream import RunAnswer, facts_of
from oxlo_local.protocol import completions, parts


async def create(state: State, request: Request) -> RunAnswer:
    """Prompts in, their continuations out, streamed or whole."""
    exchange = exchange_of(request)
    decode = partial(completions.decode, max_n=state.settings.choices_max)
    asked = await read_request(state, request, decode)
    id = parts.new_id("cmpl")
    return RunAnswer(
        state,
        exchange,
        facts_of(request, asked.metadata),
        model=asked.model,
        call_for=lambda model: completions.to_call(asked, model.sampling, id),
        renderer_for=lambda model: completions.renderer(
            asked, parts.head_of(id, exchange.created, model.id, __version__)
        ),
        streamed=bool(asked.stream),
    )
