"""THE PATH of every metered request: resolve the name, reserve its row, route the call, stream its events, settle.

Nobody else does this: HTTP, batches and the commands that run an engine all come through `Inference.open`. Whatever
refuses a request before its row is written (unknown model, bad value, full queue) leaves no row; from then on leaving
the context closes the row exactly once, by one rule (`closing`):

    complete                         settled      the answer was delivered, or nobody stayed to take its end
    client gone, output had come     settled      the work was done for it; output counts when it reaches the parent
    client gone before any output    refunded     cancelled
    any failure of ours, at any time refunded     the code of the error

Images are units of their own: a client that leaves pays for those that were complete, and after a failure of ours those
that had been sent to it are settled.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec

from oxlo_local.calls import Call, Done, Event, Failed, Usage
from oxlo_local.catalogue import Catalogue, Model
from oxlo_local.errors import Cancelled, OxloError, ServerError, from_code
from oxlo_local.keys import Role
from oxlo_local.ledger import AddressClass, Ask, Entry, Ledger, Outcome
from oxlo_local.limits import TIERS, UNLIMITED, Limits, Tier, version_of
from oxlo_local.workers.stream import Stream
from oxlo_local.workers.supervisor import Fleet


@dataclass(frozen=True)
class Caller:
    """Who asks: the id of the key ("local" without one), what it may do, and where it calls from.

    Of `limits`, models, endpoints and the tier are looked at here; what counts is checked by the ledger itself.
    """

    key_id: str
    role: Role
    address_class: AddressClass
    limits: Limits = UNLIMITED


@dataclass(frozen=True)
class RequestFacts:
    """What the row says about the request besides its work. `units` are what the price is multiplied by; `claim_id` is
    that of its Idempotency-Key; `tier` is the one asked for, None the key's own.
    """

    request_id: str
    endpoint: str
    chain_id: str | None = None
    metadata: Mapping[str, str] | None = None
    units: int = 1
    claim_id: str | None = None
    tier: Tier | None = None


class Run:
    """A call under way: an async iterator of its events up to `Done`; a failure is raised as an `OxloError`."""

    def __init__(self, entry: Entry, model: Model, warnings: list[str], stream: Stream) -> None:
        self.entry = entry
        self.model = (
            model  # the one that runs, which a fallback may have put in the place of the one asked for
        )
        self.warnings = warnings
        self.delivered = 0  # images that were sent to the client before the end of its answer
        self._stream = stream

    @property
    def has_output(self) -> bool:
        """Whether output has reached this process: from then on a client that leaves pays."""
        return self._stream.first_output_at is not None

    def leave(self) -> None:
        """The client has left, now: its slot is freed, and output that comes later is none that it pays for."""
        self._stream.cancel()

    def __aiter__(self) -> "Run":
        return self

    async def __anext__(self) -> Event:
        event = await anext(self._stream)
        if isinstance(event, Failed):
            raise from_code(event.code, event.message, param=event.param)
        return event


class Closing(NamedTuple):
    """How a row is closed. `code` is the row's error code, and the reason of a refund; `units` None = all of them."""

    status: Literal["settled", "refunded"]
    code: str | None
    units: int | None = None


@dataclass
class _Times:
    """Moments of a request, on the clock of the streams."""

    opened: float = field(default_factory=time.monotonic)

    def outcome(self, stream: Stream, end: Closing) -> Outcome:
        """What is known of the call now that it is closed like that."""
        usage = stream.terminal.usage if stream.terminal is not None else Usage()
        audio = usage.audio_seconds or (stream.heard.of if stream.heard is not None else None)
        total = self._since_opened(time.monotonic())
        queue = self._since_opened(stream.started_at)
        return Outcome(
            prompt_tokens=max(usage.prompt_tokens, stream.prompt_tokens),
            cached_tokens=max(usage.cached_tokens, stream.cached_tokens),
            completion_tokens=max(usage.completion_tokens, stream.completion_tokens),
            reasoning_tokens=usage.reasoning_tokens,
            audio_seconds=audio,
            language=usage.language or None,
            real_time_factor=real_time_factor(stream.terminal, total, queue),
            images=end.units or stream.images or None,
            steps=usage.steps or (stream.denoised.of if stream.denoised is not None else None),
            size=f"{stream.size[0]}x{stream.size[1]}" if stream.size is not None else None,
            draw_seconds=draw_seconds(stream, total, queue),
            queue_ms=queue,
            first_output_ms=self._since_opened(stream.first_output_at),
            total_ms=total,
            error_code=end.code,
        )

    def _since_opened(self, moment: float | None) -> float | None:
        return None if moment is None else round((moment - self.opened) * 1000, 3)


