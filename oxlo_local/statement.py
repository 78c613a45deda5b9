"""What the ledger says: sums by model, key, day, endpoint or chain; single rows; all rows as a stream.

Only reading: the file may belong to a running server, which neither notices nor waits. Days are days of UTC, so that
two people who read one ledger read the same sums.
"""

import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial, reduce
from typing import Final, Literal

from oxlo_local.db import Connection, Database
from oxlo_local.errors import NotFound
from oxlo_local.ids import first_id
from oxlo_local.ledger import AddressClass, Status, usd
from oxlo_local.limits import END_OF_TIME

By = Literal["model", "key", "day", "endpoint", "chain"]
Plain = str | int | float | None | dict[str, str]

PAGE: Final = 1000  # rows in memory at a time during an export

_GROUPS: Final[dict[By, str]] = {
    "model": "model",
    "key": "key_id",
    "day": "opened_ms / 86400000",
    "endpoint": "endpoint",
    "chain": "chain_id",
}


@dataclass(frozen=True)
class Period:
    """Rows opened from `since` (inclusive) to `until` (exclusive), in seconds since 1970; None = no bound."""

    since: float | None = None
    until: float | None = None

    def ids(self) -> tuple[str, str]:
        """The same period as a range of ids, which begin with their time: the table is read in this order."""
        start, end = self.moments()
        return first_id("e", start), "f" if self.until is None else first_id("e", end)

    def moments(self) -> tuple[int, int]:
        """The same period in milliseconds since 1970."""
        start = 0 if self.since is None else round(self.since * 1000)
        return start, END_OF_TIME if self.until is None else round(self.until * 1000)


ALWAYS: Final = Period()


@dataclass(frozen=True)
class Row:
    """One row as the file has it; the fields are its columns, in the order of the export."""

    id: str
    opened_ms: int
    closed_ms: int | None
    instance: str
    key_id: str
    endpoint: str
    model: str
    status: Status
    reason: str | None
    error_code: str | None
    units: int
    unit_price_micros: int
    price_micros: int
    price_version: str
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None
    audio_seconds: float | None
    language: str | None
    real_time_factor: float | None
    images: int | None
    steps: int | None
    size: str | None
    draw_seconds: float | None
    queue_ms: float | None
    first_output_ms: float | None
    total_ms: float | None
    request_id: str
    job_id: str | None
    chain_id: str | None
    metadata: str | None
    address_class: AddressClass

    def plain(self) -> dict[str, Plain]:
        """For JSON and CSV: ISO times in UTC, exact decimal dollars, metadata as an object."""
        values: dict[str, Plain] = dict(vars(self))
        values["opened_ms"] = iso(self.opened_ms)
        values["closed_ms"] = None if self.closed_ms is None else iso(self.closed_ms)
        values["unit_price_micros"] = usd(self.unit_price_micros)
        values["price_micros"] = usd(self.price_micros)
        values["metadata"] = None if self.metadata is None else json.loads(self.metadata)
        return {_SHOWN_AS.get(name, name): value for name, value in values.items()}


_SHOWN_AS: Final = {
    "opened_ms": "opened",
    "closed_ms": "closed",
    "unit_price_micros": "unit_price_usd",
    "price_micros": "price_usd",
    "spent_micros": "spent_usd",
    "refunded_micros": "refunded_usd",
}
_COLUMNS: Final = tuple(field.name for field in fields(Row))
EXPORTED: Final = tuple(_SHOWN_AS.get(name, name) for name in _COLUMNS)


@dataclass(frozen=True)
class Line:
    """Sums over one group of rows. Spent counts open and settled rows, refunded the others."""

    group: str
    requests: int
    open: int
    settled: int
    refunded: int
    spent_micros: int
    refunded_micros: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    audio_seconds: float
    images: int

    def plain(self) -> dict[str, Plain]:
        """For JSON and CSV."""
        values: dict[str, Plain] = dict(vars(self))
        values["spent_micros"] = usd(self.spent_micros)
        values["refunded_micros"] = usd(self.refunded_micros)
        return {_SHOWN_AS.get(name, name): value for name, value in values.items()}


_SUMS: Final = (
    "count(*), sum(status = 'open'), sum(status = 'settled'), sum(status = 'refunded'),"
    " sum(CASE WHEN status = 'refunded' THEN 0 ELSE price_micros END),"
    " sum(CASE WHEN status = 'refunded' THEN price_micros ELSE 0 END),"
    " ifnull(sum(prompt_tokens), 0), ifnull(sum(cached_tokens), 0), ifnull(sum(completion_tokens), 0),"
    " ifnull(sum(reasoning_tokens), 0), total(audio_seconds), ifnull(sum(images), 0)"
)


_OF_KEY: Final = (
    "key_id = ? AND opened_ms >= ? AND opened_ms < ?"  # an index has a key's rows in order of time
)


async def summary(db: Database, by: By, period: Period = ALWAYS, key_id: str | None = None) -> list[Line]:
    """One line for each group, in order of its name; rows without a chain are left out of `by="chain"`."""
    group = _GROUPS[by]
    # The name is made for each group, not for each row: a date costs more than all the sums.
    name = "strftime('%Y-%m-%d', min(opened_ms) / 1000, 'unixepoch')" if by == "day" else group
    sql = (
        f"SELECT {name}, {_SUMS} FROM entries WHERE {group} IS NOT NULL AND"
        f" {'id >= ? AND id < ?' if key_id is None else _OF_KEY} GROUP BY {group} ORDER BY {group}"
    )
    values = period.ids() if key_id is None else (key_id, *period.moments())
    return await db.survey(lambda connection: [Line(*row) for row in connection.execute(sql, values)])


def total(lines: Iterable[Line]) -> Line:
    """The sum of all lines, as a line with the name `total`."""
    start = Line("total", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0)
    return reduce(_add, lines, start)


def _add(left: Line, right: Line) -> Line:
    sums = {name: value + getattr(right, name) for name, value in vars(left).items() if name != "group"}
    return replace(left, **sums)


async def show(db: Database, entry_id: str) -> Row:
    """The row of this id. Raises NotFound."""
    sql = f"SELECT {', '.join(_COLUMNS)} FROM entries WHERE id = ?"
    row = await db.read(lambda connection: connection.execute(sql, (entry_id,)).fetchone())
    if row is None:
        raise NotFound(f"no entry {entry_id!r} in the ledger {db.path}; `oxlo ledger export` lists them all")
    return Row(*row)


async def export(db: Database, period: Period = ALWAYS) -> AsyncIterator[Row]:
    """All rows of the period in order of id, a page in memory at a time.

    Each page is a read of its own, so that a long export never keeps the writer from emptying its WAL; rows that are
    reserved meanwhile come at the end.
    """
    sql = f"SELECT {', '.join(_COLUMNS)} FROM entries WHERE id {{}} ? AND id < ? ORDER BY id LIMIT {PAGE}"
    start, end = period.ids()
    comparison = ">="
    while True:
        page = await db.read(partial(_rows, sql.format(comparison), (start, end)))
        for row in page:
            yield row
        if len(page) < PAGE:
            return
        start, comparison = page[-1].id, ">"


def _rows(sql: str, values: tuple[str, str], connection: Connection) -> list[Row]:
    return [Row(*row) for row in connection.execute(sql, values)]


def iso(at_ms: int) -> str:
    """Milliseconds since 1970 as `2026-11-23T08:44:01.250Z`."""
    seconds, milliseconds = divmod(at_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"
