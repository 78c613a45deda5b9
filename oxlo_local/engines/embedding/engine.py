"""Requests for vectors and scores share steps: each step computes one batch of inputs, packed across all requests.

A step, in order: take over inputs that were read on the side; pack an equal share of every request (`packing`); compute
them at once; send each its result. A step that fails is repeated in halves until the input that breaks it stands alone,
and only that one's request fails. One thread owns all of this; requests with more than `INLINE` characters are
tokenised on a second one.
"""

import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from oxlo_local.calls import (
    Call,
    Done,
    EmbedCall,
    EmbeddingOptions,
    Event,
    Failed,
    Gauges,
    ImageCall,
    Load,
    ModelFacts,
    RerankCall,
    Score,
    SpeechCall,
    Started,
    TextCall,
    Usage,
    Vector,
)
from oxlo_local.engines import Progress
from oxlo_local.engines.embedding.packing import Pick, Queue, pack
from oxlo_local.engines.embedding.pooled import F32, ComputeFailed, Pooled
from oxlo_local.engines.embedding.reading import read, size
from oxlo_local.engines.questions import INLINE, Questions, no_chat
from oxlo_local.errors import OxloError, ServerError, UnsupportedValue

InputCall = EmbedCall | RerankCall


@dataclass(slots=True)
class _Request:
    """A call under way: its inputs' tokens, and how far they have come."""

    call: InputCall
    inputs: list[list[int]]
    queue: Queue
    started: bool = False

    @property
    def tokens(self) -> int:
        return sum(self.queue.sizes)


@dataclass(slots=True)
class _Totals:
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0


@dataclass
class _Reading:
    """Calls that are being read on the side."""

    thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="inputs")
    )
    calls: dict[str, tuple[InputCall, Future[list[list[int]]]]] = field(default_factory=dict)


class EmbeddingEngine:
    """The embedding engine behind the three verbs of `engines.Engine`. Raises LoadError for what it cannot load."""

    def __init__(self, load: Load, progress: Progress) -> None:
        options = load.options if isinstance(load.options, EmbeddingOptions) else EmbeddingOptions()
        self._model = Pooled(Path(load.path), options, progress)
        self._requests: dict[str, _Request] = {}
        self._reading = _Reading()
        self._questions = Questions(self._model, no_chat, no_chat)
        self._up: list[Event] = []
        self._totals = _Totals()
        self.facts = ModelFacts(
            architecture=self._model.meta("general.architecture") or "unknown",
            context_length=self._model.longest,
            parallel=self._model.sequences,
            vocab_size=self._model.n_vocab,
            parameters=self._model.parameters,
            file_bytes=self._model.file_bytes,
            chat=False,
            kind="rerank" if self._model.ranks else "embedding",
            dimensions=0 if self._model.ranks else self._model.width,
            device=self._model.device,
        )

    # -- the three verbs ----------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Take a call; whatever is wrong with it comes up as Failed."""
        if isinstance(call, TextCall | SpeechCall | ImageCall):
            message = "this model computes vectors or scores and nothing else"
            self._up.append(Failed(call.id, UnsupportedValue.code, message, "model"))
        elif not isinstance(call, EmbedCall | RerankCall):
            self._questions.ask(call)
        elif size(call) > INLINE:
            self._reading.calls[call.id] = (call, self._reading.thread.submit(read, self._model, call))
        else:
            future: Future[list[list[int]]] = Future()
            try:
                future.set_result(read(self._model, call))
            except Exception as error:
                future.set_exception(error)
            self._enter(call, future)

    def cancel(self, id: str) -> None:
        """Drop a call between two steps."""
        self._questions.cancel(id)
        if id in self._reading.calls:
            _, future = self._reading.calls.pop(id)
            future.cancel()
            self._up.append(Failed(id, "cancelled", "the client left"))
        elif id in self._requests:
            self._fail(id, "cancelled", "the client left")

    def busy(self) -> bool:
        """Whether an input is to be computed, or something to be said."""
        return bool(self._requests or self._reading.calls or self._up or self._questions.busy())

    def step(self) -> list[Event]:
        """Compute one batch of inputs."""
        begun = time.monotonic()
        self._up += self._questions.answers()
        for id in [id for id, (_, future) in self._reading.calls.items() if future.done()]:
            self._enter(*self._reading.calls.pop(id))
        requests = list(self._requests.values())
        picks = pack(
            [request.queue for request in requests],
            tokens=self._model.capacity,
            sequences=self._model.sequences,
        )
        if picks:
            self._compute([(requests[pick.place], pick) for pick in picks])
            self._totals.steps += 1
            self._totals.seconds += time.monotonic() - begun
        elif self._reading.calls and not self._up:
            wait([future for _, future in self._reading.calls.values()], timeout=0.05)
        elif not self._up:
            self._questions.wait(0.05)
        events, self._up = self._up, []
        return events

    def gauges(self) -> Gauges:
        """Counters as of the last step."""
        totals = self._totals
        return Gauges(
            running=len(self._requests),
            waiting=len(self._reading.calls),
            prefill_tokens=totals.tokens,
            steps=totals.steps,
            step_seconds=totals.seconds,
        )

    def close(self) -> None:
        """Free the model; calls still in the engine are forgotten."""
        self._reading.thread.shutdown(cancel_futures=True)
        self._questions.close()
        self._model.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _enter(self, call: InputCall, future: "Future[list[list[int]]]") -> None:
        try:
            inputs = future.result()
        except OxloError as error:
            self._up.append(Failed(call.id, error.code, error.message, error.param))
            return
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self._up.append(Failed(call.id, ServerError.code, f"the input could not be read: {error}"))
            return
        # As much as the one that has had least, so that it waits for nobody's past and nobody for its.
        served = min((request.queue.served for request in self._requests.values()), default=0)
        queue = Queue([len(tokens) for tokens in inputs], served=served)
        self._requests[call.id] = _Request(call, inputs, queue)

    def _compute(self, picked: Sequence[tuple[_Request, Pick]]) -> None:
        picked = [(request, pick) for request, pick in picked if request.call.id in self._requests]
        if not picked:
            return
        try:
            rows = self._model.compute([request.inputs[pick.item] for request, pick in picked])
        except ComputeFailed as error:
            if len(picked) == 1:
                message = f"this request could not be computed: {error}"
                self._fail(picked[0][0].call.id, ServerError.code, message)
                return
            middle = len(picked) // 2
            self._compute(picked[:middle])
            self._compute(picked[middle:])
            return
        for (request, pick), row in zip(picked, rows, strict=True):
            self._send(request, pick.item, row)

    def _send(self, request: _Request, item: int, row: F32) -> None:
        call, queue = request.call, request.queue
        if not request.started:
            request.started = True
            self._up.append(Started(call.id, request.tokens, 0))
        if isinstance(call, RerankCall):
            self._up.append(Score(call.id, item, self._model.relevance(row)))
        else:
            self._up.append(Vector(call.id, item, unit(row[: call.dimensions]).astype("<f4").tobytes()))
        queue.next = item + 1
        queue.served += queue.sizes[item]
        self._totals.tokens += queue.sizes[item]
        if queue.next == len(queue.sizes):
            del self._requests[call.id]
            self._up.append(Done(call.id, Usage(prompt_tokens=request.tokens)))

    def _fail(self, id: str, code: str, message: str) -> None:
        request = self._requests.pop(id)
        self._up.append(Failed(id, code, message, usage=Usage(prompt_tokens=request.tokens)))


def unit(row: F32) -> F32:
    """The vector made 1 long; one of zeros stays what it is."""
    length = np.linalg.norm(row)
    return row / length if length > 0 else row
