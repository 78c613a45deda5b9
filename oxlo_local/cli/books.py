"""What `oxlo ledger` does: open the file, read it (or write a credit), and print.

A running server has the same file open and is not disturbed. Tables show local times; JSON and CSV have them in UTC.
"""

import csv
import json
import sys
from collections.abc import Sequence

import msgspec
from rich.bar import Bar
from rich.table import Table

from oxlo_local import audit, statement
from oxlo_local.catalogue import Catalogue
from oxlo_local.cli.sheet import console, local, print_json, print_pairs, print_table, safe, with_ledger
from oxlo_local.compare import Comparison, Offer, PlanOffer, Quote, compare
from oxlo_local.config import load
from oxlo_local.db import Database
from oxlo_local.keys import Key, Keys
from oxlo_local.limits import read_money, usd
from oxlo_local.statement import By, Line, Period, Plain
from oxlo_local.verify import verify

Bounds = tuple[float | None, float | None]  # since (inclusive) and until (exclusive), seconds since 1970

CHART_WIDTH = 24


# -- sums -------------------------------------------------------------------------------------------------------------


def print_summary(by: By, bounds: Bounds, as_json: bool, as_csv: bool, chart: bool | None) -> None:
    """Sums over groups of rows, and over all of them (CSV: the groups alone). `chart` None: where a terminal looks."""

    async def run(db: Database) -> tuple[list[Line], list[Key]]:
        return await statement.summary(db, by, Period(*bounds)), await Keys(db).list() if by == "key" else []

    lines, keys = with_ledger(run)
    if as_json:
        rows = [_grouped(line, by) for line in lines]
        print_json({"by": by, "rows": rows, "total": _ungrouped(statement.total(lines))})
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, list(_grouped(statement.total([]), by)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_grouped(line, by) for line in lines)
    else:
        drawn = console().is_terminal if chart is None else chart
        print_table(_summary_table(lines, by, {key.id: f"{key.name} ({key.id})" for key in keys}, drawn))


def _grouped(line: Line, by: By) -> dict[str, Plain]:
    return {by: line.group, **_ungrouped(line)}


def _ungrouped(line: Line) -> dict[str, Plain]:
    return {name: value for name, value in line.plain().items() if name != "group"}


def _summary_table(lines: Sequence[Line], by: By, key_names: dict[str, str], chart: bool) -> Table:
    total = statement.total(lines)
    table = Table(box=None, pad_edge=False)
    table.add_column("day (UTC)" if by == "day" else by, overflow="fold")
    for heading in ("requests", "settled", "refunded", "open", "prompt", "cached", "completion", "spent USD"):
        table.add_column(heading, justify="right")
    if chart:
        table.add_column("spent", width=CHART_WIDTH)
    most = max((line.spent_micros for line in lines), default=0)
    for line in (*lines, total):
        states = (line.requests, line.settled, line.refunded, line.open)
        tokens = (line.prompt_tokens, line.cached_tokens, line.completion_tokens)
        numbers = (f"{number:,}" for number in (*states, *tokens))
        bar = () if not chart or line is total else (Bar(most or 1, 0, line.spent_micros, color="cyan"),)
        table.add_row(
            _named(line, key_names),
            *numbers,
            usd(line.spent_micros),
            *bar,
            style="bold" if line is total else None,
        )
    return table


def _named(line: Line, key_names: dict[str, str]) -> str:
    return safe(key_names.get(line.group, line.group))


# -- rows -------------------------------------------------------------------------------------------------------------


def print_entry(entry_id: str, as_json: bool) -> None:
    """One row with all its columns; the table leaves out those that do not apply."""
    row = with_ledger(lambda db: statement.show(db, entry_id))
    values = row.plain()
    if as_json:
        print_json(values)
        return
    values["opened"] = local(row.opened_ms / 1000)
    values["closed"] = None if row.closed_ms is None else local(row.closed_ms / 1000)
    shown = ((name, _cell(value)) for name, value in values.items() if value is not None)
    print_pairs(*((name.replace("_", " "), str(text)) for name, text in shown))


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

    with_ledger(run)


