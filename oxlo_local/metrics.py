"""What is counted and timed, and its Prometheus text; nothing else knows that format.

Counters and histograms are fed by the HTTP side, worker gauges are read when somebody scrapes. Labels hold ids of
models and paths of routes only: never anything a client wrote, so that their number is bounded and no prompt gets in.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from oxlo_local.calls import Gauges, Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_TIMES_REAL = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
_DRAW_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
_WAIT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
# Of what is no text: fields of `Gauges`.
_WORK = {
    "audio_seconds": "Audio that was transcribed",
    "encoder_seconds": "Seconds in the encoder of a speech model",
    "decoder_seconds": "Seconds in the decoder of a speech model",
    "images": "Images that were drawn",
    "denoising_steps": "Denoising steps, of each image",
}


class WorkerView(Protocol):
    """What is read of a worker at each scrape (`workers.supervisor.WorkerStatus` has it)."""

    @property
    def model(self) -> str:
        """Id of the model it holds."""

    @property
    def state(self) -> str:
        """Name of its state."""

    @property
    def gauges(self) -> Gauges:
        """The engine's counters."""

    @property
    def rss_bytes(self) -> int:
        """Resident memory of its process."""

    @property
    def restarts(self) -> int:
        """How often it was started again."""

    @property
    def waiting(self) -> int:
        """Calls in the parent's queue for it."""

    @property
    def running(self) -> int:
        """Calls that it holds."""


