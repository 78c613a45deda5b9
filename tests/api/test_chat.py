import json
import threading
from functools import partial

import httpx

from oxlo_local.calls import EchoOptions
from oxlo_local.limits import TIERS, Limits, Tier
from tests.api.conftest import Site, StartSite, chat_body
from tests.conftest import until
from tests.openai_description import events_of, judge

CHAT = "/v1/chat/completions"


def test_a_whole_answer(site: Site) -> None:
    answer = site.client.post(CHAT, json=chat_body("one two three", n=2))
    value = answer.json()
    judge("CreateChatCompletionResponse", value)
    assert [choice["message"]["content"] for choice in value["choices"]] == ["one two three "] * 2
    assert value["usage"]["completion_tokens"] == 6 and value["model"] == "echo"
    assert answer.headers["content-type"] == "application/json"


def test_a_streamed_answer(site: Site) -> None:
    body = chat_body("one two three", stream=True, stream_options={"include_usage": True})
    answer = site.client.post(CHAT, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-accel-buffering"] == "no"
    chunks = events_of(answer.content)
    for chunk in chunks:
        judge("CreateChatCompletionStreamResponse", chunk)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]  # type: ignore[attr-defined]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "one two three "
    assert chunks[-1]["usage"]["prompt_tokens"] == 3  # type: ignore[index]
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1


def test_the_row_is_closed_when_the_answer_ends(site: Site) -> None:
    for stream in (False, True):
        answer = site.client.post(
            CHAT,
            json=chat_body("one two", stream=stream, metadata={"team": "a"}),
            headers={"x-oxlo-chain": "chain-7", "x-request-id": "mine.1"},
        )
        row = site.rows()[-1]
        assert row["id"] == answer.headers["x-oxlo-entry"]
        assert answer.headers["x-oxlo-price-usd"] == "0.0027" and row["price_micros"] == 2700
        assert (row["status"], row["key_id"], row["endpoint"]) == ("settled", "local", CHAT)
        assert (row["prompt_tokens"], row["completion_tokens"]) == (2, 2)
        assert (row["request_id"], row["chain_id"]) == ("mine.1", "chain-7")
        assert json.loads(str(row["metadata"])) == {"team": "a"}
        assert row["address_class"] == "loopback"


def test_the_model_that_ran_is_named(site: Site) -> None:
    aliased = site.client.post(CHAT, json={**chat_body(), "model": "parrot"})
    assert aliased.json()["model"] == "echo" and "x-oxlo-warnings" not in aliased.headers
    replaced = site.client.post(CHAT, json={**chat_body(), "model": "too-big"})
    assert replaced.json()["model"] == "echo"
    assert "echo answers in its place" in replaced.headers["x-oxlo-warnings"]


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, object]:
    value = answer.json()
    judge("ErrorResponse", value)
    assert (answer.status_code, value["error"]["code"]) == (status, code)
    error: dict[str, object] = value["error"]
    return error


def test_models_that_cannot_answer(site: Site) -> None:
    before = len(site.rows())
    unknown = refused(site.client.post(CHAT, json={**chat_body(), "model": "ecko"}), 404, "model_not_found")
    assert "echo" in str(unknown["message"])
    far = refused(site.client.post(CHAT, json={**chat_body(), "model": "far-away"}), 404, "model_not_found")
    assert "oxlo pull far-away" in str(far["message"])
    refused(site.client.post(CHAT, json={**chat_body(), "model": "idle"}), 503, "model_not_loaded")
    ear = refused(site.client.post(CHAT, json={**chat_body(), "model": "ear"}), 400, "unsupported_value")
    assert ear["param"] == "model"
    assert len(site.rows()) == before


def test_a_prompt_beyond_the_context_is_refunded(start_site: StartSite) -> None:
    site = start_site(EchoOptions(ctx=3))
    for stream in (False, True):
        answer = site.client.post(CHAT, json=chat_body("one two three four", stream=stream))
        refused(answer, 400, "context_length_exceeded")
        row = site.rows()[-1]
        assert (row["status"], row["error_code"]) == ("refunded", "context_length_exceeded")
        assert answer.headers["x-oxlo-entry"] == row["id"]


def test_unknown_fields_are_named_or_refused(site: Site, start_site: StartSite) -> None:
    body = {**chat_body(temprature=1), "caf\u00e9\r\nx: y": 1}
    answer = site.client.post(CHAT, json=body)
    assert answer.status_code == 200
    assert answer.headers["x-oxlo-warnings"] == (
        'unknown field "temprature" has no effect; unknown field "caf\\u00e9\\r\\nx: y" has no effect'
    )
    error = refused(start_site(strict=True).client.post(CHAT, json=body), 400, "unknown_parameter")
    assert error["param"] == "temprature" and "'temperature'" in str(error["message"])


def test_the_answer_says_the_tier_that_it_was_given(start_site: StartSite) -> None:
    site = start_site()
    keys: dict[str, dict[str, str]] = {
        tier: {"x-api-key": site.run(site.keys.create(tier, limits=Limits(tier=tier)))[1]} for tier in TIERS
    }

    def tier_of(key: Tier, asked: str | None) -> str:
        answer = site.client.post(CHAT, json=chat_body(service_tier=asked), headers=keys[key])
        return str(answer.json()["service_tier"])

    assert [tier_of("priority", asked) for asked in ("priority", "default", "flex", "auto", None)] == [
        "priority",
        "default",
        "flex",
        "priority",
        "priority",
    ]
    assert tier_of("standard", None) == "default" and tier_of("batch", "auto") == "flex"
    before = len(site.rows())
    for tier, above in (("standard", "priority"), ("batch", "default")):
        answer = site.client.post(CHAT, json=chat_body(service_tier=above), headers=keys[tier])
        assert refused(answer, 400, "unsupported_value")["param"] == "service_tier"
    assert len(site.rows()) == before
    stream = site.client.post(
        CHAT, json=chat_body(service_tier="flex", stream=True), headers=keys["standard"]
    )
    assert {chunk["service_tier"] for chunk in events_of(stream.content)} == {"flex"}


def test_a_request_that_asks_for_less_lets_others_go_first(start_site: StartSite) -> None:
    """One slot, so that a worker holds two calls; behind them waits a flex one, and a default one overtakes it."""
    site = start_site(EchoOptions(parallel=1, step_seconds=0.05))
    tiers = ["default", "default", "flex", "default"]
    ends: list[int] = []

    def ask(number: int) -> None:
        site.client.post(CHAT, json=chat_body("a b c d e f", service_tier=tiers[number]))
        ends.append(number)

    def has_rows(count: int) -> bool:
        return len(site.rows()) == count

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(tiers))]
    for begun, thread in enumerate(threads, start=1):
        thread.start()
        until(partial(has_rows, begun))
    for thread in threads:
        thread.join()
    assert ends == [0, 1, 3, 2]


def test_a_prediction_is_named_where_it_is_without_effect(site: Site) -> None:
    answer = site.client.post(CHAT, json=chat_body(prediction={"type": "content", "content": "hello"}))
    assert answer.status_code == 200 and "does not speculate" in answer.headers["x-oxlo-warnings"]
    details = answer.json()["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == details["rejected_prediction_tokens"] == 0


def test_a_site_may_allow_fewer_choices(start_site: StartSite) -> None:
    site = start_site(choices_max=2)
    assert site.client.post(CHAT, json=chat_body(n=2)).status_code == 200
    error = refused(site.client.post(CHAT, json=chat_body(n=3)), 400, "invalid_value")
    assert error["param"] == "n"
