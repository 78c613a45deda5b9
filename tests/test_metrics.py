from dataclasses import dataclass, field

from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from oxlo_local.calls import Gauges, Usage
from oxlo_local.metrics import Metrics


@dataclass
class Worker:
    model: str = "m"
    state: str = "ready"
    gauges: Gauges = field(default_factory=Gauges)
    rss_bytes: int = 0
    restarts: int = 0
    waiting: int = 0
    running: int = 0


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Each sample under its name and its label values in alphabetical order of the labels."""
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_two_servers_count_apart() -> None:
    one, two = Metrics(list), Metrics(list)
    one.request_started()
    assert samples(one)["oxlo_requests_in_flight",] == 1
    assert samples(two)["oxlo_requests_in_flight",] == 0


def test_a_request_is_counted_and_timed() -> None:
    metrics = Metrics(list)
    metrics.request_started()
    metrics.first_output("m", 0.03)
    between = metrics.inter_token("m")
    between(0.004)
    between(0.2)
    metrics.tokens("m", Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=5))
    metrics.request_finished("/v1/completions", "m", 200, 0.4)
    found = samples(metrics)
    assert found["oxlo_requests_in_flight",] == 0
    assert found["oxlo_requests_total", "/v1/completions", "m", "200"] == 1
    assert found["oxlo_request_seconds_bucket", "/v1/completions", "0.5", "m"] == 1
    assert found["oxlo_request_seconds_bucket", "/v1/completions", "0.25", "m"] == 0
    assert found["oxlo_first_output_seconds_sum", "m"] == 0.03
    assert found["oxlo_inter_token_seconds_bucket", "0.005", "m"] == 1
    assert found["oxlo_inter_token_seconds_count", "m"] == 2
    tokens = {kind: found["oxlo_tokens_total", kind, "m"] for kind in ("prompt", "cached", "completion")}
    assert tokens == {"prompt": 7, "cached": 5, "completion": 3}


def test_a_file_is_timed_against_its_length() -> None:
    metrics = Metrics(
        lambda: [Worker(gauges=Gauges(audio_seconds=60.0, encoder_seconds=1.5, decoder_seconds=0.5))]
    )
    metrics.heard("m", 60.0, 2.5)
    found = samples(metrics)
    assert found["oxlo_audio_real_time_factor_sum", "m"] == 24.0
    assert found["oxlo_audio_real_time_factor_bucket", "20.0", "m"] == 0
    assert found["oxlo_audio_seconds_total", "m"] == 60
    assert (found["oxlo_encoder_seconds_total", "m"], found["oxlo_decoder_seconds_total", "m"]) == (1.5, 0.5)


def test_images_are_timed_each() -> None:
    metrics = Metrics(lambda: [Worker(gauges=Gauges(images=5, denoising_steps=20))])
    metrics.drawn("m", 4, 6.0)
    found = samples(metrics)
    assert (found["oxlo_image_seconds_sum", "m"], found["oxlo_image_seconds_count", "m"]) == (6.0, 4)
    assert found["oxlo_image_seconds_bucket", "1.0", "m"] == 0
    assert (found["oxlo_images_total", "m"], found["oxlo_denoising_steps_total", "m"]) == (5, 20)


def test_workers_are_read_at_each_scrape() -> None:
    worker = Worker(waiting=2, running=3, restarts=1, rss_bytes=1000)
    worker.gauges = Gauges(running=4, kv_used=50, kv_total=200, steps=9, step_seconds=1.5, preemptions=1)
    worker.gauges = replace(worker.gauges, guessed_tokens=40, accepted_tokens=30)
    metrics = Metrics(lambda: [worker, Worker(model="other", state="failed")])
    found = samples(metrics)
    assert found["oxlo_worker_state", "m", "ready"] == 1
    assert found["oxlo_worker_state", "other", "failed"] == 1
    assert (found["oxlo_queue_requests", "m"], found["oxlo_running_requests", "m"]) == (2, 3)
    assert (found["oxlo_kv_used_tokens", "m"], found["oxlo_kv_size_tokens", "m"]) == (50, 200)
    assert (found["oxlo_sequences", "m"], found["oxlo_worker_resident_bytes", "m"]) == (4, 1000)
    assert (found["oxlo_engine_steps_total", "m"], found["oxlo_preemptions_total", "m"]) == (9, 1)
    assert found["oxlo_speculated_tokens_total", "m"] == 40
    assert found["oxlo_speculated_tokens_accepted_total", "m"] == 30
    worker.state = "backing_off"
    worker.restarts = 2
    assert samples(metrics)["oxlo_worker_restarts_total", "m"] == 2
    assert ("oxlo_worker_state", "m", "ready") not in samples(metrics)