class Metrics:
    """All of one server's metrics, in a registry of its own."""

    def __init__(self, workers: Callable[[], Iterable[WorkerView]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Workers(workers))
        registry = self._registry
        self._requests = Counter(
            "oxlo_requests", "Requests answered", ("endpoint", "model", "status"), registry=registry
        )
        self._in_flight = Gauge("oxlo_requests_in_flight", "Requests being answered", registry=registry)
        self._total = Histogram(
            "oxlo_request_seconds",
            "Seconds from a request's first byte to its answer's last",
            ("endpoint", "model"),
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "oxlo_first_output_seconds",
            "Seconds from a request's first byte to its first output (TTFT)",
            ("model",),
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self._between = Histogram(
            "oxlo_inter_token_seconds",
            "Seconds between two outputs of one choice",
            ("model",),
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self._tokens = Counter(
            "oxlo_tokens", "Tokens of answered requests", ("model", "kind"), registry=registry
        )
        self._real_time = Histogram(
            "oxlo_audio_real_time_factor",
            "Seconds of audio for each second of work on it, a file each",
            ("model",),
            buckets=_TIMES_REAL,
            registry=registry,
        )
        self._drawing = Histogram(
            "oxlo_image_seconds",
            "Seconds of work on each image of a request",
            ("model",),
            buckets=_DRAW_SECONDS,
            registry=registry,
        )
        self._no_calls = Counter(
            "oxlo_broken_tool_calls",
            "Texts that looked like a tool call and were none, answered as content",
            ("model",),
            registry=registry,
        )

    def expect(self, endpoints: Iterable[str], model: str) -> None:
        """Make the series of a model before its first request: they start at 0, and that request need not make them."""
        for endpoint in endpoints:
            self._requests.labels(endpoint, model, "200")
            self._total.labels(endpoint, model)
        self._first.labels(model)
        self._between.labels(model)
        self._no_calls.labels(model)
        self.tokens(model, Usage())

    def request_started(self) -> None:
        """A request has arrived."""
        self._in_flight.inc()

    def request_finished(self, endpoint: str, model: str, status: int, seconds: float) -> None:
        """A request has been answered; `model` is the id that ran, or empty."""
        self._in_flight.dec()
        self._requests.labels(endpoint, model, str(status)).inc()
        self._total.labels(endpoint, model).observe(seconds)

    def first_output(self, model: str, seconds: float) -> None:
        """The first token of a request has reached the parent."""
        self._first.labels(model).observe(seconds)

    def inter_token(self, model: str) -> Callable[[float], None]:
        """Where to put the seconds between two outputs; looked up once a request, not once a token."""
        observe: Callable[[float], None] = self._between.labels(model).observe
        return observe

    def tokens(self, model: str, usage: Usage) -> None:
        """A request is complete."""
        self._tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(model, "cached").inc(usage.cached_tokens)
        self._tokens.labels(model, "completion").inc(usage.completion_tokens)
        self._tokens.labels(model, "reasoning").inc(usage.reasoning_tokens)

    def heard(self, model: str, audio_seconds: float, seconds: float) -> None:
        """A file has been transcribed; `seconds` is how long that took."""
        self._real_time.labels(model).observe(audio_seconds / max(seconds, 0.001))

    def drawn(self, model: str, images: int, seconds: float) -> None:
        """A request's images are complete; `seconds` is how long all of them took."""
        for _ in range(images):
            self._drawing.labels(model).observe(seconds / images)

    def broken_call(self, model: str) -> None:
        """What a model wrote looked like a tool call and was none."""
        self._no_calls.labels(model).inc()

    def text(self) -> bytes:
        """Everything, in Prometheus text form."""
        return generate_latest(self._registry)


class _Workers(Collector):
    """Reads the workers' state at each scrape, so that no gauge can be stale."""

    def __init__(self, workers: Callable[[], Iterable[WorkerView]]) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """One sample for each worker and gauge."""
        gauges = {
            "queue": GaugeMetricFamily(
                "oxlo_queue_requests", "Requests waiting for a model", labels=("model",)
            ),
            "running": GaugeMetricFamily(
                "oxlo_running_requests", "Requests a worker holds", labels=("model",)
            ),
            "sequences": GaugeMetricFamily("oxlo_sequences", "Sequences decoding", labels=("model",)),
            "used": GaugeMetricFamily("oxlo_kv_used_tokens", "Tokens in the KV cache", labels=("model",)),
            "size": GaugeMetricFamily("oxlo_kv_size_tokens", "Room of the KV cache", labels=("model",)),
            "rss": GaugeMetricFamily("oxlo_worker_resident_bytes", "Memory of a worker", labels=("model",)),
        }
        counters = {
            "restarts": CounterMetricFamily(
                "oxlo_worker_restarts", "Restarts of a worker", labels=("model",)
            ),
            "steps": CounterMetricFamily("oxlo_engine_steps", "Steps of the engine", labels=("model",)),
            "busy": CounterMetricFamily("oxlo_engine_step_seconds", "Seconds in steps", labels=("model",)),
            "preempted": CounterMetricFamily(
                "oxlo_preemptions", "Sequences that gave way and resumed", labels=("model",)
            ),
            "guessed": CounterMetricFamily(
                "oxlo_speculated_tokens", "Tokens that speculation guessed and checked", labels=("model",)
            ),
            "accepted": CounterMetricFamily(
                "oxlo_speculated_tokens_accepted",
                "Of the tokens that speculation guessed, those that came true",
                labels=("model",),
            ),
        }
        work = {
            name: CounterMetricFamily(f"oxlo_{name}", text, labels=("model",)) for name, text in _WORK.items()
        }
        state = GaugeMetricFamily("oxlo_worker_state", "1 for the state it is in", labels=("model", "state"))
        for worker in self._workers():
            label, engine = [worker.model], worker.gauges
            state.add_metric([worker.model, worker.state], 1)
            gauges["queue"].add_metric(label, worker.waiting)
            gauges["running"].add_metric(label, worker.running)
            gauges["sequences"].add_metric(label, engine.running)
            gauges["used"].add_metric(label, engine.kv_used)
            gauges["size"].add_metric(label, engine.kv_total)
            gauges["rss"].add_metric(label, worker.rss_bytes)
            counters["restarts"].add_metric(label, worker.restarts)
            counters["steps"].add_metric(label, engine.steps)
            counters["busy"].add_metric(label, engine.step_seconds)
            counters["preempted"].add_metric(label, engine.preemptions)
            counters["guessed"].add_metric(label, engine.guessed_tokens)
            counters["accepted"].add_metric(label, engine.accepted_tokens)
            for name, family in work.items():
                family.add_metric(label, getattr(engine, name))
        yield from (state, *gauges.values(), *counters.values(), *work.values())
