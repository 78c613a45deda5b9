"""What `oxlo keys` and `oxlo ledger` do: open the file, read or change it, and print.

A running server has the same file open and is not disturbed. Tables show local times; JSON and CSV have them in UTC.
"""

import asyncio
import csv
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from oxlo_local import statement
from oxlo_local.config import load
from oxlo_local.db import Database
from oxlo_local.keys import Key, Keys, Role
from oxlo_local.ledger import usd
from oxlo_local.statement import By, Line, Period, Plain

T = TypeVar("T")
Bounds = tuple[float | None, float | None]  # since (inclusive) and until (exclusive), seconds since 1970

TABLE_WIDTH = 240  # where stdout is no terminal: a cut id is of no use


# -- keys -------------------------------------------------------------------------------------------------------------


def create_key(name: str, role: Role, as_json: bool) -> None:
    """Make a key; the secret alone goes to stdout."""

    async def run(db: Database) -> tuple[Key, str, bool]:
        keys = Keys(db)
        first = not await keys.any_made()
        return *await keys.create(name, role), first

    key, secret, first = _with_ledger(run)
    if as_json:
        _print_json({**_plain_key(key), "key": secret})
    else:
        print(secret)
        print(f"made {role} key {key.id} ({name}); it is shown only now", file=sys.stderr)
    if first:
        print("from now on every request needs a key, on loopback too", file=sys.stderr)


def list_keys(as_json: bool) -> None:
    """All keys ever made."""
    keys = _with_ledger(lambda db: Keys(db).list())
    if as_json:
        _print_json([_plain_key(key) for key in keys])
        return
    table = Table("id", "name", "role", "begins with", "created", "revoked", box=None, pad_edge=False)
    for key in keys:
        revoked = "" if key.revoked is None else _local(key.revoked)
        table.add_row(key.id, _safe(key.name), key.role, key.hint, _local(key.created), revoked)
    _print_table(table)


def show_key(id_or_name: str, as_json: bool) -> None:
    """One key, with the sums of its rows."""

    async def run(db: Database) -> tuple[Key, Line]:
        key = await Keys(db).find(id_or_name)
        return key, statement.total(await statement.summary(db, "key", key_id=key.id))

    key, used = _with_ledger(run)
    if as_json:
        _print_json({**_plain_key(key), "usage": _ungrouped(used)})
        return
    _print_pairs(
        ("id", key.id),
        ("name", key.name),
        ("role", key.role),
        ("begins with", key.hint),
        ("created", _local(key.created)),
        ("revoked", "no" if key.revoked is None else _local(key.revoked)),
        ("requests", f"{used.requests} ({used.settled} settled, {used.refunded} refunded, {used.open} open)"),
        ("spent", f"{usd(used.spent_micros)} USD"),
    )


def revoke_key(id_or_name: str, as_json: bool) -> None:
    """Revoke a key, and say if none is left."""

    async def run(db: Database) -> tuple[Key, bool]:
        keys = Keys(db)
        revoked = await keys.revoke(id_or_name)
        return revoked, any(key.revoked is None for key in await keys.list())

    revoked, some_left = _with_ledger(run)
    if as_json:
        _print_json(_plain_key(revoked))
    else:
        print(f"revoked key {revoked.id} ({revoked.name})")
    if not some_left:
        print("no key is left, and requests still need one: `oxlo keys create NAME`", file=sys.stderr)


def _plain_key(key: Key) -> dict[str, object]:
    revoked = None if key.revoked is None else statement.iso(round(key.revoked * 1000))
    created = statement.iso(round(key.created * 1000))
    known = {"id": key.id, "name": key.name, "role": key.role, "hint": key.hint}
    return {**known, "created": created, "revoked": revoked}


# -- rows -------------------------------------------------------------------------------------------------------------


def print_summary(by: By, bounds: Bounds, as_json: bool, as_csv: bool) -> None:
    """Sums over groups of rows, and over all of them (CSV: the groups alone)."""

    async def run(db: Database) -> tuple[list[Line], list[Key]]:
        return await statement.summary(db, by, Period(*bounds)), await Keys(db).list() if by == "key" else []

    lines, keys = _with_ledger(run)
    if as_json:
        rows = [_grouped(line, by) for line in lines]
        _print_json({"by": by, "rows": rows, "total": _ungrouped(statement.total(lines))})
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, list(_grouped(statement.total([]), by)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_grouped(line, by) for line in lines)
    else:
        _print_table(_summary_table(lines, by, {key.id: f"{key.name} ({key.id})" for key in keys}))


def _grouped(line: Line, by: By) -> dict[str, Plain]:
    return {by: line.group, **_ungrouped(line)}


def _ungrouped(line: Line) -> dict[str, Plain]:
    return {name: value for name, value in line.plain().items() if name != "group"}


def _summary_table(lines: Sequence[Line], by: By, key_names: dict[str, str]) -> Table:
    total = statement.total(lines)
    table = Table(box=None, pad_edge=False)
    table.add_column("day (UTC)" if by == "day" else by, overflow="fold")
    for heading in ("requests", "settled", "refunded", "open", "prompt", "cached", "completion", "spent USD"):
        table.add_column(heading, justify="right")
    for line in (*lines, total):
        states = (line.requests, line.settled, line.refunded, line.open)
        tokens = (line.prompt_tokens, line.cached_tokens, line.completion_tokens)
        numbers = (f"{number:,}" for number in (*states, *tokens))
        style = "bold" if line is total else None
        table.add_row(
            _safe(key_names.get(line.group, line.group)), *numbers, usd(line.spent_micros), style=style
        )
    return table


def print_entry(entry_id: str, as_json: bool) -> None:
    """One row with all its columns; the table leaves out those that do not apply."""
    row = _with_ledger(lambda db: statement.show(db, entry_id))
    values = row.plain()
    if as_json:
        _print_json(values)
        return
    values["opened"] = _local(row.opened_ms / 1000)
    values["closed"] = None if row.closed_ms is None else _local(row.closed_ms / 1000)
    shown = ((name, _cell(value)) for name, value in values.items() if value is not None)
    _print_pairs(*((name.replace("_", " "), str(text)) for name, text in shown))


def export_rows(bounds: Bounds, as_json: bool) -> None:
    """All rows as they are read, so that a million of them need no memory: CSV, or one JSON object a line."""

    async def run(db: Database) -> None:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        if not as_json:
            writer.writerow(statement.EXPORTED)
        async for row in statement.export(db, Period(*bounds)):
            values = row.plain()
            if as_json:
                print(json.dumps(values, ensure_ascii=False))
            else:
                writer.writerow(_cell(value) for value in values.values())

    _with_ledger(run)


def _cell(value: Plain) -> str | int | float | None:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


# -- both -------------------------------------------------------------------------------------------------------------


def _with_ledger(use: Callable[[Database], Awaitable[T]]) -> T:
    async def run() -> T:
        db = Database.open(load().ledger_path)
        try:
            return await use(db)
        finally:
            db.close()

    return asyncio.run(run())


def _local(at: float) -> str:
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def _safe(text: str) -> str:
    """What a client has sent, harmless for a terminal: no markup of rich's, no control sequences."""
    return escape(
        "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    )


def _print_json(data: object) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))


def _print_pairs(*pairs: tuple[str, str]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for label, text in pairs:
        table.add_row(label, _safe(text))
    _print_table(table)


def _print_table(table: Table) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=TABLE_WIDTH)
    console.print(table)
