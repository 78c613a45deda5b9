"""What a key may do: texts read exactly, patterns, prices that fit best, and windows between midnights of any zone."""

from datetime import UTC, datetime
from typing import get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxlo_local.errors import BadRequest, ModelNotAllowed, UnsupportedValue
from oxlo_local.limits import (
    END_OF_TIME,
    PLANS,
    UNLIMITED,
    Budget,
    Limits,
    Per,
    Tier,
    from_json,
    price_of,
    read_budget,
    read_count,
    read_expiry,
    read_money,
    read_patterns,
    read_prices,
    read_rate,
    read_span,
    read_zone,
    shown_expiry,
    usd,
    version_of,
    window,
)

CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"
HOUR = 3_600_000


def ms(*moment: int, zone: str = "UTC", fold: int = 0) -> int:
    return round(datetime(*moment, tzinfo=ZoneInfo(zone), fold=fold).timestamp() * 1000)  # type: ignore[misc,arg-type]


# -- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("5usd", 5_000_000),
        ("$5", 5_000_000),
        (" 0.0027 USD ", 2700),
        ("0.000001", 1),
        (".5", 500_000),
        ("-5usd", -5_000_000),
        ("0.00000100000000000000000000000000000000", 1),
        ("123456789.123456", 123_456_789_123_456),  # a float would still have it, 20 digits would not
    ],
)
def test_money_is_read_exactly(text: str, micros: int) -> None:
    assert read_money(text) == micros


@pytest.mark.parametrize(
    "text",
    ["", "usd", "5eur", "0.0000001", "1e3", "nan", "inf", "٥", "5 5", "--5", ".", "$", "10000000000"]
    + ["1000000000.000001", f"0.000000{'9' * 40}"],  # 40 nines would be one micro-dollar, rounded
)
def test_what_is_no_money_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="is no sum of money; write 5usd"):
        read_money(text)


@given(micros=st.integers(-(10**15), 10**15))
def test_money_survives_being_written_and_read(micros: int) -> None:
    assert read_money(usd(micros)) == micros


def test_budgets_rates_counts_and_spans_are_read() -> None:
    assert read_budget("20usd/month") == Budget(20_000_000, "month")
    assert read_budget("0.01/day") == Budget(10_000, "day")
    assert read_budget("5usd") == Budget(5_000_000, "total")
    assert (read_rate("30/min"), read_rate("30"), read_count("4", "a number")) == (30, 30, 4)
    assert (read_span("90d"), read_span("30m")) == (90 * 24 * HOUR, HOUR // 2)
    assert read_patterns("llama-*, whisper-*") == ("llama-*", "whisper-*")
    assert read_prices(["0.002", "qwen*@embeddings=0.0002usd"]) == {"*": 2000, "qwen*@embeddings": 200}
    assert read_zone("Europe/Berlin") == "Europe/Berlin"


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_budget, "20usd/year", "is no budget; write 20usd/month"),
        (read_budget, "-1usd/day", "below zero"),
        (read_rate, "30/s", "is no rate; write 30/min"),
        (read_rate, "0/min", "write a whole number from 1"),
        (read_span, "90", "is no span of time; write 90d"),
        (read_patterns, "a,,b", "names nothing between two commas"),
        (lambda text: read_prices([text]), "=5", "is no price"),
        (lambda text: read_prices([text]), "a=-5", "is no price"),
        (lambda text: read_count(text, "a limit"), "1000001", "whole number from 1 to 1000000"),
        (read_zone, "Europe/Berln", "did you mean Europe/Berlin"),
    ],
)
def test_what_cannot_be_read_says_what_to_write(read: object, text: str, message: str) -> None:
    assert callable(read)
    with pytest.raises(BadRequest, match=message):
        read(text)


