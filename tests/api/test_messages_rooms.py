"""/v1/messages and the rooms around it: errors, streams, idempotency, keys and tiers."""

import json
from typing import Literal

import anthropic
import pytest
from anthropic import Anthropic

from oxlo_local.client import EventDecoder
from oxlo_local.limits import Limits
from tests.api.conftest import Site, StartSite
from tests.api.messages import asked


def body(text: str = "hello", **fields: object) -> dict[str, object]:
    """A request that the echo engine answers with `text`, word by word."""
    return {"model": "echo", "max_tokens": 3, "messages": [{"role": "user", "content": text}], **fields}


def test_every_failure_here_has_anthropics_shape(site: Site) -> None:
    answers = [
        site.client.post("/v1/messages", content=b"{", headers={"content-type": "application/json"}),
        site.client.post("/v1/messages", content=b"{}", headers={"content-type": "text/plain"}),
        site.client.get("/v1/messages"),
        site.client.post("/v1/messages/batches", json={}),
        site.client.post("/v1/messages", json=body(model="idle")),
        site.client.post("/v1/messages", json=body(model="ear")),
        site.client.post("/v1/messages", json=body("!fail=0")),
        site.client.post("/v1/messages/count_tokens", json=body(model="nobody")),
    ]
    assert [answer.status_code for answer in answers] == [400, 415, 405, 404, 503, 400, 500, 404]
    types = ["invalid_request_error"] * 3 + [
        "not_found_error",
        "overloaded_error",
        "invalid_request_error",
        "api_error",
        "not_found_error",
    ]
    for answer, kind in zip(answers, types, strict=True):
        told = answer.json()
        assert told["type"] == "error" and told["error"]["type"] == kind and told["error"]["message"]
        assert told["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
        assert told["error"]["code"] == told["error"]["details"]["error_code"]
    assert site.client.get("/v1/nothing").json().keys() == {"error"}


def test_a_failure_in_the_middle_of_a_stream_is_an_event_and_refunded(site: Site) -> None:
    answer = site.client.post("/v1/messages", json=body("a b !fail=2", stream=True, max_tokens=9))
    assert answer.status_code == 200
    events = [json.loads(each) for each in EventDecoder().feed(answer.content)]
    assert [each["type"] for each in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "error",
    ]
    assert (
        events[-1]["error"]["type"] == "api_error"
        and events[-1]["request_id"] == answer.headers["request-id"]
    )
    assert (site.rows()[-1]["status"], site.rows()[-1]["endpoint"]) == ("refunded", "/v1/messages")


def test_a_silent_stream_is_kept_alive_with_pings(start_site: StartSite) -> None:
    site = start_site(heartbeat_seconds=0.05)
    with site.client.stream("POST", "/v1/messages", json=body("!hang=0", stream=True)) as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(3)] == ["event: ping", 'data: {"type":"ping"}', ""]


def test_the_same_request_again_is_neither_run_nor_charged(site: Site) -> None:
    before = len(site.rows())
    key = {"idempotency-key": "messages-1"}
    first, second = (site.client.post("/v1/messages", json=body("x y"), headers=key) for _ in range(2))
    assert first.json() == second.json() and second.headers["x-oxlo-replayed"] == "true"
    assert len(site.rows()) == before + 1
    other = site.client.post("/v1/messages", json=body("z"), headers=key)
    assert other.status_code == 400 and other.json()["error"]["code"] == "idempotency_conflict"


def test_a_key_and_what_is_left_of_its_limits(start_site: StartSite) -> None:
    site = start_site()
    _, secret = site.run(site.keys.create("anna", "user", Limits(rate=2)))
    with Anthropic(base_url=site.url, api_key=secret, max_retries=0) as client:
        raw = client.messages.with_raw_response.create(model="echo", max_tokens=1, messages=asked("?"))
        assert raw.headers["anthropic-ratelimit-requests-limit"] == "2"
        assert raw.headers["anthropic-ratelimit-requests-remaining"] == "1"
        assert raw.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
        client.messages.create(model="echo", max_tokens=1, messages=asked("?"))
        with pytest.raises(anthropic.RateLimitError) as limited:
            client.messages.create(model="echo", max_tokens=1, messages=asked("?"))
        assert (
            limited.value.error_code == "rate_limit_exceeded"
            and limited.value.response.headers["retry-after"]
        )
    with Anthropic(base_url=site.url, api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            stranger.messages.create(model="echo", max_tokens=1, messages=asked("?"))
        assert refused.value.type == "authentication_error"
        with pytest.raises(anthropic.AuthenticationError):
            stranger.messages.count_tokens(model="echo", messages=asked("?"))


def test_the_tier_is_the_keys_own_or_less(start_site: StartSite) -> None:
    site = start_site()
    _, secret = site.run(site.keys.create("anna", "user", Limits(tier="priority")))
    wishes: tuple[Literal["auto", "standard_only"], ...] = ("auto", "standard_only")
    with Anthropic(base_url=site.url, api_key=secret, max_retries=0) as client:
        tiers = [
            client.messages.create(
                model="echo", max_tokens=1, messages=asked("?"), service_tier=wish
            ).usage.service_tier
            for wish in wishes
        ]
    assert tiers == ["priority", "standard"]


def test_an_unknown_field_is_refused_where_that_is_wanted(start_site: StartSite) -> None:
    site = start_site(strict=True)
    answer = site.client.post("/v1/messages", json=body(mood="good"))
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "unknown_parameter"
