"""The HTTP side: the visible list of all routes, the frame around every request, and errors as responses.

    Frame (id, headers, log line, metrics) > CORS (only with cors_origins) > router > guard > endpoint

Everything that fails raises an `OxloError`; only this file makes a response of one.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from uuid import uuid4

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from oxlo_local import log as logs
from oxlo_local.api import (
    admin,
    audio,
    chat,
    completions,
    embeddings,
    guard,
    images,
    messages,
    models,
    once,
    rerank,
    standing,
    tokens,
    usage,
)
from oxlo_local.api.exchange import SANE_ID, Exchange, State, exchange_of
from oxlo_local.errors import (
    BadRequest,
    Cancelled,
    MethodNotAllowed,
    NotFound,
    OxloError,
    ServerError,
    Standing,
    TooManyRequests,
    Unauthorized,
)
from oxlo_local.ledger import usd
from oxlo_local.protocol import parts
from oxlo_local.protocol.dialect import ANTHROPIC, OPENAI, Dialect, dialect_of

__all__ = ["ROUTES", "Endpoint", "State", "create_app", "error_response", "not_http"]

log = logging.getLogger(__name__)

Answer = Callable[[State, Request], Awaitable[ASGIApp]]


@dataclass(frozen=True)
class Endpoint:
    """One route: who may ask (`anyone` needs no key, ever), and what body it takes.

    The path of a `secret` one is what lets its caller in, so it is in no log.
    """

    method: str
    path: str
    answer: Answer
    who: str = "user"
    takes: Literal["nothing", "json", "form", "json or form"] = "nothing"
    secret: bool = False


ROUTES = (
    Endpoint("GET", "/healthz", admin.healthz, who="anyone"),
    Endpoint("GET", "/readyz", admin.readyz, who="anyone"),
    Endpoint("GET", "/metrics", admin.metrics, who="admin"),
    Endpoint("GET", "/admin/workers", admin.workers, who="admin"),
    Endpoint("GET", "/v1/models", models.listing),
    Endpoint("GET", "/v1/models/{model:path}", models.one),
    Endpoint("GET", "/v1/usage", usage.show),
    Endpoint("POST", "/v1/chat/completions", chat.create, takes="json"),
    Endpoint("POST", "/v1/completions", completions.create, takes="json"),
    Endpoint("POST", "/v1/messages", messages.create, takes="json"),
    Endpoint("POST", "/v1/messages/count_tokens", messages.count, takes="json"),
    Endpoint("POST", "/v1/embeddings", embeddings.create, takes="json"),
    Endpoint("POST", "/v1/rerank", rerank.create, takes="json"),
    Endpoint("POST", "/v1/audio/transcriptions", audio.transcribe, takes="form"),
    Endpoint("POST", "/v1/audio/translations", audio.translate, takes="form"),
    Endpoint("POST", "/v1/images/generations", images.generate, takes="json"),
    Endpoint("POST", "/v1/images/edits", images.edit, takes="json or form"),
    Endpoint("POST", "/v1/images/variations", images.vary, takes="json or form"),
    Endpoint("GET", images.OUTPUT_PATH, images.output, who="anyone", secret=True),
    Endpoint("POST", "/tokenize", tokens.tokenize, takes="json"),
    Endpoint("POST", "/detokenize", tokens.detokenize, takes="json"),
    Endpoint("POST", "/apply-template", tokens.apply_template, takes="json"),
)


def create_app(state: State, log_level: int = logging.INFO) -> ASGIApp:
    """The ASGI application over the rooms in `state`; `log_level` is that of the line for each request."""
    app = Starlette(
        routes=[Route(each.path, Guarded(state, each), methods=[each.method]) for each in ROUTES],
        middleware=_cors(state),
        exception_handlers={
            HTTPException: _on_http_exception,
            OxloError: _on_error,
            Exception: _on_fault,
        },
    )
    app.router.redirect_slashes = False
    return Frame(app, state, log_level)


class Guarded:
    """An endpoint behind its guard, as an ASGI application."""

    def __init__(self, state: State, endpoint: Endpoint) -> None:
        self._state = state
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit the caller, check the body's type, answer, once for each Idempotency-Key. Raises OxloError."""
        endpoint, request = self._endpoint, Request(scope, receive, send)
        exchange = exchange_of(request)
        exchange.endpoint = endpoint.path
        form = endpoint.takes == "form" or (endpoint.takes == "json or form" and guard.is_form(request))
        exchange.body_left = form  # too much to be sent before the answer is heard
        if endpoint.who != "anyone":
            exchange.caller = await guard.admit(self._state, request, admin=endpoint.who == "admin")
        if form:
            guard.require_form(request)
        elif endpoint.takes != "nothing":
            guard.require_json(request)
        key = once.key_of(request)
        if key is None:
            await self._answer(scope, receive, send)
        else:
            await once.once(self._answer, self._state, key, scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._endpoint.answer(self._state, Request(scope, receive, send))
        await answer(scope, receive, send)


def _cors(state: State) -> list[Middleware]:
    origins = state.settings.cors_origins
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_EXPOSED,
        )
    ]


