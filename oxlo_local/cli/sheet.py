"""What commands that print share: a console for tables, pairs and JSON on stdout, the open ledger."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from oxlo_local.config import load
from oxlo_local.db import Database

T = TypeVar("T")

TABLE_WIDTH = 240  # where stdout is no terminal: a cut id is of no use


def with_ledger(use: Callable[[Database], Awaitable[T]]) -> T:
    """Open the file, which a running server may have open too, use it, close it."""

    async def run() -> T:
        db = Database.open(load().ledger_path)
        try:
            return await use(db)
        finally:
            db.close()

    return asyncio.run(run())


def local(at: float) -> str:
    """Seconds since 1970 as local time."""
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def safe(text: str) -> str:
    """What a client has sent, harmless for a terminal: no markup of rich's, no control sequences."""
    return escape(
        "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    )


def print_json(data: object) -> None:
    """Indented JSON."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def print_pairs(*pairs: tuple[str, str]) -> None:
    """A label and a text each line."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for label, text in pairs:
        table.add_row(label, safe(text))
    print_table(table)


def console() -> Console:
    """Stdout: as wide as the terminal, else wide enough for every table."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=TABLE_WIDTH)


def print_table(table: Table) -> None:
    """A table on stdout."""
    console().print(table)
