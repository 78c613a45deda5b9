"""`oxlo ledger`: what was asked, delivered and spent; from the file, whether or not a server is running."""

import re
import time
from datetime import datetime
from typing import Annotated, Literal

import typer

app = typer.Typer(help="What was asked, delivered and spent.")

WHEN = "a date or time (2026-11-23, 2026-11-23T08:00Z), or an age (30m, 24h, 7d)"
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Since = Annotated[
    str | None, typer.Option(metavar="WHEN", help=f"Rows opened from then on: {WHEN}.", show_default=False)
]
Until = Annotated[
    str | None, typer.Option(metavar="WHEN", help="Rows opened before then.", show_default=False)
]
Group = Literal["model", "key", "day", "endpoint", "chain"]

_SECONDS = {"m": 60, "h": 3600, "d": 86400}


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        summary()


@app.command()
def summary(
    by: Annotated[Group, typer.Option(help="One line for each of these.")] = "model",
    since: Since = None,
    until: Until = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    chart: Annotated[
        bool | None,
        typer.Option("--chart/--no-chart", help="Draw what was spent; by default in a terminal."),
    ] = None,
) -> None:
    """Sum up the rows, by default for each model. Days are days of UTC.

    Example:  oxlo ledger summary --by day --since 7d
    """
    bounds = _bounds(since, until)
    _one_form(as_json, as_csv)
    from oxlo_local.cli import books

    books.print_summary(by, bounds, as_json, as_csv, chart)


@app.command()
def show(
    entry: Annotated[str, typer.Argument(metavar="ID", help="A row's id, as in the header x-oxlo-entry.")],
    as_json: AsJson = False,
) -> None:
    """Show one row with all its columns.

    Example:  oxlo ledger show e_1m83sv1v3nhjss4hs33p
    """
    from oxlo_local.cli import books

    books.print_entry(entry, as_json)


@app.command()
def export(
    since: Since = None,
    until: Until = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Print all rows, oldest first, as they are read: CSV, or with --json one JSON object a line.

    Example:  oxlo ledger export --since 2026-11-01 > november.csv
    """
    bounds = _bounds(since, until)
    _one_form(as_json, as_csv)
    from oxlo_local.cli import books

    books.export_rows(bounds, as_json)


@app.command()
def compare(since: Since = None, until: Until = None, as_json: AsJson = False) -> None:
    """Say what the same traffic would have cost by the token elsewhere, and on the hosted flat plans.

    Example:  oxlo ledger compare --since 30d
    """
    bounds = _bounds(since, until)
    from oxlo_local.cli import books

    books.print_comparison(bounds, as_json)


@app.command()
def credit(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key's id (k_…) or name.")],
    amount: Annotated[str, typer.Argument(help="5usd; to take a credit back: -- -5usd")],
    why: Annotated[str, typer.Option(help="The reason, which is kept.")],
    entry: Annotated[
        str | None, typer.Option(metavar="ID", help="The row that it makes good.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a key spend more in the current window of its budget. A row of its own: nothing is edited.

    Example:  oxlo ledger credit ci 5usd --why "the outage of Monday"
    """
    from oxlo_local.cli import books

    books.credit_key(key, amount, why, entry, as_json)


@app.command()
def audit(
    since: Since = None,
    key: Annotated[str | None, typer.Option(help="Of one key: its id or name.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List who changed what: keys, limits, prices, credits. --json prints one object a line.

    Example:  oxlo ledger audit --since 30d
    """
    first, _ = _bounds(since, None)
    from oxlo_local.cli import books

    books.print_events(first, key, as_json)


@app.command()
def verify(as_json: AsJson = False) -> None:
    """Check every row, sum and price in the ledger. Exit code 1 with what disagrees.

    Example:  oxlo ledger verify
    """
    from oxlo_local.cli import books

    if not books.print_verdict(as_json):
        raise typer.Exit(1)


def _one_form(as_json: bool, as_csv: bool) -> None:
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other")


def _bounds(since: str | None, until: str | None) -> tuple[float | None, float | None]:
    now = time.time()
    first, last = moment(since, "--since", now), moment(until, "--until", now)
    if first is not None and last is not None and first >= last:
        raise typer.BadParameter("--since has to be before --until")
    return first, last


def moment(text: str | None, flag: str, now: float) -> float | None:
    """Seconds since 1970, of a date or time (without a zone: local) or of an age. Raises typer.BadParameter."""
    if text is None:
        return None
    age = re.fullmatch(r"([0-9]{1,6})([mhd])", text)
    if age:
        return now - int(age[1]) * _SECONDS[age[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter(f"{text!r} is not {WHEN}", param_hint=flag) from None
