"""`oxlo image`: images drawn from words, or from an image."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from oxlo_local.config import load

Format = Literal["png", "jpeg", "webp"]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="A file, a folder, or - for standard output; else a file named after the seed."
    ),
]
Count = Annotated[int, typer.Option("--count", "-n", min=1, max=10, help="How many.")]
Size = Annotated[
    str | None, typer.Option(metavar="WIDTHxHEIGHT", help="One of the sizes that the model lists.")
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="The same seed, the same image; the second of several has seed + 1.")
]
Steps = Annotated[int | None, typer.Option(min=1, max=150, help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option(min=0, max=30, help="How closely the prompt is followed.")]
Negative = Annotated[str | None, typer.Option(metavar="TEXT", help="What not to draw.")]
Source = Annotated[Path | None, typer.Option("--from", metavar="FILE", help="Start from this image.")]
Mask = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Draw only where this is transparent, or white where nothing is."),
]
Strength = Annotated[
    float | None, typer.Option(min=0, max=1, help="How much of the image given with --from is lost.")
]
Form = Annotated[
    Format | None, typer.Option("--format", "-f", help="Of the file; else by the name of the output, or png.")
]
Name = Annotated[str | None, typer.Option("--model", "-m", help="Catalogue id or alias.")]
Metadata = Annotated[bool, typer.Option(help="Write prompt and seed into the file.")]
Preview = Annotated[bool | None, typer.Option(help="Show the image here; by default where the terminal can.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print files, seeds and price as JSON.")]
Url = Annotated[str | None, typer.Option(help="Ask this server instead of the one running here.")]
Key = Annotated[str | None, typer.Option(envvar="OXLO_API_KEY", help="API key.", show_envvar=True)]


def image(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.")],
    output: Output = None,
    count: Count = 1,
    size: Size = None,
    seed: Seed = None,
    steps: Steps = None,
    guidance: Guidance = None,
    negative: Negative = None,
    source: Source = None,
    mask: Mask = None,
    strength: Strength = None,
    form: Form = None,
    model: Name = None,
    metadata: Metadata = True,
    preview: Preview = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Draw images. The running server does it, or one that is started for it.

    The names of the files go to stdout, bar and preview to stderr. Ctrl-C stops, with 130, and keeps what is complete.

    Example: oxlo image "a red circle" --seed 7 -o circle.png
    """
    from oxlo_local.cli import easel
    from oxlo_local.cli.connect import connected, model_here, pick_model

    wish = easel.Wish(prompt, count, size, seed, steps, guidance, negative, strength, metadata)
    easel.check(wish, source, mask, output, as_json=as_json)
    place = easel.place_of(output, count, form)
    files = easel.read(source), easel.read(mask)
    settings = load()
    name = model or (None if url else model_here(settings, "image"))
    with connected(settings, name, url=url, key=key) as client:
        body = wish.body(pick_model(client, model, "image").id, place, *files)
        try:
            easel.draw(client, body, place, preview=preview, as_json=as_json)
        except KeyboardInterrupt:
            print("oxlo: stopped", file=sys.stderr)
            raise typer.Exit(130) from None