# -- the frame --------------------------------------------------------------------------------------------------------

_SECRET = frozenset(each.path for each in ROUTES if each.secret)
_PROBES = frozenset(each.path for each in ROUTES if each.who == "anyone") - _SECRET  # asked all the time
_EXPOSED = (
    "x-request-id",
    "request-id",
    "openai-processing-ms",
    "x-oxlo-entry",
    "x-oxlo-price-usd",
    "x-oxlo-replayed",
    "x-oxlo-warnings",
    "x-should-retry",
    "retry-after",
    "retry-after-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "anthropic-ratelimit-requests-limit",
    "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-requests-reset",
)


class Frame:
    """Around every request, known route or not: its id, its headers, its line in the log, its place in the metrics."""

    def __init__(self, app: ASGIApp, state: State, log_level: int) -> None:
        self._app = app
        self._metrics = state.metrics
        self._ledger = state.ledger
        self._log_level = log_level

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens inside."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        asked_id = asked.get("x-request-id", "")
        exchange = Exchange(asked_id if SANE_ID.fullmatch(asked_id) else _new_id())
        exchange.dialect = dialect_of(scope["path"], asked)
        scope["oxlo.exchange"] = exchange
        logs.request_id.set(exchange.request_id)

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = MutableHeaders(scope=message)
                _add_headers(headers, exchange)
                standings, price = await self._standings(exchange)
                now = datetime.now(UTC) if exchange.dialect is ANTHROPIC else None
                headers.update(standing.headers_of(standings, price, anthropic_at=now))
            await send(message)

        self._metrics.request_started()
        try:
            await self._app(scope, receive, framed)
        except Exception:
            log.exception("a request failed")
        finally:
            self._finish(scope, exchange)

    async def _standings(self, exchange: Exchange) -> tuple[Sequence[Standing], int]:
        """The key's limits now, as its row or its refusal found them, where there is one; what the request costs."""
        caller, entry, refusal = exchange.caller, exchange.entry, exchange.refusal
        if caller is None or not caller.limits.counted:
            return (), 0
        if refusal is not None:
            return refusal.standings, refusal.price_micros
        price = 0 if entry is None else entry.price_micros
        if entry is not None and entry.standings and exchange.status < 400:
            return entry.standings, price
        try:
            return await self._ledger.standings(caller.key_id), price
        except OxloError:  # a ledger in trouble, a key just revoked: the answer is what it is
            return (), 0

    def _finish(self, scope: Scope, exchange: Exchange) -> None:
        status = Cancelled.status if exchange.client_left or not exchange.status else exchange.status
        self._metrics.request_finished(exchange.endpoint, exchange.model, status, exchange.seconds)
        # The path as it came, percent-encoded: it cannot forge a line. The query is left out.
        path = scope.get("raw_path", b"").decode("ascii", "backslashreplace")[:200]
        if exchange.endpoint in _SECRET:
            path = exchange.endpoint
        entry = exchange.entry.id if exchange.entry is not None else "-"
        log.log(
            logging.DEBUG if exchange.endpoint in _PROBES else self._log_level,
            "%s %s %d %.1f ms model=%s entry=%s%s",
            scope["method"],
            path,
            status,
            1000 * exchange.seconds,
            exchange.model or "-",
            entry,
            f" warnings: {parts.warnings_header(exchange.warnings)}" if exchange.warnings else "",
        )


