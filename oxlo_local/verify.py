"""Is the ledger right? Every row against the rules, and every kept sum against its rows; nothing is believed.

The file refuses wrong rows by itself (CHECKs and triggers of migrations.py), so a fault here means that something else
wrote to it: a repair by hand, another program, a disk. All checks read one snapshot, also while a server writes.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from oxlo_local.db import Connection, Database
from oxlo_local.ids import MOMENT
from oxlo_local.keys import LOCAL, KeyMade, LimitsChanged
from oxlo_local.limits import from_json, price_of, usd, version_of
from oxlo_local.migrations import LIMITS

MOST: Final = 100  # faults that one check names


@dataclass(frozen=True)
class Fault:
    """What disagrees: the id of a row where it is one, else of a key or a price list; and why."""

    id: str
    what: str


@dataclass(frozen=True)
class Verdict:
    """What was looked at, and what is wrong."""

    rows: int
    sums: int
    credits: int
    faults: list[Fault]


async def verify(db: Database) -> Verdict:
    """Check the whole ledger; seconds for a million rows. Raises LedgerUnavailable for a damaged file."""
    await db.check(constraints=False)  # the checks below name the rows

    def read(connection: Connection) -> Verdict:
        connection.execute("BEGIN")
        try:
            faults = [fault for check in CHECKS for fault in check(connection)]
            rows, sums, credits = (
                int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
                for table in ("entries", "sums", "events WHERE action = 'credited'")
            )
            return Verdict(rows, sums, credits, faults)
        finally:
            connection.execute("ROLLBACK")

    return await db.survey(read)


# -- states -----------------------------------------------------------------------------------------------------------

_RULES: Final = (
    ("status NOT IN ('open', 'settled', 'refunded')", "its status is none"),
    ("(status = 'open') <> (closed_ms IS NULL)", "status and time of closing disagree"),
    ("(status = 'refunded') <> (reason IS NOT NULL)", "status and reason of a refund disagree"),
    ("typeof(units) <> 'integer' OR units < 0", "its units are no whole number"),
    ("typeof(unit_price_micros) <> 'integer' OR unit_price_micros < 0", "its unit price is no whole number"),
    ("price_micros IS NOT units * unit_price_micros", "its price is not units times unit price"),
    (f"opened_ms IS NOT {MOMENT}", "its id was made at another time than it was opened at"),
)


def _states(connection: Connection) -> Iterator[Fault]:
    any_rule = " OR ".join(rule for rule, _ in _RULES)
    broken = ", ".join(rule for rule, _ in _RULES)
    rows = connection.execute(f"SELECT id, {broken} FROM entries WHERE {any_rule} ORDER BY id LIMIT {MOST}")
    for identity, *flags in rows:
        for flag, (_, what) in zip(flags, _RULES, strict=True):
            if flag:
                yield Fault(identity, what)


def _strangers(connection: Connection) -> Iterator[Fault]:
    """Rows of keys that were never made. Counts through the index, not through the rows."""
    rows = connection.execute(
        "SELECT key_id, count(*), min(id) FROM entries GROUP BY key_id"
        f" HAVING key_id <> ? AND key_id NOT IN (SELECT id FROM keys) LIMIT {MOST}",
        (LOCAL,),
    )
    for key_id, count, first in rows:
        yield Fault(first, f"one of {count} rows of key {key_id}, which was never made")


# -- gaps -------------------------------------------------------------------------------------------------------------


def _gaps(connection: Connection) -> Iterator[Fault]:
    """Rows are numbered from 1 in the order of their writing: a number that is missing is a row that is."""
    written = connection.execute("SELECT opened FROM sums WHERE key_id = ''").fetchone()
    if written is None:
        yield Fault("ledger", "the count of all rows is missing")
        return
    count, highest, numbers = connection.execute(
        "SELECT count(*), ifnull(max(number), 0), count(DISTINCT number) FROM entries"
    ).fetchone()
    if count == highest == numbers == written[0]:
        return
    for (identity,) in connection.execute(f"SELECT id FROM entries WHERE number IS NULL LIMIT {MOST}"):
        yield Fault(identity, "it has no number")
    doubles = f"SELECT number, min(id) FROM entries WHERE number > 0 GROUP BY number HAVING count(*) > 1 LIMIT {MOST}"
    for number, identity in connection.execute(doubles):
        yield Fault(identity, f"another row has its number {number} too")
    gaps = (
        "SELECT id, number, before FROM (SELECT id, number, lag(number, 1, 0) OVER (ORDER BY number) AS before"
        f" FROM entries WHERE number IS NOT NULL) WHERE number > before + 1 LIMIT {MOST}"
    )
    for identity, number, before in connection.execute(gaps):
        yield Fault(identity, f"rows {before + 1} to {number - 1}, written before it, are missing")
    if highest < written[0]:
        yield Fault("ledger", f"the last rows, {highest + 1} to {written[0]}, are missing")
    elif count > written[0]:
        yield Fault("ledger", f"there are {count} rows, and {written[0]} were written")


# -- sums -------------------------------------------------------------------------------------------------------------

_SUMMED: Final = (
    "SELECT count(*), ifnull(sum(status <> 'refunded'), 0),"
    " ifnull(sum(CASE WHEN status <> 'refunded' THEN price_micros ELSE 0 END), 0) FROM entries"
)
_CREDITED: Final = "SELECT ifnull(sum(amount_micros), 0) FROM events WHERE action = 'credited'"
_OF_ONE: Final = " {} key_id = ?1 AND {}_ms >= ?2 AND {}_ms < ?3"


def _sums(connection: Connection) -> Iterator[Fault]:
    kept = "SELECT key_id, starts_ms, ends_ms, opened, charged, spent_micros, credits_micros FROM sums"
    for key_id, start, end, *sums in connection.execute(kept).fetchall():
        rows, credits, values = _SUMMED, _CREDITED, (key_id, start, end)
        if key_id:
            rows += _OF_ONE.format("WHERE", "opened", "opened")
            credits += _OF_ONE.format("AND", "at", "at")
        found = [
            *connection.execute(rows, values if key_id else ()).fetchone(),
            *connection.execute(credits, values if key_id else ()).fetchone(),
        ]
        if found != sums:
            whose = f"of the window from {start} to {end} ms" if key_id else "of all rows"
            yield Fault(
                key_id or "ledger", f"the kept sums {whose} say {_told(sums)}; its rows say {_told(found)}"
            )


def _told(sums: list[int]) -> str:
    opened, charged, spent, credits = sums
    return f"{opened} rows, {charged} of them charged with {usd(spent)} USD, {usd(credits)} USD of credits"


# -- prices -----------------------------------------------------------------------------------------------------------


def _prices(connection: Connection) -> Iterator[Fault]:
    """Every row against the price list that it names, and every list against its name, which is made of its prices."""
    lists = {
        version: msgspec.json.decode(prices, type=dict[str, int])
        for version, prices in connection.execute("SELECT version, prices FROM price_lists")
    }
    for version, prices in lists.items():
        if version_of(prices) != version:
            yield Fault(version, f"the prices of this list are those of list {version_of(prices)}")
    charged = connection.execute(
        "SELECT price_version, model, endpoint, unit_price_micros, count(*), min(id), max(opened_ms) FROM entries"
        " GROUP BY 1, 2, 3, 4"
    )
    kept_since = _kept_since(connection)
    for version, model, endpoint, price, count, first, opened_ms in charged:
        if version not in lists:
            if opened_ms >= kept_since:
                yield Fault(first, f"one of {count} rows by price list {version}, which is not there")
            continue
        listed = price_of(lists[version], model, endpoint)
        if listed != price:
            expected = "nothing" if listed is None else usd(listed)
            yield Fault(
                first,
                f"one of {count} rows with {usd(price)} USD a unit, where price list {version} says {expected}",
            )


def _kept_since(connection: Connection) -> int:
    """When price lists and events began to be kept: what is older need not have any."""
    applied = "SELECT applied_ms FROM migrations WHERE number = ?"
    return int(connection.execute(applied, (LIMITS.number,)).fetchone()[0])


# -- keys -------------------------------------------------------------------------------------------------------------

_EVENTS: Final = (
    "SELECT key_id, action, detail FROM events WHERE action IN ('key_created', 'key_limited', 'key_revoked')"
)


@dataclass
class _History:
    """What is written down of a key: how it was made, how its limits changed (came minus went), its revocations."""

    made: KeyMade | None
    limits: Counter[str]
    revoked: bool = False


def _keys(connection: Connection) -> Iterator[Fault]:
    """Every key against its events: who made it what it is, and whether its limits are those of the last change.

    The changes form a chain from the limits that it was made with; where that ends is known without their order, which
    a clock that was put back may have mixed up.
    """
    histories = _histories(connection)
    kept_since = _kept_since(connection)
    known = set()
    for key_id, role, limits, created_ms, revoked_ms in connection.execute(
        "SELECT id, role, limits, created_ms, revoked_ms FROM keys ORDER BY id"
    ):
        known.add(key_id)
        history = histories.get(key_id, _History(None, Counter()))
        if history.revoked and revoked_ms is None:
            yield Fault(key_id, "the key is valid, and an event says that it was revoked")
        if revoked_ms is not None and not history.revoked and revoked_ms >= kept_since:
            yield Fault(key_id, "the key is revoked, and no event says who did that")
        if history.made is None:
            if created_ms >= kept_since:
                yield Fault(key_id, "no event says who made the key")
            continue
        if history.made.role != role:
            yield Fault(key_id, f"the key is of role {role}, and was made as {history.made.role}")
        if +history.limits != Counter([from_json(limits).to_json()]):
            yield Fault(key_id, "its limits are not those that its events come to")
    for key_id in sorted(histories.keys() - known):
        yield Fault(key_id, "there are events of this key, and no such key")


def _histories(connection: Connection) -> dict[str, _History]:
    histories: dict[str, _History] = {}
    for key_id, action, detail in connection.execute(_EVENTS):
        history = histories.setdefault(key_id, _History(None, Counter()))
        if action == "key_created":
            history.made = msgspec.json.decode(detail, type=KeyMade)
            history.limits[history.made.limits.to_json()] += 1
        elif action == "key_limited":
            change = msgspec.json.decode(detail, type=LimitsChanged)
            history.limits[change.after.to_json()] += 1
            history.limits[change.before.to_json()] -= 1
        elif action == "key_revoked":
            history.revoked = True
    return histories


CHECKS: Final[tuple[Callable[[Connection], Iterator[Fault]], ...]] = (
    _states,
    _strangers,
    _gaps,
    _sums,
    _prices,
    _keys,
)