def _cell(value: Plain) -> str | int | float | None:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


# -- credits and history ----------------------------------------------------------------------------------------------


def credit_key(id_or_name: str, amount: str, why: str, entry_id: str | None, as_json: bool) -> None:
    """Write a credit. Raises BadRequest, NotFound."""
    micros = read_money(amount)
    key, event = with_ledger(lambda db: Keys(db).credit(id_or_name, micros, why, entry_id))
    if as_json:
        print_json(_plain_event(event))
    else:
        print(f"credited key {key.id} ({key.name}) with {usd(micros)} USD: {event.id}")
    if key.limits.budget is None:
        print(
            f"the key has no budget, so this changes nothing until `oxlo keys limit {key.name} --budget` gives it one",
            file=sys.stderr,
        )


def print_events(since: float | None, id_or_name: str | None, as_json: bool) -> None:
    """Who changed what, oldest first; JSON is one object a line."""

    async def run(db: Database) -> list[audit.Event]:
        key_id = None if id_or_name is None else (await Keys(db).find(id_or_name)).id
        return [event async for event in audit.events(db, round((since or 0) * 1000), key_id)]

    events = with_ledger(run)
    if as_json:
        for event in events:
            print(json.dumps(_plain_event(event), ensure_ascii=False))
        return
    table = Table("time", "who", "action", "key", "USD", "why or what", box=None, pad_edge=False)
    table.columns[-1].overflow = "fold"
    for event in events:
        amount = "" if event.amount_micros is None else usd(event.amount_micros)
        told = safe(_told(event))
        table.add_row(
            local(event.at_ms / 1000), safe(event.who), event.action, event.key_id or "", amount, told
        )
    print_table(table)


def _told(event: audit.Event) -> str:
    """Why, or what; of a price list only how much of it is new, because --json has it all."""
    if event.action == "prices_changed" and event.detail is not None:
        change = msgspec.json.decode(event.detail, type=audit.PriceChange)
        return (
            f"list {change.version}: {len(change.changed)} prices differ from list {change.before or 'none'}"
        )
    return event.why or event.detail or ""


def _plain_event(event: audit.Event) -> dict[str, object]:
    amount = event.amount_micros
    return {
        "id": event.id,
        "at": statement.iso(event.at_ms),
        "who": event.who,
        "action": event.action,
        "key_id": event.key_id,
        "entry_id": event.entry_id,
        "amount_usd": None if amount is None else usd(amount),
        "why": event.why,
        "detail": None if event.detail is None else json.loads(event.detail),
    }


# -- verify -----------------------------------------------------------------------------------------------------------


def print_verdict(as_json: bool) -> bool:
    """Check the ledger and print what disagrees; whether all is right."""
    verdict = with_ledger(verify)
    looked_at = f"{verdict.rows:,} rows, {verdict.sums:,} kept sums, {verdict.credits:,} credits"
    if as_json:
        faults = [{"id": fault.id, "what": fault.what} for fault in verdict.faults]
        counts = {"rows": verdict.rows, "sums": verdict.sums, "credits": verdict.credits}
        print_json({"right": not faults, **counts, "faults": faults})
    elif verdict.faults:
        print_pairs(*((fault.id, fault.what) for fault in verdict.faults))
        print(f"{len(verdict.faults)} faults in {looked_at}", file=sys.stderr)
    else:
        print(f"all right: {looked_at}")
    return not verdict.faults


# -- compare ----------------------------------------------------------------------------------------------------------


