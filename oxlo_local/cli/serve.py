"""`oxlo serve`: every setting as a flag, then the server.

The flags are made from the list of settings, so that a new setting is a flag at once and its help is written once.
"""

import inspect
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from oxlo_local.config import SETTINGS, Setting, load, plain


def serve(models: list[str], **flags: object) -> None:
    """Start the server. Without MODEL: what is pulled and marked `preload`, else the embedded `oxlo-demo`.

    MODEL is a catalogue id, an alias, or a path to a local GGUF file; each one named here is loaded and warmed
    before /readyz turns 200. Without MODEL the embedded demos of other kinds start behind what is served.

    Example:  oxlo serve mistral-7b --port 8080 --parallel 16
    """
    settings = load(flags)
    from oxlo_local.server import run  # the only command that needs the HTTP side

    raise typer.Exit(run(settings, models))


def _converter(setting: Setting) -> Callable[[str], object]:
    def convert(text: str) -> object:
        try:
            return setting.convert(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return convert


def _described(setting: Setting) -> str:
    if setting.default is None or setting.default == []:
        return setting.help
    shown = str(setting.default)
    return f"{setting.help} ({shown.lower() if isinstance(setting.default, bool) else shown})"


def _option(setting: Setting) -> Any:
    """The annotation of one flag; what is None was not given, so that the other sources are asked."""
    base, _ = plain(setting.type)
    if base is bool:
        names = f"{setting.flag}/--no-{setting.flag[2:]}"
        return Annotated[bool | None, typer.Option(names, help=_described(setting), show_default=False)]
    metavar = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH", Decimal: "USD"}.get(base)
    option = typer.Option(
        setting.flag,
        help=_described(setting),
        metavar=metavar or ("TEXT,…" if get_origin(base) is list else "|".join(get_args(base))),
        show_default=False,
        parser=_converter(setting),
    )
    return Annotated[str | None, option]


def _parameters() -> Iterator[inspect.Parameter]:
    """The signature that typer reads: MODEL…, then one option for each setting."""
    help_text = "Catalogue ids, aliases, or paths to local GGUF files."
    argument = Annotated[list[str], typer.Argument(metavar="MODEL", help=help_text, show_default=False)]
    yield inspect.Parameter(
        "models", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=[], annotation=argument
    )
    for setting in SETTINGS:
        yield inspect.Parameter(
            setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(setting)
        )


serve.__signature__ = inspect.Signature(list(_parameters()))  # type: ignore[attr-defined]
