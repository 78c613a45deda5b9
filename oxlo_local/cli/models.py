"""`oxlo pull`, `list`, `show`, `rm` and `plan`: the models that are known, that are here, that would fit.

The work is in `shelf.py` and `pulling.py`, which are imported when one of the commands runs.
"""

from typing import Annotated, Literal

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Everything that is known, as JSON.")]


def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME[:QUANT] | hf:OWNER/REPO[:QUANT] | PATH", show_default=False)
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what happens, one JSON object a line.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Fetch a model, or note a local GGUF file. Files go into the hub's shared cache.

    An interrupted pull goes on where it stopped; every file is checked against the hub's hash. Without QUANT: the
    model's usual build if it fits this machine, else the largest that does.

    Example: oxlo pull mistral-7b

    Example: oxlo pull hf:bartowski/Mistral-7B-Instruct-v0.3-GGUF:Q5_K_M
    """
    from oxlo_local.cli import pulling

    pulling.pull(name, as_json=as_json, quiet=quiet)


def list_models(
    everything: Annotated[bool, typer.Option("--all", help="Every model that oxlo knows by name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same keys as /v1/models, as JSON.")] = False,
) -> None:
    """List the models that are here: embedded, pulled or attached.

    Example: oxlo list --all
    """
    from oxlo_local.cli import shelf

    shelf.list_models(everything=everything, as_json=as_json)


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)], as_json: AsJson = False
) -> None:
    """Show everything that is known of a model. Where it comes from, its builds, prices, and files here.

    Example: oxlo show mistral-7b
    """
    from oxlo_local.cli import shelf

    shelf.show(name, as_json=as_json)


def rm(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Also while a server runs it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The bytes freed, as JSON.")] = False,
) -> None:
    """Delete a pulled model. Only files that were fetched for it and that nothing else uses go.

    Of a local file only the note is removed. Also deletes what an interrupted pull left.

    Example: oxlo rm mistral-7b
    """
    from oxlo_local.cli import shelf

    shelf.rm(name, force=force, as_json=as_json)


def plan(
    name: Annotated[str, typer.Argument(metavar="NAME[:QUANT] | PATH", show_default=False)],
    ctx: Annotated[int | None, typer.Option(min=1, help="Context of each sequence, in tokens.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, max=256, help="Sequences at once.")] = None,
    kv_type: Annotated[
        Literal["f16", "q8_0"] | None, typer.Option(help="Number format of the KV cache.")
    ] = None,
    gpu_layers: Annotated[int | None, typer.Option(min=-1, help="Layers on the GPU; -1 = all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a model fits this machine. How it would run, and the arithmetic; it need not be here.

    Exit code 1 when it does not fit.

    Example: oxlo plan qwen-3-32b:Q8_0 --ctx 16384 --parallel 8
    """
    from oxlo_local.calls import TextOptions
    from oxlo_local.cli import shelf

    options = TextOptions(ctx=ctx, parallel=parallel, kv_type=kv_type, gpu_layers=gpu_layers)
    shelf.plan(name, options, as_json=as_json)
