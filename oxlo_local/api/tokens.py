"""POST /tokenize, /detokenize, /apply-template: what a model makes of words. Nothing is computed or paid."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from oxlo_local.api.body import read_request
from oxlo_local.api.exchange import State, exchange_of
from oxlo_local.api.stream import require_kind
from oxlo_local.calls import Done, Event, Failed, PromptCall, Started, TokenCall
from oxlo_local.catalogue import Model
from oxlo_local.errors import BadRequest, ServerError, from_code
from oxlo_local.protocol import chat, parts, tokens
from oxlo_local.protocol.chat import ChatRequest


async def tokenize(state: State, request: Request) -> Response:
    """A text in, its tokens out."""
    asked = await read_request(state, request, tokens.decode_tokenize)
    event = await ask(state, request, asked.model, lambda _, id: tokens.tokenize_call(asked, id))
    return _json(tokens.tokens_answer(event, with_pieces=bool(asked.with_pieces)))


async def detokenize(state: State, request: Request) -> Response:
    """Tokens in, their text out."""
    asked = await read_request(state, request, tokens.decode_detokenize)
    event = await ask(state, request, asked.model, lambda _, id: tokens.detokenize_call(asked, id))
    return _json(tokens.text_answer(event, "content"))


async def apply_template(state: State, request: Request) -> Response:
    """A chat request in, the prompt that the model would be given out."""
    only = _only_model(state)

    def decode(body: bytes, *, strict: bool) -> tuple[ChatRequest, list[str]]:
        return chat.decode(tokens.with_model(body, only), strict=strict, max_n=state.settings.choices_max)

    asked = await read_request(state, request, decode)

    def call_for(model: Model, id: str) -> TokenCall:
        require_kind(model, "chat")
        return PromptCall(id, chat.to_call(asked, model.sampling, id))

    return _json(tokens.text_answer(await ask(state, request, asked.model, call_for), "prompt"))


async def ask(
    state: State, request: Request, name: str | None, call_for: Callable[[Model, str], TokenCall]
) -> Event:
    """The one event that answers a question; `Done` where that says it all.

    Raises OxloError: a model that is unknown, stopped or not this key's, and what the worker says.
    """
    exchange = exchange_of(request)
    caller = exchange.caller
    assert caller is not None
    resolved = state.catalogue.resolve(name or _only_model(state) or _missing())
    caller.limits.permit(resolved.model.id, exchange.endpoint)
    exchange.model = resolved.model.id
    exchange.warnings += [resolved.warning] if resolved.warning else []
    stream = state.fleet.submit(resolved.model.id, call_for(resolved.model, parts.new_id("ask")))
    answer: Event | None = None
    try:
        async for event in stream:
            if isinstance(event, Failed):
                raise from_code(event.code, event.message, param=event.param)
            if not isinstance(event, Started | Done) or (answer is None and isinstance(event, Done)):
                answer = event
    finally:
        stream.cancel()
    if answer is None:
        raise ServerError("The model did not answer.")
    return answer


def _only_model(state: State) -> str:
    """The one that runs, for clients of llama-server, which name none; "" where there are several."""
    running = [worker.model for worker in state.fleet.status()]
    return running[0] if len(running) == 1 else ""


def _missing() -> str:
    raise BadRequest("Missing required parameter: 'model'; several are running.", param="model")


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
