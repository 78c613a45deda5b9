"""Health, metrics and workers: what operators and probes ask."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from oxlo_local.api.exchange import State
from oxlo_local.errors import ShuttingDown, Unavailable
from oxlo_local.metrics import CONTENT_TYPE
from oxlo_local.protocol import parts


async def healthz(state: State, request: Request) -> Response:
    """The process lives."""
    return _json({"status": "ok"})


async def readyz(state: State, request: Request) -> Response:
    """Every model that counts has answered its warm-up; else 503, with what is still missing."""
    if state.draining():
        return _not_ready(["the server is shutting down"], ShuttingDown("The server is shutting down."))
    missing = state.missing()
    if missing:
        return _not_ready(missing, Unavailable(f"Not ready: {'; '.join(missing)}."))
    return _json({"status": "ready", "missing": []})


def _not_ready(missing: list[str], error: Unavailable) -> Response:
    body = {"status": "not ready", "missing": missing, **parts.error_object(error)}
    response = _json(body, status=error.status)
    response.headers["retry-after"] = "1"
    return response


async def metrics(state: State, request: Request) -> Response:
    """Counters, histograms and worker gauges in Prometheus text form."""
    return Response(state.metrics.text(), media_type=CONTENT_TYPE)


async def workers(state: State, request: Request) -> Response:
    """Every worker as of its last pong, for `oxlo ps`."""
    return _json({"workers": state.fleet.status()})


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
