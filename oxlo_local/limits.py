"""What a key may do: models, endpoints, money, requests a minute and a day, how many at once, until when. Pure.

`Limits` is kept with the key as JSON. The texts that people write (`20usd/month`, `30/min`, `90d`) are read here, and
the windows that budgets are counted in are found here. A window is a stretch of time between two midnights of the
key's time zone, so a day has 23, 24 or 25 hours where clocks are changed; windows touch and never overlap.
"""

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated, Final, Literal, NamedTuple, TypeVar, get_args
from zoneinfo import ZoneInfo, available_timezones

import msgspec
from msgspec import Meta, Struct

from oxlo_local.errors import BadRequest, ModelNotAllowed, UnsupportedValue

Per = Literal["day", "week", "month", "total"]
Tier = Literal["priority", "standard", "batch"]
TIERS: Final[tuple[Tier, ...]] = get_args(Tier)

MICROS: Final = 1_000_000
END_OF_TIME: Final = 2**62
MINUTE_MS: Final = 60_000

LARGEST_SUM: Final = 10**15  # micro-dollars
Money = Annotated[int, Meta(ge=0, le=LARGEST_SUM)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class Budget(Struct, frozen=True, forbid_unknown_fields=True):
    """So much money in each window."""

    micros: Money
    per: Per


class Limits(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """None and empty = without this limit. `prices` maps "MODEL" or "MODEL@ENDPOINT" patterns to micro-dollars."""

    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    budget: Budget | None = None
    rate: Count | None = None  # requests in any 60 seconds
    daily: Count | None = None  # requests a day of the zone
    concurrency: Count | None = None  # requests at once
    expires_ms: int | None = None
    zone: str = "UTC"
    tier: Tier = "standard"
    prices: dict[str, Money] = {}
    plan: str | None = None  # the preset that it was made from

    @property
    def counted(self) -> bool:
        """Whether requests or money of this key are counted over a time."""
        return any(each is not None for each in (self.budget, self.rate, self.daily))

    def permit(self, model: str, endpoint: str) -> None:
        """Raises ModelNotAllowed for a model or an endpoint that the key was not made for."""
        if self.models and not any(fnmatchcase(model, pattern) for pattern in self.models):
            raise ModelNotAllowed(
                f"this key may not use the model {model!r}; it is for {', '.join(self.models)}. An admin can "
                "change that with `oxlo keys limit KEY --models ...`",
                param="model",
            )
        if self.endpoints and not any(is_endpoint(endpoint, pattern) for pattern in self.endpoints):
            raise ModelNotAllowed(
                f"this key may not use {endpoint}; it is for {', '.join(self.endpoints)}. An admin can change that "
                "with `oxlo keys limit KEY --endpoints ...`"
            )

    def tier_for(self, asked: Tier | None) -> Tier:
        """The tier of a request that asks for one; None = the key's own. Raises UnsupportedValue above that."""
        if asked is None:
            return self.tier
        if TIERS.index(asked) < TIERS.index(self.tier):
            raise UnsupportedValue(
                f"this key is of the tier {self.tier}, and {asked} is above it: leave service_tier out, or let an "
                f"admin raise the key's with `oxlo keys limit KEY --tier {asked}`",
                param="service_tier",
            )
        return asked

    def to_json(self) -> str:
        """What the file keeps."""
        return msgspec.json.encode(self).decode()


@lru_cache(maxsize=4096)
def from_json(text: str) -> Limits:
    """What `to_json` gave. Raises msgspec.ValidationError for anything else."""
    return msgspec.json.decode(text, type=Limits)


UNLIMITED: Final = Limits()


class Plan(NamedTuple):
    """A plan of the hosted product: its limits, and what a month of it costs in US dollars."""

    limits: Limits
    usd_a_month: Decimal


PLANS_SOURCE: Final = "oxlo.ai, the pricing page of its public website repository at 0d402239"
PLANS_DATE: Final = "2026-06"
PLANS: Final[dict[str, Plan]] = {
    "free": Plan(Limits(plan="free", daily=60, rate=5, tier="batch"), Decimal(0)),
    "pro": Plan(Limits(plan="pro", daily=1000, rate=30), Decimal(80)),
    "premium": Plan(Limits(plan="premium", daily=5000, rate=120, tier="priority"), Decimal(350)),
}


# -- endpoints and prices ---------------------------------------------------------------------------------------------


def is_endpoint(endpoint: str, pattern: str) -> bool:
    """Whether a route is meant: `chat` is /v1/chat/completions, `audio` everything below /v1/audio, `*` all."""
    name = endpoint.removeprefix("/v1/").removeprefix("/")
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}/*")


def price_of(prices: Mapping[str, int], model: str, endpoint: str) -> int | None:
    """The price that fits best: of the patterns that match, the longest, one with an endpoint before one without."""
    best: tuple[bool, int] | None = None
    found = None
    for pattern, micros in prices.items():
        wanted, _, place = pattern.partition("@")
        if (wanted == model or fnmatchcase(model, wanted)) and (not place or is_endpoint(endpoint, place)):
            rank = (bool(place), len(pattern))
            if best is None or rank > best:
                best, found = rank, micros
    return found


def version_of(prices: Mapping[str, int]) -> str:
    """A name for a price list: the same prices have the same name in every row and on every machine."""
    return hashlib.sha256(msgspec.json.encode(sorted(prices.items()))).hexdigest()[:12]


def usd(micros: int) -> str:
    """Micro-dollars as exact decimal dollars, at least four places: 2700 -> "0.0027", 5 -> "0.000005"."""
    dollars, rest = divmod(abs(micros), MICROS)
    places = f"{rest:06d}"
    while len(places) > 4 and places.endswith("0"):
        places = places[:-1]
    return f"{'-' if micros < 0 else ''}{dollars}.{places}"


# -- windows ----------------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """From `start` (inclusive) to `end` (exclusive), in milliseconds since 1970."""

    start: int
    end: int


def window(per: Per, at_ms: int, zone: str) -> Window:
    """The window of this kind that holds the moment."""
    return Window(0, END_OF_TIME) if per == "total" else _window(per, at_ms // 1000, zone)


@lru_cache(maxsize=1024)
def _window(per: Per, at: int, zone: str) -> Window:
    """By the second, in which windows begin, because a busy server asks for the same one again and again."""
    place = ZoneInfo(zone)
    today = datetime.fromtimestamp(at, place).date()
    first = _first_day(per, today)
    # Where clocks jump over midnight, or back across it, the date alone can name the window beside the right one.
    while at * 1000 >= _midnight(_next(per, first), place):
        first = _next(per, first)
    while at * 1000 < _midnight(first, place):
        first = _first_day(per, first - timedelta(days=1))
    return Window(_midnight(first, place), _midnight(_next(per, first), place))


def _first_day(per: Per, day: date) -> date:
    if per == "month":
        return day.replace(day=1)
    return day - timedelta(days=day.weekday()) if per == "week" else day


def _next(per: Per, first: date) -> date:
    if per == "month":
        return (first + timedelta(days=31)).replace(day=1)
    return first + timedelta(days=7 if per == "week" else 1)


def _midnight(day: date, place: ZoneInfo) -> int:
    return round(datetime(day.year, day.month, day.day, tzinfo=place).timestamp() * 1000)


# -- what people write ------------------------------------------------------------------------------------------------


_MONEY: Final = re.compile(r"(-?)\$?(?=\.?[0-9])0*([0-9]{0,10})(?:\.([0-9]{0,6})0*)?\s*(?:usd)?", re.ASCII)


def read_money(text: str) -> int:
    """`5usd`, `$5`, `0.0027` -> micro-dollars, exactly. Raises BadRequest."""
    match = _MONEY.fullmatch(text.strip().lower())
    micros = int(f"0{match[2]}") * MICROS + int(f"{match[3] or '':0<6}") if match else 0
    if match is None or micros > LARGEST_SUM:
        raise BadRequest(f"{text!r} is no sum of money; write 5usd or 0.0027usd (at most six decimals)")
    return -micros if match[1] else micros


def read_budget(text: str) -> Budget:
    """`20usd/month` (or /day, /week, /total). Raises BadRequest."""
    money, _, per = text.strip().lower().partition("/")
    per = per.strip() or "total"
    if per not in get_args(Per):
        raise BadRequest(f"{text!r} is no budget; write 20usd/month (or /day, /week, /total)")
    micros = read_money(money)
    if micros < 0:
        raise BadRequest(f"a budget of {text} would be below zero")
    return Budget(micros, per)  # type: ignore[arg-type]  # it is one of Per: looked up above


def read_rate(text: str) -> int:
    """`30/min` -> 30. Raises BadRequest."""
    match = re.fullmatch(r"([0-9]{1,7})(?:/min(?:ute)?)?", text.strip().lower(), re.ASCII)
    if match is None:
        raise BadRequest(f"{text!r} is no rate; write 30/min")
    return read_count(match[1], "a rate")


def read_count(text: str, what: str) -> int:
    """A whole number from 1 to a million. Raises BadRequest."""
    if not re.fullmatch(r"[0-9]{1,7}", text.strip(), re.ASCII) or not 1 <= int(text) <= 1_000_000:
        raise BadRequest(f"{text!r} is not {what}: write a whole number from 1 to 1000000, or none")
    return int(text)


_SPANS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def read_span(text: str) -> int:
    """`90d`, `12h`, `30m` -> milliseconds. Raises BadRequest."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text.strip().lower(), re.ASCII)
    if match is None:
        raise BadRequest(f"{text!r} is no span of time; write 90d, 12h or 30m")
    return int(match[1]) * _SPANS[match[2]]


def read_expiry(text: str, now_ms: int, zone: str) -> int:
    """`90d` from now, or a date or time (without an offset: in the zone) -> milliseconds since 1970.

    Raises BadRequest, also for what is over already.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        at_ms = now_ms + read_span(text)
    else:
        at_ms = round((moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))).timestamp() * 1000)
    if at_ms <= now_ms:
        raise BadRequest(f"{text} is over already: a key expires in the future")
    return at_ms


def read_zone(text: str) -> str:
    """The name of a time zone that this machine knows. Raises BadRequest with the nearest."""
    known = available_timezones()
    if text not in known:
        near = difflib.get_close_matches(text, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; write Europe/Berlin or UTC"
        raise BadRequest(f"no time zone {text!r}{hint}")
    return text


def read_patterns(text: str) -> tuple[str, ...]:
    """`llama-*,whisper-*` -> patterns. Raises BadRequest for an empty one."""
    patterns = tuple(part.strip() for part in text.split(","))
    if not all(patterns):
        raise BadRequest(f"{text!r} names nothing between two commas; write llama-*,whisper-*")
    return patterns


def read_prices(texts: Iterable[str]) -> dict[str, int]:
    """`llama-*=0.002`, `*@embeddings=0.0002`, `0.002` for all -> micro-dollars by pattern. Raises BadRequest."""
    prices: dict[str, int] = {}
    for text in texts:
        pattern, equals, money = text.rpartition("=")
        micros = read_money(money)
        if micros < 0 or (equals and not pattern.strip()):
            raise BadRequest(f"{text!r} is no price; write 'llama-*=0.002' or 0.002")
        prices[pattern.strip() or "*"] = micros
    return prices


def shown_expiry(limits: Limits) -> str:
    """When the key expires, in its own zone; `never` without an end."""
    if limits.expires_ms is None:
        return "never"
    moment = datetime.fromtimestamp(limits.expires_ms / 1000, UTC).astimezone(ZoneInfo(limits.zone))
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}"


def shown_patterns(patterns: Sequence[str]) -> str:
    """Patterns for people; `all` without any."""
    return ", ".join(patterns) or "all"


class Given(NamedTuple):
    """Limits as somebody has written them: None = not mentioned, `none` = without this limit."""

    prices: tuple[str, ...] = ()
    plan: str | None = None
    models: str | None = None
    endpoints: str | None = None
    budget: str | None = None
    rate: str | None = None
    daily: str | None = None
    concurrency: str | None = None
    expires: str | None = None
    zone: str | None = None
    tier: str | None = None


NONE: Final = "none"
T = TypeVar("T")


def changed(limits: Limits, given: Given, now_ms: int) -> Limits:
    """The limits with what is given put in; a plan first, so that the rest can differ from it. Raises BadRequest."""
    if given.plan is not None:
        limits = _on_plan(limits, given.plan)
    zone = limits.zone if given.zone is None else read_zone(given.zone)
    if given.tier is not None and given.tier not in TIERS:
        raise BadRequest(f"no tier {given.tier!r}; there are {', '.join(TIERS)}")

    def read(text: str | None, before: T, without: T, reader: Callable[[str], T]) -> T:
        if text is None:
            return before
        return without if text.strip().lower() == NONE else reader(text)

    prices = {} if NONE in given.prices else dict(limits.prices)
    return Limits(
        models=read(given.models, limits.models, (), read_patterns),
        endpoints=read(given.endpoints, limits.endpoints, (), read_patterns),
        budget=read(given.budget, limits.budget, None, read_budget),
        rate=read(given.rate, limits.rate, None, read_rate),
        daily=read(
            given.daily, limits.daily, None, lambda text: read_count(text, "a number of requests a day")
        ),
        concurrency=read(
            given.concurrency, limits.concurrency, None, lambda text: read_count(text, "a number of requests")
        ),
        expires_ms=read(given.expires, limits.expires_ms, None, lambda text: read_expiry(text, now_ms, zone)),
        zone=zone,
        tier=limits.tier if given.tier is None else given.tier,
        prices=prices | read_prices(text for text in given.prices if text != NONE),
        plan=limits.plan,
    )


def _on_plan(limits: Limits, name: str) -> Limits:
    """Limits with a plan's numbers in the place of their own; `none` takes those of a plan away."""
    if name == NONE:
        return msgspec.structs.replace(limits, plan=None, daily=None, rate=None, tier="standard")
    if name not in PLANS:
        raise BadRequest(f"no plan {name!r}; there are {', '.join(PLANS)}")
    plan = PLANS[name].limits
    return msgspec.structs.replace(limits, plan=name, daily=plan.daily, rate=plan.rate, tier=plan.tier)