def print_comparison(bounds: Bounds, as_json: bool) -> None:
    """What the settled rows of a period would have cost elsewhere."""
    settings = load()
    catalogue = Catalogue.load(
        settings.user_models_toml, installed={}, default_price_usd=settings.default_price_usd
    )
    found = with_ledger(lambda db: compare(db, catalogue, Period(*bounds)))
    if as_json:
        print_json(_plain_comparison(found))
        return
    print(f"{found.requests:,} settled requests, {found.flat_usd:.6f} USD at the flat prices here")
    if not found.requests:
        return
    print_table(_offers_table(found.offers))
    print()
    print_table(_quotes_table(found.offers))
    print()
    print_table(_plans_table(found))
    for one in found.unpriced:
        print(f"no provider's price is known for {one.model} ({one.requests:,} requests): left out above")
    print(
        "~ price of the nearest model that the provider has. ? price from memory, not from a source at hand. Prompt\n"
        "tokens are priced in full, without discounts for cached ones; failed requests are priced nowhere."
    )


def _offers_table(offers: Sequence[Offer]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("by the token at")
    for heading in ("requests", "would cost USD", "flat USD"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for offer in offers:
        marked = f"{'~' if offer.nearest else ''}{offer.usd:.6f}"
        table.add_row(offer.provider, f"{offer.requests:,}", marked, f"{offer.flat_usd:.6f}", offer.verdict)
    return table


def _quotes_table(offers: Sequence[Offer]) -> Table:
    table = Table("model", "provider", "priced as", "USD", "price", "of", "source", box=None, pad_edge=False)
    for quote in sorted(
        (quote for offer in offers for quote in offer.quotes), key=lambda quote: quote.traffic.model
    ):
        price = quote.price
        table.add_row(
            safe(quote.traffic.model),
            price.provider,
            f"{'~' if quote.nearest else ''}{safe(price.model)}",
            f"{quote.usd:.6f}",
            f"{_price(quote)}{'' if price.status == 'confirmed' else ' ?'}",
            price.date,
            safe(price.source),
        )
    return table


def _price(quote: Quote) -> str:
    price = quote.price
    if price.per_image is not None:
        return f"{price.per_image} an image"
    if price.per_audio_minute is not None:
        return f"{price.per_audio_minute} a minute"
    return f"{price.input_per_mtok} in, {price.output_per_mtok or 0} out a million"


def _plans_table(found: Comparison) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("hosted flat plan")
    for heading in ("USD a month", "months", "USD"):
        table.add_column(heading, justify="right")
    table.add_column("does the traffic fit?")
    for plan in found.plans:
        table.add_row(plan.plan, str(plan.usd_a_month), str(plan.months), str(plan.usd), _fits(plan))
    table.caption = f"plans of {found.plans_date}: {found.plans_source}"
    table.caption_justify = "left"
    return table


def _fits(plan: PlanOffer) -> str:
    limits = f"{plan.daily:,} a day, {plan.rate} a minute"
    if plan.fits:
        return f"yes ({limits})"
    return f"no ({limits}): over it on {plan.days_over} of {plan.days} days, in {plan.minutes_over} minutes"


def _plain_comparison(found: Comparison) -> dict[str, object]:
    return {
        "requests": found.requests,
        "flat_usd": str(found.flat_usd),
        "providers": [
            {
                "provider": offer.provider,
                "requests": offer.requests,
                "usd": str(offer.usd),
                "flat_usd": str(offer.flat_usd),
                "nearest": offer.nearest,
                "verdict": offer.verdict,
                "models": [_plain_quote(quote) for quote in offer.quotes],
            }
            for offer in found.offers
        ],
        "plans": [
            {**vars(plan), "usd_a_month": str(plan.usd_a_month), "usd": str(plan.usd), "fits": plan.fits}
            for plan in found.plans
        ],
        "plans_source": found.plans_source,
        "plans_date": found.plans_date,
        "unpriced": [{"model": one.model, "requests": one.requests} for one in found.unpriced],
    }


def _plain_quote(quote: Quote) -> dict[str, object]:
    traffic, price = quote.traffic, quote.price
    return {
        "model": traffic.model,
        "requests": traffic.requests,
        "prompt_tokens": traffic.prompt_tokens,
        "completion_tokens": traffic.completion_tokens,
        "priced_as": price.model,
        "match": price.match,
        "price": _price(quote),
        "status": price.status,
        "date": price.date,
        "source": price.source,
        "usd": str(quote.usd),
        "flat_usd": usd(traffic.flat_micros),
    }