def real_time_factor(
    terminal: Done | Failed | None, total_ms: float | None, queue_ms: float | None
) -> float | None:
    """Seconds of audio for each second of work on it; None where no whole file was transcribed."""
    if not isinstance(terminal, Done) or not terminal.usage.audio_seconds or total_ms is None:
        return None
    worked_ms = max(1.0, total_ms - (queue_ms or 0.0))
    return round(terminal.usage.audio_seconds * 1000 / worked_ms, 3)


def draw_seconds(stream: Stream, total_ms: float | None, queue_ms: float | None) -> float | None:
    """Seconds of work on a call's images; None where none was begun."""
    if total_ms is None or (stream.denoised is None and not stream.images):
        return None
    return round((total_ms - (queue_ms or 0.0)) / 1000, 3)


class Inference:
    """The one way to a metered answer."""

    def __init__(self, catalogue: Catalogue, ledger: Ledger, fleet: Fleet) -> None:
        self._catalogue = catalogue
        self._ledger = ledger
        self._fleet = fleet
        self.prices = price_list(catalogue)
        self._price_version = version_of(self.prices)
        self._open = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    @asynccontextmanager
    async def open(
        self, call_for: Callable[[Model], Call], *, model: str, caller: Caller, request: RequestFacts
    ) -> AsyncIterator[Run]:
        """Run a call for the model that answers to `model`; leaving the context closes its row.

        `call_for` makes the call once the model is known, whose sampling defaults it may need. Raises before the row
        is written: ModelNotFound, ModelNotAllowed, what `call_for` raises, ModelNotLoaded, QueueFull, ShuttingDown,
        InsufficientQuota, RateLimitExceeded, LedgerUnavailable.
        """
        times = _Times()
        resolved = self._catalogue.resolve(model)
        caller.limits.permit(resolved.model.id, request.endpoint)
        rank = TIERS.index(caller.limits.tier_for(request.tier))
        call = call_for(resolved.model)
        ask = Ask(
            key_id=caller.key_id,
            endpoint=request.endpoint,
            model=resolved.model.id,
            units=request.units,
            unit_price_micros=resolved.model.price_at(request.endpoint),
            price_version=self._price_version,
            request_id=request.request_id,
            chain_id=request.chain_id,
            metadata=request.metadata,
            address_class=caller.address_class,
            claim_id=request.claim_id,
        )
        with self._fleet.admit(resolved.model.id) as place:
            entry = await self._ledger.reserve(ask)
            try:
                # One name from the log through the pipe to the row, and unique whatever the protocol chose.
                stream = place.submit(msgspec.structs.replace(call, id=entry.id), rank)
            except BaseException:
                await self._ledger.refund(entry, ServerError.code, Outcome(error_code=ServerError.code))
                raise
        warnings = [resolved.warning] if resolved.warning else []
        self._open += 1
        self._quiet.clear()
        error: BaseException | None = None
        run = Run(entry, resolved.model, warnings, stream)
        try:
            yield run
        except BaseException as left_by:
            error = left_by
            raise
        finally:
            try:
                await self._close(run, stream, times, error)
            finally:
                self._open -= 1
                if self._open == 0:
                    self._quiet.set()

    async def _close(self, run: Run, stream: Stream, times: _Times, error: BaseException | None) -> None:
        end = closing(stream, error, run.delivered)
        outcome = times.outcome(stream, end)
        stream.cancel()  # before the row is written, which may take its time: the slot is free for others
        if end.status == "settled":
            await self._ledger.settle(run.entry, outcome, end.units)
        else:
            await self._ledger.refund(run.entry, end.code or ServerError.code, outcome)

    async def quiet(self) -> None:
        """Wait until no run is open: every row of this room has been closed."""
        await self._quiet.wait()


def closing(stream: Stream, error: BaseException | None, delivered: int = 0) -> Closing:
    """How the row of a call is closed when its context is left with `error`. Pure.

    A failure that nobody has read yet counts as well: the client left something that was broken already. `delivered`
    are the images that had been sent before it.
    """
    terminal = stream.terminal
    if isinstance(terminal, Failed):
        return _failed(terminal.code, delivered)
    if isinstance(error, Exception) and not isinstance(error, (Cancelled, ConnectionError)):
        return _failed(error.code if isinstance(error, OxloError) else ServerError.code, delivered)
    if isinstance(terminal, Done):
        return Closing("settled", None, stream.images or None)
    if stream.first_output_at is None:
        return Closing("refunded", Cancelled.code)
    return Closing("settled", Cancelled.code, stream.images or None)


def _failed(code: str, delivered: int) -> Closing:
    return Closing("settled", code, delivered) if delivered else Closing("refunded", code)


def price_list(catalogue: Catalogue) -> dict[str, int]:
    """What every model costs, in micro-dollars, by "MODEL" and "MODEL@ENDPOINT"."""
    return {name: price for model in catalogue.models.values() for name, price in model.price_list.items()}