def test_an_expiry_is_a_span_or_a_time_in_the_keys_zone() -> None:
    now = ms(2026, 11, 23)
    assert read_expiry("90d", now, "UTC") == now + 90 * 24 * HOUR
    assert read_expiry("2026-12-01", now, "Europe/Berlin") == ms(2026, 11, 30, 23)
    assert read_expiry("2026-12-01T00:00Z", now, "Europe/Berlin") == ms(2026, 12, 1)
    with pytest.raises(BadRequest, match="is over already"):
        read_expiry("2026-11-22", now, "UTC")
    limits = Limits(expires_ms=ms(2026, 11, 30, 23), zone="Europe/Berlin")
    assert (shown_expiry(limits), shown_expiry(UNLIMITED)) == ("2026-12-01 00:00:00 CET", "never")


def test_limits_survive_the_file() -> None:
    limits = Limits(
        models=("a*",), endpoints=("chat",), budget=Budget(1, "day"), rate=3, daily=4, concurrency=5,
        expires_ms=6, zone="Asia/Tokyo", tier="batch", prices={"a*": 7}, plan="pro",
    )  # fmt: skip
    assert from_json(limits.to_json()) == limits
    assert UNLIMITED.to_json() == "{}"
    assert {name: plan.limits.daily for name, plan in PLANS.items()} == {
        "free": 60,
        "pro": 1000,
        "premium": 5000,
    }
    assert {name: plan.limits.rate for name, plan in PLANS.items()} == {"free": 5, "pro": 30, "premium": 120}


# -- scope and prices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "pattern", "allowed"),
    [
        (CHAT, "chat", True),
        (CHAT, "chat/completions", True),
        (CHAT, "completions", False),
        ("/v1/completions", "completions", True),
        ("/v1/audio/translations", "audio", True),
        ("/v1/audio/translations", "audio/transcriptions", False),
        ("/v1/messages", "messages", True),
        ("/tokenize", "tokenize", True),
        ("/v1/images/edits", "*", True),
    ],
)
def test_an_endpoint_is_meant_by_its_path_or_its_first_part(
    endpoint: str, pattern: str, allowed: bool
) -> None:
    limits = Limits(endpoints=("nothing", pattern))
    if allowed:
        limits.permit("m", endpoint)
    else:
        with pytest.raises(ModelNotAllowed, match=f"may not use {endpoint}; it is for nothing, {pattern}"):
            limits.permit("m", endpoint)


def test_a_key_is_for_the_models_of_its_patterns() -> None:
    limits = Limits(models=("llama-*", "whisper-?"))
    limits.permit("llama-3.1-8b", CHAT)
    limits.permit("whisper-1", CHAT)
    UNLIMITED.permit("anything", "/v1/anything")
    for model in ("whisper-10", "Llama-3", "mistral-7b"):
        with pytest.raises(
            ModelNotAllowed, match=f"may not use the model '{model}'; it is for llama-"
        ) as refusal:
            limits.permit(model, CHAT)
        assert refusal.value.param == "model"


def test_the_price_that_fits_best_wins() -> None:
    prices = {"*": 5, "llama-*": 4, "llama-3*": 3, "*@embeddings": 2, "a[b]": 9}
    assert price_of(prices, "llama-3.1-8b", CHAT) == 3
    assert price_of(prices, "llama-2", CHAT) == 4
    assert price_of(prices, "llama-3.1-8b", EMBED) == 2  # a price for the endpoint goes first
    assert price_of(prices, "a[b]", CHAT) == 9  # an id is an id, whatever its characters mean in a pattern
    assert price_of({}, "x", CHAT) is None and price_of({"a": 1}, "x", CHAT) is None


def test_a_price_list_has_the_same_name_everywhere() -> None:
    assert version_of({"a": 1, "b": 2}) == version_of({"b": 2, "a": 1}) == "cda25b5537fd"
    assert version_of({"a": 1}) != version_of({"a": 2}) != version_of({"b": 2})


