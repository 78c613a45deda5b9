"""What a key has left. Looked up inside the transaction that writes the row, so no two requests share a last cent.

    remaining = budget + credits - spent        in the window of the moment, never shown below 0
    daily:  open and settled rows of the day    a refunded request gives its place back
    rate:   all rows of the last 60 seconds     a refunded one too: it has been asked
    at once: open rows

Rows are not counted anew for each request. Every window that a limit needs has a row in `sums`, which triggers of the
file keep up with each insert, refund and credit, in whatever process; it is made from the rows the first time that the
window is needed: at its beginning, or when a limit is changed. The rate needs exact times, which an index has. All that
a request needs to know of its key is read by one statement: each takes a turn at the interpreter's lock too.

The clock may go back. A row belongs to the window that its time is in, and the sums of past windows are kept, so what
was spent in a window stays spent when the clock comes by again. The rate counts rows of up to a minute ahead as well:
no 60 seconds ever hold more than was allowed, and a clock that was wrong by hours locks nobody out.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple, NoReturn
from zoneinfo import ZoneInfo

from oxlo_local.db import Connection
from oxlo_local.errors import InsufficientQuota, RateLimitExceeded, Standing, Unauthorized
from oxlo_local.limits import MINUTE_MS, UNLIMITED, Limits, Window, from_json, usd, window

BUSY_RETRY: Final = 1.0  # seconds; nobody can know when one of those at once will end


class Sums(NamedTuple):
    """What a key's rows and credits of one window come to."""

    charged: int
    spent_micros: int
    credits_micros: int


@dataclass(frozen=True)
class Account:
    """A key at a moment: its limits, and what has been asked and spent with it; no limits where the file has no such
    key, as on a keyless server. `writable`: the connection is inside a write, so sums of new windows may be kept.
    """

    connection: Connection
    key_id: str
    at_ms: int
    writable: bool
    limits: Limits = UNLIMITED
    revoked: bool = False
    running: int = 0
    asked: int = 0  # in the last minute
    newest_ms: int | None = None  # when the last of them was
    kept: dict[Window, Sums] = field(default_factory=dict)

    @classmethod
    def of(cls, connection: Connection, key_id: str, at_ms: int, *, writable: bool = False) -> "Account":
        """Read it."""
        minute = (key_id, at_ms - MINUTE_MS, at_ms + MINUTE_MS)
        rows = connection.execute(_ACCOUNT, (*minute, at_ms)).fetchall()
        if not rows:
            return cls(connection, key_id, at_ms, writable)
        limits, revoked_ms, running, asked, newest_ms = rows[0][:5]
        return cls(
            connection,
            key_id,
            at_ms,
            writable,
            from_json(limits),
            revoked_ms is not None,
            running,
            asked or 0,
            newest_ms,
            {Window(*row[5:7]): Sums(*row[7:]) for row in rows if row[5] is not None},
        )

    def take(self, price_micros: int) -> tuple[Standing, ...]:
        """Check that one more request at this price is within all limits; returns how they stand with it counted.

        Raises Unauthorized (revoked, expired), InsufficientQuota (budget, daily), RateLimitExceeded (rate, at once).
        """
        if self.revoked:
            raise Unauthorized(
                f"key {self.key_id} has been revoked: make another with `oxlo keys create NAME`"
            )
        expires_ms = self.limits.expires_ms
        if expires_ms is not None and self.at_ms >= expires_ms:
            raise Unauthorized(
                f"key {self.key_id} has expired: make another with `oxlo keys create NAME`, or have an admin extend "
                "it with `oxlo keys limit KEY --expires 90d`"
            )
        standings = self.standings()
        for one in standings:
            if one.remaining < (price_micros if one.kind == "budget" else 1):
                self._refuse(one, standings, price_micros)
        return tuple(_with_one_more(one, price_micros) for one in standings)

    def standings(self) -> tuple[Standing, ...]:
        """How the limits stand, those that the key has: budget, daily, rate, at once."""
        kinds = (self._budget, self._daily, self._rate, self._concurrency)
        return tuple(found for found in (kind() for kind in kinds) if found is not None)

    def _budget(self) -> Standing | None:
        budget = self.limits.budget
        if budget is None:
            return None
        span = window(budget.per, self.at_ms, self.limits.zone)
        sums = self.sums(span)
        whole = max(0, budget.micros + sums.credits_micros)
        reset = None if budget.per == "total" else (span.end - self.at_ms) / 1000
        return Standing("budget", whole, max(0, whole - sums.spent_micros), reset)

    def _daily(self) -> Standing | None:
        daily = self.limits.daily
        if daily is None:
            return None
        span = window("day", self.at_ms, self.limits.zone)
        left = daily - self.sums(span).charged
        return Standing("daily", daily, max(0, left), (span.end - self.at_ms) / 1000)

    def _rate(self) -> Standing | None:
        rate = self.limits.rate
        if rate is None:
            return None
        reset = 0.0 if self.newest_ms is None else (self.newest_ms + MINUTE_MS - self.at_ms) / 1000
        return Standing("rate", rate, max(0, rate - self.asked), reset)

    def _concurrency(self) -> Standing | None:
        most = self.limits.concurrency
        return None if most is None else Standing("concurrency", most, max(0, most - self.running), None)

    # -- refusals -----------------------------------------------------------------------------------------------------

    def _refuse(self, reached: Standing, standings: tuple[Standing, ...], price_micros: int) -> NoReturn:
        """Raise what the reached limit means, and what can be done about it."""
        if reached.kind == "concurrency":
            raise RateLimitExceeded(
                f"key {self.key_id} has {reached.limit} requests under way, all that it may have at once",
                retry_after=BUSY_RETRY,
                standings=standings,
                price_micros=price_micros,
            )
        if reached.kind == "rate":
            wait = self._until_one_leaves(reached.limit)
            raise RateLimitExceeded(
                f"key {self.key_id} may make {reached.limit} requests a minute; the next one in {wait:.3f} s",
                retry_after=wait,
                standings=standings,
                price_micros=price_micros,
            )
        what = f"key {self.key_id} has made the {reached.limit} requests that it may make a day"
        if reached.kind == "budget":
            what = (
                f"the budget of key {self.key_id} has {usd(reached.remaining)} of {usd(reached.limit)} USD left, and "
                f"this request costs {usd(price_micros)}"
            )
        again = "" if reached.reset is None else f"; it is whole again at {self._moment(reached.reset)}"
        raise InsufficientQuota(
            f"{what}{again}. An admin can raise it with `oxlo keys limit`",
            standings=standings,
            price_micros=price_micros,
        )

    def _until_one_leaves(self, rate: int) -> float:
        """Seconds until fewer than `rate` rows are younger than a minute: until the rate-th newest is that old."""
        sql = f"SELECT opened_ms {_LAST_MINUTE} ORDER BY opened_ms DESC LIMIT 1 OFFSET ?4"
        minute = (self.key_id, self.at_ms - MINUTE_MS, self.at_ms + MINUTE_MS)
        (opened_ms,) = self.connection.execute(sql, (*minute, rate - 1)).fetchone()
        return float(opened_ms + MINUTE_MS - self.at_ms) / 1000

    def _moment(self, seconds: float) -> str:
        moment = datetime.fromtimestamp(self.at_ms / 1000 + seconds, UTC).astimezone(
            ZoneInfo(self.limits.zone)
        )
        return f"{moment:%Y-%m-%d %H:%M %Z}"

    # -- running sums -------------------------------------------------------------------------------------------------

    def sums(self, span: Window) -> Sums:
        """The kept sums of a window; else they are summed up from its rows, and kept where that may be."""
        known = self.kept.get(span)
        if known is None:
            opened, *found = self.connection.execute(_FROM_ROWS, (self.key_id, *span)).fetchone()
            if self.writable:
                self.connection.execute(_KEEP, (self.key_id, *span, opened, *found))
            known = self.kept[span] = Sums(*found)
        return known


