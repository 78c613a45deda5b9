"""`oxlo bench`: what a running server does under load, as a table or as JSON."""

import asyncio
import sys
from typing import Annotated

import typer

from oxlo_local.config import load

GROUPS = ("clients", "shared", "mixed")


def bench(
    url: Annotated[
        str | None, typer.Argument(help="Server to load; without it, the one running here.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask; without it, the first chat model.")] = None,
    clients: Annotated[
        str, typer.Option(metavar="N,N,…", help="Clients at once, one load for each.")
    ] = "1,8,16,32",
    loads: Annotated[
        str, typer.Option(metavar="NAME,…", help="Which of clients, shared and mixed.")
    ] = ",".join(GROUPS),
    requests: Annotated[
        int, typer.Option(min=1, help="Requests a load and round; at least one a client.")
    ] = 16,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of a prompt, about.")] = 108,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    shared_tokens: Annotated[int, typer.Option(min=1, help="Length of the shared prefix, about.")] = 400,
    rounds: Annotated[int, typer.Option(min=1, help="How often each load runs, interleaved.")] = 3,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 = always the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the prompts' texts; another one for a second run.")] = 1,
    key: Annotated[str | None, typer.Option(envvar="OXLO_API_KEY", help="API key.", show_envvar=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every figure of every round, as JSON.")] = False,
) -> None:
    """Measure a server under load. Tokens/s, time to first token, time between tokens.

    Every request is metered like any other. All prompts differ; the figures say what the server counted.

    Example: oxlo bench http://127.0.0.1:8000 --clients 1,16 --max-tokens 32 --rounds 5
    """
    numbers = _numbers(clients)
    groups = _groups(loads)

    from oxlo_local import bench as generator
    from oxlo_local.cli import figures, terminal
    from oxlo_local.client import Client, locate

    address = locate(load().serve_file, url=url, key=key)
    with Client(address) as client:
        item = terminal.pick_model(client, model)
    plan = generator.Plan(
        model=item.id,
        context=item.context_length,
        clients=numbers,
        groups=groups,
        requests=requests,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        shared_tokens=shared_tokens,
        rounds=rounds,
        temperature=temperature,
        seed=seed,
    )
    with figures.progress() as tell:
        report = asyncio.run(generator.bench(address, plan, tell))
    if as_json:
        sys.stdout.write(figures.as_json(report))
    else:
        figures.show(report)
    if all(row.errors for row in report.rows):
        raise typer.Exit(1)


def _groups(text: str) -> tuple[str, ...]:
    groups = tuple(part.strip() for part in text.split(",") if part.strip())
    if not groups or not set(groups) <= set(GROUPS):
        raise typer.BadParameter(f"--loads takes a list of {', '.join(GROUPS)}, not {text!r}")
    return groups


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"--clients takes numbers such as 1,8,16, not {text!r}")
    return numbers
