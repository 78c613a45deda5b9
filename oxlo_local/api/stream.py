"""From a run's events to bytes on the wire, streamed or whole, with the client watched all the while.

Two tasks stand around a run: one takes its events as they come, one waits for the client to leave (ASGI says so by a
message). The answer is written by the request's own task, in batches: all events that are ready become one write.

The status line waits for the first output, so that a failure before it (a prompt too long, a full queue) is a plain
HTTP error. A stream that stays silent for longer than a heartbeat begins without it; a failure after that is one
event. What ends an answer is written after the run's context has been left: by the time a client has read the last
byte, its row is closed. It is known before, so that an answer which is kept for replay (once.py) is on the disk when
its row is closed.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from oxlo_local.api.exchange import SANE_ID, Exchange, State, exchange_of
from oxlo_local.calls import Call, CallBroken, Done, Drawn, Event, Finished, Output, Segment, Started
from oxlo_local.catalogue import Model
from oxlo_local.entry import Kind
from oxlo_local.errors import BadRequest, Cancelled, OxloError, ServerError, UnsupportedValue
from oxlo_local.inference import RequestFacts, Run
from oxlo_local.limits import Tier
from oxlo_local.metrics import Metrics
from oxlo_local.protocol import parts

log = logging.getLogger(__name__)

# Where the models of a kind are asked.
ENDPOINTS: dict[Kind, str] = {
    "chat": "/v1/chat/completions, /v1/completions or /v1/messages",
    "embedding": "/v1/embeddings",
    "rerank": "/v1/rerank",
    "speech": "/v1/audio/transcriptions or /v1/audio/translations",
    "image": "/v1/images/generations, /v1/images/edits or /v1/images/variations",
}
READ_AHEAD = 64  # events taken but not yet written; beyond it the run's own queue holds and joins them

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Feed:
    """The events of a run in batches of what is ready: an async iterator. An empty batch is `silence` seconds of none.

    Raises what the run raises, and Cancelled as soon as the client has left.
    """

    def __init__(
        self, run: Run, receive: Receive, see: Callable[[Event], None], silence: float | None
    ) -> None:
        self._run = run
        self._receive = receive
        self._see = see
        self._silence = silence
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()  # when there was last something to write
        self._timer: asyncio.TimerHandle | None = None
        self._ready: list[Event] = []
        self._over = False
        self._gone = False
        self._silent = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._take()), asyncio.create_task(self._watch())]
        if self._silence is not None:
            self._timer = self._loop.call_later(self._silence, self._listen, self._silence)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self) -> None:
        try:
            async for event in self._run:
                self._see(event)
                self._ready.append(event)
                self._wake()
                if len(self._ready) >= READ_AHEAD:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:
            self._error = error
        finally:
            self._over = True
            self._wake()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._run.leave()  # at this moment: whether it pays must not hang on what comes before the row is closed
        self._wake()

    def _listen(self, silence: float) -> None:
        """Notice `silence` seconds of nothing. One timer that looks back, because one a token would cost more."""
        quiet = self._loop.time() - self._heard
        if quiet >= silence:
            self._silent = True
            self._wake()
            quiet = 0.0
        self._timer = self._loop.call_later(silence - quiet, self._listen, silence)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Event]:
        while not (self._gone or self._ready or self._over or self._silent):
            self._reader = self._loop.create_future()
            await self._reader
        if self._gone:
            raise Cancelled("the client left")
        if not self._ready and self._over:
            raise self._error or StopAsyncIteration
        batch, self._ready = self._ready, []
        self._silent = False
        self._heard = self._loop.time()
        self._room.set()
        return batch


class Pace:
    """Times what comes up: first output, the gaps between a choice's tokens; at the end usage, audio, images."""

    def __init__(self, metrics: Metrics, exchange: Exchange, model: str) -> None:
        self._metrics = metrics
        self._exchange = exchange
        self._model = model
        self._between = metrics.inter_token(model)
        self._last: dict[int, float] = {}
        self._silent = True
        self._started = time.perf_counter()

    def see(self, event: Event) -> None:
        """Note an event at the moment it comes."""
        if isinstance(event, CallBroken):
            self._metrics.broken_call(self._model)
        if isinstance(event, Output | Segment | Drawn) and self._silent:
            self._metrics.first_output(self._model, self._exchange.seconds)
            self._silent = False
        if isinstance(event, Output):
            now = time.perf_counter()
            before = self._last.get(event.choice)
            if before is not None:
                self._between(now - before)
            self._last[event.choice] = now
        elif isinstance(event, Finished):
            self._last.pop(event.choice, None)
        elif isinstance(event, Started):
            self._started = time.perf_counter()
        elif isinstance(event, Done):
            self._metrics.tokens(self._model, event.usage)
            seconds = time.perf_counter() - self._started
            if event.usage.audio_seconds:
                self._metrics.heard(self._model, event.usage.audio_seconds, seconds)
            if event.usage.images:
                self._metrics.drawn(self._model, event.usage.images, seconds)