def _new_id() -> str:
    return f"req_{uuid4().hex}"


def _add_headers(headers: MutableHeaders, exchange: Exchange) -> None:
    headers["x-request-id"] = exchange.request_id
    if exchange.dialect is ANTHROPIC:
        headers["request-id"] = exchange.request_id
    headers["openai-processing-ms"] = str(round(1000 * exchange.seconds))
    if exchange.entry is not None:
        headers["x-oxlo-entry"] = exchange.entry.id
        headers["x-oxlo-price-usd"] = usd(exchange.entry.price_micros)
    if exchange.repeated:
        headers["x-oxlo-replayed"] = "true"
    if exchange.warnings:
        headers["x-oxlo-warnings"] = parts.warnings_header(exchange.warnings)


# -- errors as responses ----------------------------------------------------------------------------------------------

LINGER_SECONDS = 2.0


def error_response(
    error: OxloError, kind: type[Response] = Response, *, dialect: Dialect = OPENAI, request_id: str = ""
) -> Response:
    """The error in the dialect of its route, with the headers that tell a client whether to try again."""
    headers = {}
    if error.retryable:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after or 1)))
        if error.retry_after:  # the same to the millisecond, for clients that read it: OpenAI's do
            headers["retry-after-ms"] = str(math.ceil(round(error.retry_after * 1000, 3)))
    else:
        headers["x-should-retry"] = "false"
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    body = msgspec.json.encode(dialect.error_object(error, request_id))
    return kind(body, error.status, headers, media_type="application/json")


def not_http() -> bytes:
    """The answer, from the status line on, to bytes that are no HTTP request and so never reach the routes."""
    response = error_response(
        BadRequest(
            "This is not an HTTP/1.1 request that the server can read, or its head is longer than 64 KiB."
        )
    )
    _add_headers(response.headers, Exchange(_new_id()))
    lines = [b"HTTP/1.1 400 Bad Request", *(name + b": " + value for name, value in response.raw_headers)]
    return b"\r\n".join([*lines, b"connection: close", b"", bytes(response.body)])


class LastWords(Response):
    """An answer to a client that is still sending, after which the connection closes.

    Closing at once would reset the connection, and the client would lose the answer: what it still sends within two
    seconds is read and dropped first.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, let the client finish, close."""
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                more = True
                while more:
                    more = bool((await receive()).get("more_body"))
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b""})


def _response_to(request: Request, error: OxloError, kind: type[Response] = Response) -> Response:
    exchange = exchange_of(request)
    return error_response(error, kind, dialect=exchange.dialect, request_id=exchange.request_id)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OxloError)
    exchange = exchange_of(request)
    exchange.client_left = isinstance(error, Cancelled)
    exchange.refusal = error if isinstance(error, TooManyRequests) and error.standings else None
    return _response_to(request, error, LastWords if exchange.body_left else Response)


async def _on_fault(request: Request, error: Exception) -> Response:
    """Anything else is a fault of ours, which the frame logs."""
    return _response_to(request, ServerError("The server failed on this request; its log says why."))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What the router refuses: no such path, another method."""
    assert isinstance(error, HTTPException)
    path = request.url.path.encode("ascii", "backslashreplace").decode()[:200]
    if error.status_code == NotFound.status:
        return _response_to(request, NotFound(f"There is no route {path}; the README lists them all."))
    if error.status_code != MethodNotAllowed.status:
        return _response_to(request, BadRequest(error.detail))
    allowed = (error.headers or {}).get("Allow", "")
    if request.method == "OPTIONS":
        return Response(status_code=204, headers={"allow": allowed})
    refusal = MethodNotAllowed(f"{path} does not take {request.method}; it takes {allowed}.")
    response = _response_to(request, refusal)
    response.headers["allow"] = allowed
    return response