def _with_one_more(one: Standing, price_micros: int) -> Standing:
    """The standing once this request is in; the rate is whole again a minute after it."""
    taken = price_micros if one.kind == "budget" else 1
    reset = max(one.reset or 0.0, MINUTE_MS / 1000) if one.kind == "rate" else one.reset
    return Standing(one.kind, one.limit, one.remaining - taken, reset)


_LAST_MINUTE: Final = "FROM entries WHERE key_id = ?1 AND opened_ms > ?2 AND opened_ms <= ?3"
# How many the last minute had is only asked where the limits, which are JSON, name a rate: they may be very many.
_ACCOUNT: Final = (
    "SELECT limits, revoked_ms,"
    " (SELECT count(*) FROM entries INDEXED BY entries_open WHERE key_id = ?1 AND status = 'open'),"
    f" CASE WHEN instr(limits, '\"rate\"') THEN (SELECT count(*) {_LAST_MINUTE}) END,"
    f" (SELECT max(opened_ms) {_LAST_MINUTE}),"
    " starts_ms, ends_ms, charged, spent_micros, credits_micros"
    " FROM keys LEFT JOIN sums ON key_id = id AND ends_ms > ?4 AND starts_ms <= ?4 WHERE id = ?1"
)
_KEEP: Final = (
    "INSERT INTO sums (key_id, starts_ms, ends_ms, opened, charged, spent_micros, credits_micros)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_FROM_ROWS: Final = (
    "SELECT count(*), ifnull(sum(status <> 'refunded'), 0),"
    " ifnull(sum(CASE WHEN status <> 'refunded' THEN price_micros ELSE 0 END), 0),"
    " (SELECT ifnull(sum(amount_micros), 0) FROM events"
    " WHERE action = 'credited' AND key_id = ?1 AND at_ms >= ?2 AND at_ms < ?3)"
    " FROM entries WHERE key_id = ?1 AND opened_ms >= ?2 AND opened_ms < ?3"
)
