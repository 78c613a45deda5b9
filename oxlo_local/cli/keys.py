"""`oxlo keys`: make, list, show, limit, rotate and revoke API keys; in force at once, also for a running server."""

import time
from typing import Annotated, Literal

import typer

from oxlo_local.errors import BadRequest
from oxlo_local.limits import UNLIMITED, Given, changed, read_span

app = typer.Typer(help="Make, list, show, limit, rotate and revoke API keys.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WhichKey = Annotated[str, typer.Argument(metavar="KEY", help="A key's id (k_…) or name.", show_default=False)]


def _option(metavar: str, help_text: str) -> object:
    return typer.Option(metavar=metavar, help=help_text, show_default=False)


Plan = Annotated[
    str | None, _option("PLAN", "Daily limit, rate and tier of a hosted plan: free, pro or premium.")
]
Models = Annotated[str | None, _option("GLOBS", "Models it may use: 'llama-*,whisper-*'.")]
Endpoints = Annotated[
    str | None, _option("GLOBS", "Endpoints it may use: chat,audio or chat/completions,images/*.")
]
Budget = Annotated[str | None, _option("USD/PER", "20usd/month; also /day, /week, /total.")]
Rate = Annotated[str | None, _option("N/min", "Requests in any 60 seconds: 30/min.")]
Daily = Annotated[str | None, _option("N", "Requests a day, midnight to midnight.")]
Concurrency = Annotated[str | None, _option("N", "Requests at once.")]
Expires = Annotated[str | None, _option("WHEN", "A span from now (90d, 12h) or a date or time.")]
Zone = Annotated[str | None, _option("ZONE", "Time zone of its days and months: Europe/Berlin [UTC].")]
Tier = Annotated[str | None, _option("TIER", "Its place when requests wait: priority, standard or batch.")]
Prices = Annotated[
    list[str] | None,
    _option("[MODEL[@ENDPOINT]=]USD", "Its own price of a unit: 'llama-*=0.002'. May be given again."),
]


@app.command()
def create(
    name: Annotated[
        str | None,
        typer.Argument(help="Who or what will use it; free once its key is revoked.", show_default=False),
    ] = None,
    name_: Annotated[str | None, typer.Option("--name", help="The same.", show_default=False)] = None,
    role: Annotated[
        Literal["user", "admin"], typer.Option(help="admin also sees metrics and everybody's usage.")
    ] = "user",
    plan: Plan = None,
    models: Models = None,
    endpoints: Endpoints = None,
    budget: Budget = None,
    rate: Rate = None,
    daily: Daily = None,
    concurrency: Concurrency = None,
    expires: Expires = None,
    zone: Zone = None,
    tier: Tier = None,
    price: Prices = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it: this once, because only a hash of it is kept. Without flags it has no limits.

    Example:  oxlo keys create ci --models 'llama-*' --budget 20usd/month --rate 30/min --expires 90d
    """
    named = [text for text in (name, name_) if text is not None]
    if len(named) != 1:
        raise typer.BadParameter("give one name: `oxlo keys create ci` or `oxlo keys create --name ci`")
    given = _given(price, plan, models, endpoints, budget, rate, daily, concurrency, expires, zone, tier)
    from oxlo_local.cli import accounts

    accounts.create_key(named[0], role, given, as_json)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List all keys ever made, revoked ones too.

    Example:  oxlo keys list --json
    """
    from oxlo_local.cli import accounts

    accounts.list_keys(as_json)


@app.command()
def show(key: WhichKey, as_json: AsJson = False) -> None:
    """Show one key: its limits, what is left of them, and what has been spent with it.

    Example:  oxlo keys show laptop
    """
    from oxlo_local.cli import accounts

    accounts.show_key(key, as_json)


@app.command()
def limit(
    key: WhichKey,
    plan: Plan = None,
    models: Models = None,
    endpoints: Endpoints = None,
    budget: Budget = None,
    rate: Rate = None,
    daily: Daily = None,
    concurrency: Concurrency = None,
    expires: Expires = None,
    zone: Zone = None,
    tier: Tier = None,
    price: Prices = None,
    as_json: AsJson = False,
) -> None:
    """Change what a key may do, from its next request on; `none` takes a limit away, the others stay.

    Example:  oxlo keys limit ci --budget 50usd/month --rate none
    """
    given = _given(price, plan, models, endpoints, budget, rate, daily, concurrency, expires, zone, tier)
    if given == Given():
        raise typer.BadParameter("say what to change, such as --budget 50usd/month")
    from oxlo_local.cli import accounts

    accounts.limit_key(key, given, as_json)


@app.command()
def rotate(
    key: WhichKey,
    grace: Annotated[
        str, typer.Option(metavar="SPAN", help="How long its old secrets stay valid; 0s ends them now.")
    ] = "24h",
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret and print it: this once. Name, limits and rows stay.

    Example:  oxlo keys rotate ci --grace 1h
    """
    try:
        grace_ms = read_span(grace)
    except BadRequest as error:
        raise typer.BadParameter(error.message, param_hint="--grace") from None
    from oxlo_local.cli import accounts

    accounts.rotate_key(key, grace_ms, as_json)


@app.command()
def revoke(key: WhichKey, as_json: AsJson = False) -> None:
    """Refuse a key from its next request on, also at a running server. It cannot be undone.

    Example:  oxlo keys revoke laptop
    """
    from oxlo_local.cli import accounts

    accounts.revoke_key(key, as_json)


def _given(prices: list[str] | None, *limits: str | None) -> Given:
    """The flags, once they can be read: what cannot is wrong usage, whichever key it is for."""
    given = Given(tuple(prices or ()), *limits)
    try:
        changed(UNLIMITED, given, int(time.time() * 1000))
    except BadRequest as error:
        raise typer.BadParameter(error.message) from None
    return given
