"""The x-ratelimit headers and Retry-After: what they say is what happens, to the millisecond."""

import httpx
import openai
import pytest
from openai import OpenAI

from oxlo_local.api.standing import duration, headers_of
from oxlo_local.errors import Standing
from oxlo_local.limits import Limits, read_budget
from tests.api.conftest import Site, StartSite, chat_body
from tests.conftest import Clock

CHAT = "/v1/chat/completions"
NOON = 1_795_348_800.0  # 2026-11-22 12:00 UTC


class Customer:
    """A key with limits, at a site whose ledger has this clock."""

    def __init__(self, site: Site, clock: Clock, limits: Limits) -> None:
        clock.now = NOON
        site.ledger._clock = clock
        self.site = site
        self.secret = site.run(site.keys.create("anna", "user", limits))[1]

    def chat(self, text: str = "hello", **headers: str) -> httpx.Response:
        return self.site.client.post(
            CHAT, json=chat_body(text), headers={"x-api-key": self.secret, **headers}
        )

    def models(self) -> httpx.Response:
        return self.site.client.get("/v1/models", headers={"x-api-key": self.secret})


def told(answer: httpx.Response) -> tuple[str | None, ...]:
    return tuple(
        answer.headers.get(f"x-ratelimit-{name}-requests") for name in ("limit", "remaining", "reset")
    )


def test_a_rate_is_told_and_kept_to_the_millisecond(start_site: StartSite, clock: Clock) -> None:
    customer = Customer(start_site(), clock, Limits(rate=2))
    assert told(customer.models()) == ("2", "2", "0s")
    assert told(customer.chat()) == ("2", "1", "1m0s")
    clock.advance(10.5)
    assert told(customer.models()) == ("2", "1", "49.5s")
    assert told(customer.chat()) == ("2", "0", "1m0s")
    clock.advance(9.25)
    refused = customer.chat()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert told(refused) == ("2", "0", "50.75s")
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("41", "40250")
    assert "x-should-retry" not in refused.headers
    clock.advance(40.249)
    assert customer.chat().headers["retry-after-ms"] == "1"
    clock.advance(0.001)
    assert customer.chat().status_code == 200


def test_a_refund_counts_against_the_rate_only(start_site: StartSite, clock: Clock) -> None:
    customer = Customer(start_site(), clock, Limits(rate=5, daily=3))
    assert told(customer.chat("one !fail=0")) == ("3", "3", "12h0m0s")
    assert told(customer.chat()) == ("3", "2", "12h0m0s")


def test_a_day_that_is_used_up_is_a_quota(start_site: StartSite, clock: Clock) -> None:
    customer = Customer(start_site(), clock, Limits(rate=30, daily=1))
    assert told(customer.chat()) == ("1", "0", "12h0m0s")
    refused = customer.chat()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
    assert told(refused) == ("1", "0", "12h0m0s")
    assert refused.headers["x-should-retry"] == "false" and "retry-after" not in refused.headers
    clock.advance(12 * 3600)
    assert customer.chat().status_code == 200


def test_a_budget_is_told_in_requests_of_this_price(start_site: StartSite, clock: Clock) -> None:
    customer = Customer(start_site(), clock, Limits(rate=30, budget=read_budget("0.0060usd/day")))
    assert told(customer.models()) == ("30", "30", "0s")  # what it would pay for, is not known here
    assert told(customer.chat()) == ("2", "1", "12h0m0s")
    assert told(customer.chat()) == ("2", "0", "12h0m0s")
    refused = customer.chat()
    assert refused.json()["error"]["code"] == "insufficient_quota"
    assert told(refused) == ("2", "0", "12h0m0s")


def test_a_budget_in_total_never_resets(start_site: StartSite, clock: Clock) -> None:
    customer = Customer(start_site(), clock, Limits(budget=read_budget("0.0027usd/total")))
    assert told(customer.chat()) == ("1", "0", None)
    assert told(customer.chat()) == ("1", "0", None)


def test_errors_before_the_row_and_repeated_answers_take_nothing(start_site: StartSite, clock: Clock) -> None:
    customer = Customer(start_site(), clock, Limits(rate=2))
    bad = customer.site.client.post(CHAT, json=chat_body(n=0), headers={"x-api-key": customer.secret})
    assert bad.status_code == 400 and told(bad) == ("2", "2", "0s")
    for remaining, replayed in (("1", None), ("1", "true"), ("1", "true")):
        answer = customer.chat(**{"idempotency-key": "k"})
        assert (answer.headers.get("x-oxlo-replayed"), told(answer)[1]) == (replayed, remaining)


@pytest.mark.parametrize("limits", [Limits(), Limits(concurrency=3)], ids=["none", "at once"])
def test_a_key_without_limits_hears_of_none(start_site: StartSite, clock: Clock, limits: Limits) -> None:
    customer = Customer(start_site(), clock, limits)
    assert told(customer.chat()) == told(customer.models()) == (None, None, None)


def test_a_revoked_key_is_told_nothing(start_site: StartSite, clock: Clock) -> None:
    customer = Customer(start_site(), clock, Limits(rate=2))
    customer.site.run(customer.site.keys.revoke("anna"))
    answer = customer.models()
    assert answer.status_code == 401 and told(answer) == (None, None, None)


def test_the_sdk_waits_as_long_as_it_is_told(start_site: StartSite, clock: Clock) -> None:
    customer = Customer(start_site(), clock, Limits(rate=1))
    clock.now = NOON
    assert customer.chat().status_code == 200
    clock.advance(59.95)  # it comes again 50 ms later by its own clock; ours stands still until then
    with OpenAI(base_url=f"{customer.site.url}/v1", api_key=customer.secret, max_retries=1) as client:
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "x"}])
        assert refused.value.response.headers["retry-after-ms"] == "50"
        assert client._parse_retry_after_header(refused.value.response.headers) == 0.05
        clock.advance(0.05)
        assert client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "x"}])


# -- pieces ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (0.02, "20ms"),
        (0.0201, "21ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (3725.5, "1h2m5.5s"),
        (30 * 86_400, "720h0m0s"),
        (59.9999, "1m0s"),
        (-1, "0s"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_the_limit_that_is_reached_first_is_told() -> None:
    rate, day = Standing("rate", 30, 4, 20.0), Standing("daily", 1000, 4, 7200.0)
    assert headers_of([rate, day], 0)["x-ratelimit-limit-requests"] == "1000"  # the one that lasts longer
    money = Standing("budget", 20_000_000, 7_999, None)
    assert headers_of([rate, day, money], 2700) == {
        "x-ratelimit-limit-requests": str(20_000_000 // 2700),
        "x-ratelimit-remaining-requests": "2",
    }
    assert headers_of([money, Standing("concurrency", 2, 1, None)], 0) == {}
