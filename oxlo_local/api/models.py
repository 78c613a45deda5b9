"""GET /v1/models and /v1/models/{id}: what is embedded, pulled or attached, and how it is; also as Anthropic has it."""

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from oxlo_local import lineup
from oxlo_local.api.exchange import State, exchange_of
from oxlo_local.calls import ImageFacts
from oxlo_local.catalogue import LORA, Model
from oxlo_local.protocol import models as wire
from oxlo_local.protocol.dialect import ANTHROPIC
from oxlo_local.protocol.images.request import named
from oxlo_local.protocol.messages import models as anthropic

_STATUS: dict[str, wire.Status] = {
    "starting": "loading",
    "warming": "loading",
    "backing_off": "loading",
    "ready": "ready",
    "draining": "stopped",
    "stopped": "stopped",
    "failed": "failed",
}


async def listing(state: State, request: Request) -> Response:
    """All models that are here: embedded, pulled or attached. LoRAs are not listed: they are parts of others."""
    items = [_item(state, model) for model in state.catalogue.here() if model.kind != LORA]
    if exchange_of(request).dialect is ANTHROPIC:
        return _json(anthropic.listing(items, request.query_params))
    return _json(wire.listing(items))


async def one(state: State, request: Request) -> Response:
    """One model, by id, alias or near spelling; 404 with the nearest names, or the `oxlo pull` that fetches it."""
    resolved = state.catalogue.resolve(request.path_params["model"])
    item = _item(state, resolved.model)
    return _json(anthropic.item(item) if exchange_of(request).dialect is ANTHROPIC else wire.item(item))


def _item(state: State, model: Model) -> wire.ModelItem:
    worker = next((each for each in state.fleet.status() if each.model == model.id), None)
    facts = state.fleet.facts(model.id)
    created = int(model.path.stat().st_mtime) if model.path is not None and model.path.exists() else 0
    return wire.ModelItem(
        id=model.id,
        created=created,
        owned_by=model.repo.partition("/")[0] if model.repo else "oxlo-local",
        kind=model.kind,
        status="stopped" if worker is None else _STATUS[worker.state],
        context_length=model.context if facts is None else facts.context_length,
        price_usd=model.price_micros / 1_000_000,
        display_name=model.display_name,
        vision=lineup.sees(model) if facts is None else facts.sees,
        image=_drawing(facts.image) if facts is not None and facts.image is not None else UNSET,
    )


def _drawing(facts: ImageFacts) -> wire.ImageItem:
    return wire.ImageItem(
        modes=[*facts.modes],
        sizes=[named(size) for size in facts.sizes],
        steps=facts.steps,
        max_steps=facts.max_steps,
        guidance=facts.guidance if facts.guided else None,
        negative_prompt=facts.negative,
        strength=facts.strength or None,
        max_images=facts.max_images if "redraw" in facts.modes else 0,
        loras=facts.loras,
    )


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
