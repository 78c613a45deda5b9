"""Who changed what: a row for every key made, limited, rotated or revoked, every new price list, every credit.

Rows of `events` are written in the transaction of the change itself, so neither is ever there without the other, and
the file refuses to edit or delete them. A credit is nothing but its row; a mistaken one is taken back by another.
"""

import os
import pwd
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Final, Literal

import msgspec
from msgspec import Struct

from oxlo_local.db import Connection, Database
from oxlo_local.ids import SortableIds
from oxlo_local.limits import version_of

Action = Literal["key_created", "key_limited", "key_rotated", "key_revoked", "prices_changed", "credited"]

PAGE: Final = 1000  # rows in memory at a time


@dataclass(frozen=True)
class Event:
    """One row; the fields are its columns. `who` is `user NAME` of this machine, or `key ID` of an admin."""

    id: str
    at_ms: int
    who: str
    action: Action
    key_id: str | None = None
    entry_id: str | None = None
    amount_micros: int | None = None
    why: str | None = None
    detail: str | None = None  # JSON


class PriceChange(Struct, frozen=True):
    """The detail of `prices_changed`: versions, and the micro-dollars before and after of what differs."""

    version: str
    before: str | None
    changed: dict[str, tuple[int | None, int | None]]


_COLUMNS: Final = ", ".join(field.name for field in fields(Event))


def os_user() -> str:
    """Who runs this process, as `who` of a row: of its user id, because anybody can set the variable USER."""
    try:
        return f"user {pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:  # a container's user without a name
        return f"user {os.getuid()}"


def write(
    connection: Connection,
    at_ms: int,
    who: str,
    action: Action,
    *,
    key_id: str | None = None,
    entry_id: str | None = None,
    amount_micros: int | None = None,
    why: str | None = None,
    detail: object = None,
) -> Event:
    """Add a row inside the caller's transaction."""
    told = None if detail is None else msgspec.json.encode(detail).decode()
    event = Event(
        SortableIds("v").next(at_ms), at_ms, who, action, key_id, entry_id, amount_micros, why, told
    )  # fmt: skip
    marks = ", ".join("?" for _ in fields(Event))
    connection.execute(f"INSERT INTO events ({_COLUMNS}) VALUES ({marks})", tuple(vars(event).values()))
    return event


def keep_prices(connection: Connection, at_ms: int, prices: Mapping[str, int]) -> str:
    """Have a price list under its version, for as long as rows may carry it; returns the version."""
    version = version_of(prices)
    connection.execute(
        "INSERT OR IGNORE INTO price_lists VALUES (?, ?, ?)",
        (version, at_ms, msgspec.json.encode(dict(sorted(prices.items()))).decode()),
    )
    return version


def announce(connection: Connection, at_ms: int, who: str, prices: Mapping[str, int]) -> str:
    """Put the server's price list into force; one that differs from the last is an event, with what has changed."""
    version = keep_prices(connection, at_ms, prices)
    last = connection.execute(
        "SELECT detail FROM events WHERE action = 'prices_changed' ORDER BY at_ms DESC, id DESC LIMIT 1"
    ).fetchone()
    before = msgspec.json.decode(last[0], type=PriceChange).version if last else None
    if version != before:
        found = connection.execute("SELECT prices FROM price_lists WHERE version = ?", (before,)).fetchone()
        old = msgspec.json.decode(found[0], type=dict[str, int]) if found else {}
        changed = {
            model: (old.get(model), prices.get(model))
            for model in sorted(old.keys() | prices.keys())
            if old.get(model) != prices.get(model)
        }
        write(connection, at_ms, who, "prices_changed", detail=PriceChange(version, before, changed))
    return version


async def events(db: Database, since_ms: int = 0, key_id: str | None = None) -> AsyncIterator[Event]:
    """All rows from then on, oldest first, or those of one key; a page in memory at a time."""
    sql = f"SELECT {_COLUMNS} FROM events WHERE (at_ms, id) > (?, ?) AND at_ms >= ?"
    sql += f"{'' if key_id is None else ' AND key_id = ?'} ORDER BY at_ms, id LIMIT {PAGE}"
    last: tuple[int, str] = (since_ms - 1, "")
    while True:
        values = (*last, since_ms, *(() if key_id is None else (key_id,)))
        page = await db.read(partial(_rows, sql, values))
        for event in page:
            yield event
        if len(page) < PAGE:
            return
        last = (page[-1].at_ms, page[-1].id)


def _rows(sql: str, values: tuple[str | int, ...], connection: Connection) -> list[Event]:
    return [Event(*row) for row in connection.execute(sql, values)]