# -- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "asked", "found"),
    [
        ("standard", None, "standard"),
        ("batch", None, "batch"),
        ("standard", "batch", "batch"),
        ("priority", "standard", "standard"),
        ("priority", "priority", "priority"),
        ("standard", "priority", None),
        ("batch", "standard", None),
    ],
)
def test_a_request_may_ask_for_its_keys_tier_or_one_below(
    own: Tier, asked: Tier | None, found: Tier | None
) -> None:
    limits = Limits(tier=own)
    if found is not None:
        assert limits.tier_for(asked) == found
        return
    with pytest.raises(UnsupportedValue) as caught:
        limits.tier_for(asked)
    assert caught.value.param == "service_tier" and f"tier {own}" in caught.value.message


def test_windows_begin_at_midnight_of_the_zone() -> None:
    at = ms(2026, 11, 23, 9, 30)  # a Monday
    assert window("day", at, "UTC") == (ms(2026, 11, 23), ms(2026, 11, 24))
    assert window("day", at, "Asia/Tokyo") == (ms(2026, 11, 22, 15), ms(2026, 11, 23, 15))
    assert window("week", ms(2026, 11, 22, 23), "UTC") == (ms(2026, 11, 16), ms(2026, 11, 23))
    assert window("month", at, "UTC") == (ms(2026, 11, 1), ms(2026, 12, 1))
    assert window("month", ms(2026, 12, 31, 23), "Europe/Berlin") == (
        ms(2027, 1, 1, zone="Europe/Berlin"),
        ms(2027, 2, 1, zone="Europe/Berlin"),
    )
    assert window("total", at, "UTC") == (0, END_OF_TIME)


def test_the_last_and_the_first_millisecond_are_two_days() -> None:
    midnight = ms(2026, 12, 1, zone="America/New_York")
    before, after = (window("day", at, "America/New_York") for at in (midnight - 1, midnight))
    assert before.end == after.start == midnight


@pytest.mark.parametrize(
    ("day", "hours"),
    [((2026, 3, 29), 23), ((2026, 10, 25), 25), ((2026, 6, 1), 24)],
    ids=["spring", "autumn", "summer"],
)
def test_a_day_is_as_long_as_its_clocks_make_it(day: tuple[int, int, int], hours: int) -> None:
    found = window("day", ms(*day, 12), "Europe/Berlin")
    assert found.end - found.start == hours * HOUR


@pytest.mark.parametrize(
    ("zone", "at"),
    [
        ("America/St_Johns", ms(2006, 10, 29, 2, 40)),  # 00:01 went back to 23:01 of the day before
        ("America/Sao_Paulo", ms(2017, 10, 15, 3, 10)),  # no midnight: 00:00 was 01:00
        ("Pacific/Apia", ms(2011, 12, 30, 9, 59)),  # the 30th of December never was
        ("Pacific/Apia", ms(2011, 12, 30, 10, 1)),
        ("Africa/Cairo", ms(2026, 4, 23, 22, 30)),
    ],
)
@pytest.mark.parametrize("per", get_args(Per))
def test_every_moment_has_one_window_where_clocks_jump_over_midnight(zone: str, at: int, per: Per) -> None:
    found = window(per, at, zone)
    assert found.start <= at < found.end
    assert {window(per, moment, zone) for moment in (found.start, at, found.end - 1)} == {found}


ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/St_Johns",
    "America/Sao_Paulo",
    "Pacific/Apia",
    "Asia/Kathmandu",
    "Africa/Cairo",
)


@given(per=st.sampled_from(get_args(Per)), zone=st.sampled_from(ZONES), at=st.integers(0, ms(2100, 1, 1)))
def test_windows_touch_and_never_overlap(per: Per, zone: str, at: int) -> None:
    found = window(per, at, zone)
    assert found.start <= at < found.end
    assert window(per, found.end - 1, zone) == found == window(per, found.start, zone)
    if per != "total":
        assert window(per, found.end, zone).start == found.end
        days = {"day": 1, "week": 7, "month": 31}[per]
        assert found.end - found.start <= (24 * days + 1) * HOUR
        local = datetime.fromtimestamp(found.start / 1000, UTC).astimezone(ZoneInfo(zone))
        assert (local.hour, local.minute) == (0, 0) or zone not in ("UTC", "Europe/Berlin", "Asia/Kathmandu")
