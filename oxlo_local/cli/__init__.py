"""The command line: one Typer app put together from the files beside this one, and `main`, the console script.

Importing this must stay nearly as cheap as importing typer: the files beside it import a heavy room (the server, the
store, an HTTP client) inside the command that needs it. The data goes to stdout, everything else to stderr; the exit
code is 0, 1 for a failure, 2 for wrong usage.
"""

import os
import sys
from typing import Annotated

import typer

from oxlo_local import __version__
from oxlo_local.cli import bench, chat, doctor, image, keys, ledger, models, ps, serve, transcribe
from oxlo_local.errors import OxloError

app = typer.Typer(
    name="oxlo",
    help="A self-hosted, OpenAI-compatible inference server with one flat price a request.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"oxlo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


# In the order of the help: serving, models, money, upkeep.
app.command()(serve.serve)
app.command()(ps.ps)
app.command()(chat.chat)
app.command()(transcribe.transcribe)
app.command()(image.image)
app.command()(bench.bench)
app.command()(models.pull)
app.command(name="list")(models.list_models)
app.command()(models.show)
app.command()(models.rm)
app.command()(models.plan)
app.add_typer(keys.app, name="keys")
app.add_typer(ledger.app, name="ledger")
app.command()(doctor.doctor)
app.command()(doctor.purge)
app.command()(doctor.version)


def main() -> None:
    """Run a command. An OxloError is one line on stderr and exit code 1; anything else is a bug and shows itself.

    A reader of the output that has had enough (`| head`) ends it without a word, with exit code 1 as click has it.
    """
    try:
        try:
            app(prog_name="oxlo")
        except OxloError as error:
            print(f"oxlo: {error.message}", file=sys.stderr)
            sys.exit(1)
        finally:
            sys.stdout.flush()  # the interpreter's own, at its end, would complain
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for that last flush
        sys.exit(1)
