"""What the same traffic would have cost elsewhere: at token-billed providers, and on the hosted flat plans.

Only settled rows are priced: a failed request is billed nowhere. Token prices, with source and date, stand with the
models in models.toml; where a provider has no such model, the nearest one is taken and marked. Prompt tokens are
priced in full, as if the provider had no discount for cached ones. A model without a price anywhere is left out of
both sides, and named. The comparison is meant to be able to say that flat loses.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from oxlo_local.catalogue import Catalogue
from oxlo_local.db import Connection, Database
from oxlo_local.entry import Price
from oxlo_local.limits import MICROS, PLANS, PLANS_DATE, PLANS_SOURCE
from oxlo_local.statement import ALWAYS, Period

FIRST: Final = ("together", "fireworks", "openrouter", "openai")  # then the others, by name
_PER_MTOK: Final = Decimal(1_000_000)


@dataclass(frozen=True)
class Traffic:
    """The settled rows of one model."""

    model: str
    requests: int
    flat_micros: int
    prompt_tokens: int
    completion_tokens: int  # reasoning included
    audio_seconds: float
    images: int


@dataclass(frozen=True)
class Quote:
    """What a provider would have taken for one model's traffic, in US dollars."""

    traffic: Traffic
    price: Price
    usd: Decimal

    @property
    def nearest(self) -> bool:
        """Whether the price is that of another model, because the provider has not this one."""
        return self.price.match == "nearest"


@dataclass(frozen=True)
class Offer:
    """A provider's quotes for all the models that it has a price for, against our flat price for the same requests."""

    provider: str
    quotes: tuple[Quote, ...]

    @property
    def usd(self) -> Decimal:
        """What it would have taken."""
        return sum((quote.usd for quote in self.quotes), Decimal(0))

    @property
    def flat_usd(self) -> Decimal:
        """What was charged here for the same requests."""
        return Decimal(sum(quote.traffic.flat_micros for quote in self.quotes)) / MICROS

    @property
    def requests(self) -> int:
        """How many requests it covers."""
        return sum(quote.traffic.requests for quote in self.quotes)

    @property
    def nearest(self) -> bool:
        """Whether any of its prices is for another model."""
        return any(quote.nearest for quote in self.quotes)

    @property
    def verdict(self) -> str:
        """Who was cheaper, and by how much; where flat loses, how much longer requests would have to be."""
        if self.usd == self.flat_usd:
            return "the same"
        if self.usd == 0:
            return "flat loses: nothing would have been billed"
        ratio = self.flat_usd / self.usd
        if ratio > 1:
            return f"flat loses: {ratio:,.1f} times as much; it would win if requests were {ratio:,.1f} times as long"
        return f"flat wins: {ratio:.0%} of it"


@dataclass(frozen=True)
class PlanOffer:
    """The same requests on a hosted flat plan: so many months of it, and how often they would not have fitted."""

    plan: str
    usd_a_month: Decimal
    daily: int
    rate: int
    months: int
    days: int
    days_over: int
    minutes_over: int

    @property
    def usd(self) -> Decimal:
        """What the months cost."""
        return self.usd_a_month * self.months

    @property
    def fits(self) -> bool:
        """Whether every request would have been within its limits."""
        return not self.days_over and not self.minutes_over


@dataclass(frozen=True)
class Comparison:
    """All of it. `unpriced` are models that no provider in the catalogue has a price for."""

    traffic: tuple[Traffic, ...]
    offers: tuple[Offer, ...]
    plans: tuple[PlanOffer, ...]
    unpriced: tuple[Traffic, ...]
    plans_source: str = PLANS_SOURCE
    plans_date: str = PLANS_DATE

    @property
    def flat_usd(self) -> Decimal:
        """What was charged here for all requests."""
        return Decimal(sum(one.flat_micros for one in self.traffic)) / MICROS

    @property
    def requests(self) -> int:
        """How many requests were settled."""
        return sum(one.requests for one in self.traffic)


