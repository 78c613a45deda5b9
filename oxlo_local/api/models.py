"""GET /v1/models and /v1/models/{id}: what is embedded, pulled or attached, and how it is."""

from starlette.requests import Request
from starlette.responses import Response

from oxlo_local import lineup
from oxlo_local.api.exchange import State
from oxlo_local.catalogue import Model
from oxlo_local.protocol import models as wire

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
    """All models that are here: embedded, pulled or attached."""
    return _json(wire.listing([_item(state, model) for model in state.catalogue.here()]))


async def one(state: State, request: Request) -> Response:
    """One model, by id, alias or near spelling; 404 with the nearest names, or the `oxlo pull` that fetches it."""
    resolved = state.catalogue.resolve(request.path_params["model"])
    return _json(wire.item(_item(state, resolved.model)))


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
    )


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
