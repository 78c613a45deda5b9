"""What is left of a key's limits as headers, in the form of OpenAI's: x-ratelimit-{limit,remaining,reset}-requests.

A key may have several limits, and there is one set of headers: it tells of the limit that will be reached first. Money
counts as the requests at this one's price that it pays for. How many may run at once is left to the 429: whoever asks
one after the other would see nothing else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from oxlo_local.errors import Standing


@dataclass(frozen=True)
class _Requests:
    """A limit in requests; `reset` is in seconds, infinite where no time brings it."""

    limit: int
    remaining: int
    reset: float


def headers_of(
    standings: Sequence[Standing], price_micros: int, *, anthropic_at: datetime | None = None
) -> dict[str, str]:
    """The headers; none where no limit can be told in requests of this price (0 = unknown).

    With `anthropic_at`, the time now, they are told as Anthropic does too, whose reset is a moment.
    """
    found = [told for one in standings if (told := _in_requests(one, price_micros)) is not None]
    if not found:
        return {}
    first = min(found, key=lambda one: (one.remaining, -one.reset))
    headers = {
        "x-ratelimit-limit-requests": str(first.limit),
        "x-ratelimit-remaining-requests": str(first.remaining),
    }
    if math.isfinite(first.reset):
        headers["x-ratelimit-reset-requests"] = duration(first.reset)
    if anthropic_at is not None:
        headers["anthropic-ratelimit-requests-limit"] = str(first.limit)
        headers["anthropic-ratelimit-requests-remaining"] = str(first.remaining)
        if math.isfinite(first.reset):
            reset = anthropic_at + timedelta(seconds=math.ceil(first.reset))
            headers["anthropic-ratelimit-requests-reset"] = reset.strftime("%Y-%m-%dT%H:%M:%SZ")
    return headers


def _in_requests(one: Standing, price_micros: int) -> _Requests | None:
    if one.kind == "concurrency" or (one.kind == "budget" and not price_micros):
        return None
    reset = math.inf if one.reset is None else one.reset
    unit = price_micros if one.kind == "budget" else 1
    return _Requests(one.limit // unit, one.remaining // unit, reset)


def duration(seconds: float) -> str:
    """As Go writes it, which OpenAI does: `6m0s`, `1h0m0.5s`, `20ms`; never shorter than it is."""
    milliseconds = max(0, math.ceil(round(seconds * 1000, 3)))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{rest / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{shown}"
    return f"{minutes}m{shown}" if minutes else shown