async def compare(db: Database, catalogue: Catalogue, period: Period = ALWAYS) -> Comparison:
    """Price the settled rows of a period everywhere."""
    traffic, busy = await db.survey(
        lambda connection: (_traffic(connection, period), _busy(connection, period))
    )
    quoted = [
        quote
        for one in traffic
        if one.model in catalogue.models
        for quote in quotes(one, catalogue.models[one.model].prices)
    ]
    priced = {quote.traffic.model for quote in quoted}
    by_provider: dict[str, list[Quote]] = {}
    for quote in quoted:
        by_provider.setdefault(quote.price.provider, []).append(quote)
    order = sorted(by_provider, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    return Comparison(
        traffic=tuple(traffic),
        offers=tuple(Offer(name, tuple(by_provider[name])) for name in order),
        plans=tuple(_on_plan(name, busy) for name in PLANS) if traffic else (),
        unpriced=tuple(one for one in traffic if one.model not in priced),
    )


def quotes(traffic: Traffic, prices: Sequence[Price]) -> list[Quote]:
    """One quote for each provider: of the model itself rather than of the nearest one, then the cheapest."""
    best: dict[str, Quote] = {}
    for price in prices:
        usd = cost(traffic, price)
        if usd is None:
            continue
        quote = Quote(traffic, price, usd)
        known = best.get(price.provider)
        if known is None or (quote.nearest, quote.usd) < (known.nearest, known.usd):
            best[price.provider] = quote
    return list(best.values())


def cost(traffic: Traffic, price: Price) -> Decimal | None:
    """US dollars for the traffic at this price; None where the price is for something that the rows do not have."""
    if price.per_image is not None:
        return price.per_image * traffic.images
    if price.per_audio_minute is not None:
        return price.per_audio_minute * Decimal(str(traffic.audio_seconds)) / 60
    if price.input_per_mtok is None:
        return None
    prompt = price.input_per_mtok * traffic.prompt_tokens
    return (prompt + (price.output_per_mtok or 0) * traffic.completion_tokens) / _PER_MTOK


# -- rows -------------------------------------------------------------------------------------------------------------

_SETTLED: Final = "FROM entries WHERE id >= ? AND id < ? AND status = 'settled'"


def _traffic(connection: Connection, period: Period) -> list[Traffic]:
    sums = (
        "model, count(*), sum(price_micros), ifnull(sum(prompt_tokens), 0), ifnull(sum(completion_tokens), 0),"
        " total(audio_seconds), ifnull(sum(images), 0)"
    )
    sql = f"SELECT {sums} {_SETTLED} GROUP BY model ORDER BY model"
    return [Traffic(*row) for row in connection.execute(sql, period.ids())]


@dataclass(frozen=True)
class _Busy:
    """How many requests each day (of UTC) and the busier minutes had, and in how many months there were any."""

    months: int
    days: tuple[int, ...]
    minutes: tuple[int, ...]


def _busy(connection: Connection, period: Period) -> _Busy:
    def counts(milliseconds: int, least: int) -> Iterable[int]:
        sql = f"SELECT count(*) {_SETTLED} GROUP BY opened_ms / {milliseconds} HAVING count(*) > {least}"
        return (row[0] for row in connection.execute(sql, period.ids()))

    months = f"SELECT count(DISTINCT month) FROM (SELECT {_MONTH} AS month {_SETTLED} GROUP BY opened_ms / 86400000)"
    (in_months,) = connection.execute(months, period.ids()).fetchone()
    slowest = min(plan.limits.rate or 0 for plan in PLANS.values())
    return _Busy(in_months, tuple(counts(86_400_000, 0)), tuple(counts(60_000, slowest)))


_MONTH: Final = "strftime('%Y-%m', min(opened_ms) / 1000, 'unixepoch')"


def _on_plan(name: str, busy: _Busy) -> PlanOffer:
    limits, usd_a_month = PLANS[name]
    daily, rate = limits.daily or 0, limits.rate or 0
    return PlanOffer(
        plan=name,
        usd_a_month=usd_a_month,
        daily=daily,
        rate=rate,
        months=busy.months,
        days=len(busy.days),
        days_over=sum(count > daily for count in busy.days),
        minutes_over=sum(count > rate for count in busy.minutes),
    )
