"""What it would have cost elsewhere: exact sums, the right price for each row, and honest verdicts."""

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from oxlo_local.catalogue import Catalogue, Model
from oxlo_local.compare import Comparison, Offer, Quote, Traffic, compare, cost, quotes
from oxlo_local.db import Database
from oxlo_local.entry import Price
from oxlo_local.ledger import Ask, Ledger, Outcome
from oxlo_local.statement import Period
from tests.conftest import Clock

DAY = 86_400.0
ASK = Ask("local", "/v1/chat/completions", "llama", 1, 1000, "", "req_1")
INPUT, OUTPUT = Decimal("0.1"), Decimal("0.32")
TOKENS = Price(
    "openrouter", "llama-x", "exact", "2026-07", "a page", input_per_mtok=INPUT, output_per_mtok=OUTPUT
)
TRAFFIC = Traffic("llama", 3, 3000, 3_000_000, 500_000, 90.0, 4)


def price(provider: str = "openrouter", match: str = "exact", **amounts: str) -> Price:
    return Price(provider, "x", match, "2026", "s", **{name: Decimal(text) for name, text in amounts.items()})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("priced", "usd"),
    [
        (TOKENS, "0.46"),
        (price(input_per_mtok="0.02"), "0.06"),  # embeddings: nothing comes out
        (price(per_audio_minute="0.006"), "0.009"),
        (price(per_image="0.014"), "0.056"),
        (price(per_mchar="15"), None),  # rows do not count characters
    ],
)
def test_each_kind_of_price(priced: Price, usd: str | None) -> None:
    assert cost(TRAFFIC, priced) == (None if usd is None else Decimal(usd))


def test_the_model_itself_goes_before_a_cheaper_neighbour_and_then_the_cheapest() -> None:
    prices = [
        price("openai", "nearest", input_per_mtok="0.01"),
        price("openai", "exact", input_per_mtok="9"),
        price("openai", "exact", input_per_mtok="8"),
        price("together", "nearest", input_per_mtok="3"),
        price("together", "nearest", input_per_mtok="2"),
    ]
    assert [(quote.price.provider, quote.usd, quote.nearest) for quote in quotes(TRAFFIC, prices)] == [
        ("openai", Decimal(24), False),
        ("together", Decimal(6), True),
    ]


@pytest.mark.parametrize(
    ("flat_micros", "usd", "verdict"),
    [
        (1_000_000, "0.25", "flat loses: 4.0 times as much; it would win if requests were 4.0 times as long"),
        (1_000_000, "2", "flat wins: 50% of it"),
        (1_000_000, "1", "the same"),
        (1_000_000, "0", "flat loses: nothing would have been billed"),
    ],
)
def test_verdicts_are_honest(flat_micros: int, usd: str, verdict: str) -> None:
    offer = Offer("x", (Quote(replace(TRAFFIC, flat_micros=flat_micros), TOKENS, Decimal(usd)),))
    assert offer.verdict == verdict


@pytest.fixture
def db(home: Path) -> Iterator[Database]:
    database = Database.open(home / "ledger.db")
    yield database
    database.close()


async def compared(db: Database, period: Period) -> Comparison:
    models = [Model(id="llama", prices=[TOKENS]), Model(id="mine")]
    return await compare(db, Catalogue(models, {}, Decimal(0)), period)


async def test_settled_rows_of_the_period_are_priced(db: Database, home: Path, clock: Clock) -> None:
    clock.now = 1_790_000_000.0 - 1_790_000_000.0 % DAY
    ledger = await Ledger.open(db, home / "locks", clock=clock)
    await ledger.settle(await ledger.reserve(ASK), Outcome(10**6, 0, 10**6))  # the day before the period
    clock.advance(DAY)
    for _ in range(70):  # more than the free plan has, a day and a minute
        await ledger.settle(await ledger.reserve(ASK), Outcome(1000, 999, 100))
    await ledger.refund(await ledger.reserve(ASK), "timeout", Outcome(10**9, 0, 10**9))
    await ledger.settle(await ledger.reserve(replace(ASK, model="mine")), Outcome(5, 0, 5))
    await ledger.settle(await ledger.reserve(replace(ASK, model="gone")), Outcome(5, 0, 5))
    clock.advance(31 * DAY)
    await ledger.settle(await ledger.reserve(ASK), Outcome(1000, 0, 100))
    found = await compared(db, Period(since=clock.now - 31 * DAY))
    [offer] = found.offers
    assert (offer.requests, offer.flat_usd) == (71, Decimal("0.071"))
    assert offer.usd == 71 * (Decimal("0.1") * 1000 + Decimal("0.32") * 100) / 10**6
    assert [one.model for one in found.unpriced] == ["gone", "mine"]
    assert (found.requests, found.flat_usd) == (73, Decimal("0.073"))
    plans = {
        plan.plan: (plan.months, plan.usd, plan.days, plan.days_over, plan.minutes_over)
        for plan in found.plans
    }
    assert plans == {
        "free": (2, Decimal(0), 2, 1, 1),
        "pro": (2, Decimal(160), 2, 0, 1),
        "premium": (2, Decimal(700), 2, 0, 0),
    }
    assert [plan.fits for plan in found.plans] == [False, False, True]
    nothing = await compared(db, Period(since=clock.now + DAY))
    assert (nothing.requests, nothing.offers, nothing.plans) == (0, (), ())
    await ledger.close()