async def _nothing(events: Sequence[Event]) -> None:
    """Most events need nothing done before they are rendered."""


class RunAnswer:
    """The ASGI answer of an endpoint that runs a model: opens the run, writes what comes of it, closes it.

    `before` is awaited with events before they are rendered. `complete` says whether the answer's end was reached.
    """

    def __init__(
        self,
        state: State,
        exchange: Exchange,
        request: RequestFacts,
        *,
        model: str,
        call_for: Callable[[Model], Call],
        renderer_for: Callable[[Model], parts.Renderer],
        streamed: bool = False,
        kind: Kind = "chat",
        media_type: bytes = b"application/json",
        before: Callable[[Sequence[Event]], Awaitable[None]] = _nothing,
    ) -> None:
        self.complete = False
        self._state = state
        self._exchange = exchange
        self._request = request
        self._model = model
        self._call_for = call_for
        self._renderer_for = renderer_for
        self._streamed = streamed
        self._kind = kind
        self._media_type = media_type
        self._before = before
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request. Raises OxloError while nothing has been sent."""
        try:
            end = await self._run(receive, send)
        except Cancelled:
            self._exchange.client_left = True
            return
        except Exception as error:
            if not self._begun:
                raise
            failure = _told(error)
            self._exchange.status = failure.status  # for log and metrics: its client was sent a 200
            told = self._exchange.dialect.error_event(failure, self._exchange.request_id)
            end = self._end(told)
        for message in end:
            await send(message)

    async def _run(self, receive: Receive, send: Send) -> list[Message]:
        """Everything but what ends the answer, which is returned."""
        exchange, state = self._exchange, self._state
        caller = exchange.caller
        assert caller is not None
        opened = state.inference.open(self._call, model=self._model, caller=caller, request=self._request)
        async with opened as run:
            exchange.run, exchange.entry, exchange.model = run, run.entry, run.model.id
            exchange.warnings += run.warnings
            renderer = self._renderer_for(run.model)
            pace = Pace(state.metrics, exchange, run.model.id)
            silence = state.settings.heartbeat_seconds if self._streamed else None
            async with Feed(run, receive, pace.see, silence) as feed:
                async for events in feed:
                    await self._before(events)
                    data = b"".join(map(renderer.add, events))
                    if events and isinstance(events[-1], Done):
                        end = self._end(data)
                        await exchange.keep(end)
                        self.complete = True
                        return end
                    if self._streamed and (data or not events):
                        await self._write(send, data or exchange.dialect.heartbeat)
                        run.delivered += sum(isinstance(event, Drawn) for event in events)
        raise ServerError("The answer ended without being complete.")

    def _call(self, model: Model) -> Call:
        require_kind(model, self._kind)
        return self._call_for(model)

    async def _write(self, send: Send, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            await send(_start(_STREAM_HEADERS))
        await send({"type": "http.response.body", "body": data, "more_body": True})

    def _end(self, data: bytes) -> list[Message]:
        """What ends the answer; where nothing has been written yet, that is all of it."""
        headers = _STREAM_HEADERS if self._streamed else _whole_headers(data, self._media_type)
        end: Message = {"type": "http.response.body", "body": data, "more_body": False}
        return [end] if self._begun else [_start(headers), end]


def require_kind(model: Model, kind: Kind) -> None:
    """Raise UnsupportedValue where the model is of another kind than the endpoint serves."""
    if model.kind != kind:
        where = ENDPOINTS.get(model.kind)
        hint = f"; ask for it at {where}" if where else ""
        raise UnsupportedValue(
            f"This endpoint serves models of kind {kind}, and {model.id} is of kind {model.kind}{hint}.",
            param="model",
        )


def facts_of(
    request: Request, metadata: Mapping[str, str] | None, tier: Tier | None = None, units: int = 1
) -> RequestFacts:
    """What is to be known of a request besides its caller and its work. Raises BadRequest for an odd `x-oxlo-chain`."""
    exchange = exchange_of(request)
    chain = request.headers.get("x-oxlo-chain")
    if chain is not None and not SANE_ID.fullmatch(chain):
        raise BadRequest(
            "The header x-oxlo-chain takes 1 to 128 letters, digits, dots, dashes and underscores."
        )
    return RequestFacts(
        request_id=exchange.request_id,
        endpoint=exchange.endpoint,
        chain_id=chain,
        metadata=metadata,
        units=units,
        claim_id=exchange.claim_id,
        tier=tier,
    )


def _start(headers: list[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [*headers]}


def _whole_headers(body: bytes, media_type: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", media_type), (b"content-length", str(len(body)).encode())]


def _told(error: Exception) -> OxloError:
    """What the client is told of a failure; one that is not ours to explain is logged."""
    if isinstance(error, OxloError):
        return error
    log.exception("a stream failed", exc_info=error)
    return ServerError("The server failed while it answered; its log says why.")
