from prometheus_client.parser import text_string_to_metric_families

from tests.api.conftest import Site, StartSite, chat_body
from tests.openai_description import judge


def test_health_and_readiness(site: Site) -> None:
    assert site.client.get("/healthz").json() == {"status": "ok"}
    assert site.client.get("/readyz").json() == {"status": "ready", "missing": []}
    assert site.client.head("/healthz").status_code == 200


def test_a_draining_server_is_alive_and_not_ready(start_site: StartSite) -> None:
    site = start_site()
    site.draining = True
    answer = site.client.get("/readyz")
    judge("ErrorResponse", answer.json())
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "shutting_down"
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["missing"]
    assert site.client.get("/healthz").status_code == 200


def test_metrics_count_what_happened(start_site: StartSite) -> None:
    site = start_site()
    site.client.post("/v1/chat/completions", json=chat_body("one two three"))
    site.client.post("/v1/chat/completions", json=chat_body("one two", stream=True))
    site.client.post("/v1/chat/completions", json=chat_body(n=0))
    site.client.get("/nowhere/secret-prompt")
    answer = site.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    chat = "/v1/chat/completions"
    assert samples["oxlo_requests_total", chat, "200", "echo"] == 2
    assert samples["oxlo_requests_total", "", chat, "400"] == 1
    assert samples["oxlo_requests_total", "", "404", "other"] == 1
    assert samples["oxlo_first_output_seconds_count", "echo"] == 2
    assert samples["oxlo_inter_token_seconds_count", "echo"] == 3
    assert samples["oxlo_tokens_total", "completion", "echo"] == 5
    assert samples["oxlo_worker_state", "echo", "ready"] == 1
    assert samples["oxlo_requests_in_flight",] == 1  # this one
    assert "secret" not in answer.text


def test_workers_are_shown_as_they_are(site: Site) -> None:
    (worker,) = site.client.get("/admin/workers").json()["workers"]
    assert (worker["model"], worker["state"], worker["restarts"]) == ("echo", "ready", 0)
    assert worker["pid"] > 0 and worker["facts"]["context_length"] == 4096
