"""`oxlo chat`: talk to a model in the terminal, or ask one question from a script."""

import sys
from typing import Annotated

import typer

from oxlo_local.config import load


def chat(
    model: Annotated[str | None, typer.Argument(help="Catalogue id, alias, or path to a local file.")] = None,
    once: Annotated[
        str | None, typer.Option(metavar="QUESTION", help="Ask this, print the answer, and leave.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 = always the likeliest token.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same question with the same seed, the same answer.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Talk to this server instead of the one running here.")
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="OXLO_API_KEY", help="API key.", show_envvar=True)] = None,
    history: Annotated[
        bool,
        typer.Option("--history", help="Keep the questions in OXLO_HOME/chat_history (off: in memory only)."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --once or piped input: answer as JSON.")
    ] = False,
) -> None:
    """Talk to a model in the terminal. The running server answers, or one that is started for it.

    With --once, or with the question on standard input, only the answer goes to stdout.

    Example: oxlo chat mistral-7b --system "Answer in one sentence."
    """
    if once is not None:
        question: str | None = once
    else:
        question = None if sys.stdin.isatty() else sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    if question is not None and not question.strip():
        raise typer.BadParameter("there is no question: give one with --once or on standard input")
    if question is None and (as_json or not sys.stdout.isatty()):
        raise typer.BadParameter(
            "--json and a stdout that is no terminal need a question: give one with --once or on standard input"
        )

    from oxlo_local.cli import terminal
    from oxlo_local.cli.connect import connected
    from oxlo_local.transcript import Options, Transcript

    settings = load()
    with connected(settings, model, url=url, key=key) as client:
        name = terminal.pick_model(client, model).id
        transcript = Transcript(name, system, Options(temperature, max_tokens, seed))
        if question is None:
            session = terminal.prompt_session(settings.chat_history if history else None)
            terminal.Terminal(client, transcript, session).run()
        elif not terminal.ask_once(client, transcript.body(question), as_json=as_json):
            raise typer.Exit(1)
