"""`oxlo keys`: make, list, show and revoke API keys; in force at once, also for a server that is running."""

from typing import Annotated, Literal

import typer

app = typer.Typer(help="Make, list, show and revoke API keys.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WhichKey = Annotated[str, typer.Argument(metavar="KEY", help="A key's id (k_…) or name.", show_default=False)]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who or what will use it; free once its key is revoked.")],
    role: Annotated[
        Literal["user", "admin"], typer.Option(help="admin also sees metrics and everybody's usage.")
    ] = "user",
    as_json: AsJson = False,
) -> None:
    """Make a key and print it: this once, because only a hash of it is kept.

    Example:  oxlo keys create laptop --role user
    """
    from oxlo_local.cli import accounts

    accounts.create_key(name, role, as_json)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List all keys ever made, revoked ones too.

    Example:  oxlo keys list --json
    """
    from oxlo_local.cli import accounts

    accounts.list_keys(as_json)


@app.command()
def show(key: WhichKey, as_json: AsJson = False) -> None:
    """Show one key, and what has been spent with it.

    Example:  oxlo keys show laptop
    """
    from oxlo_local.cli import accounts

    accounts.show_key(key, as_json)


@app.command()
def revoke(key: WhichKey, as_json: AsJson = False) -> None:
    """Refuse a key from its next request on, also at a running server. It cannot be undone.

    Example:  oxlo keys revoke laptop
    """
    from oxlo_local.cli import accounts

    accounts.revoke_key(key, as_json)
