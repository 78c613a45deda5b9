"""`oxlo transcribe`: what is said in files, as text, subtitles or JSON."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from oxlo_local.config import load

Format = Literal["text", "srt", "vtt", "json", "verbose_json"]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="A folder for one transcript a file; for one file, also a file."),
]
Words = Annotated[
    bool, typer.Option("--words", help="When each word was said: a cue a word, or a list in verbose_json.")
]


def transcribe(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Audio or video files, patterns, or - for standard input."),
    ],
    form: Annotated[Format, typer.Option("--format", "-f", help="What to write.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    output: Output = None,
    language: Annotated[
        str | None, typer.Option(metavar="CODE", help="What is spoken, such as en; else it is detected.")
    ] = None,
    translate: Annotated[bool, typer.Option("--translate", help="Into English.")] = False,
    words: Words = False,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Names, spelling and style to expect.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Catalogue id or alias.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="Files at once.")] = 4,
    url: Annotated[str | None, typer.Option(help="Ask this server instead of the one running here.")] = None,
    key: Annotated[str | None, typer.Option(envvar="OXLO_API_KEY", help="API key.", show_envvar=True)] = None,
) -> None:
    """Write down what is said in files. The running server does it, or one that is started for it.

    The transcripts of several files go to a folder, or as text to standard output, under their names. The bars are on
    stderr. Exit code 1 when a file has failed; the others are transcribed all the same. Ctrl-C stops all, with 130; the
    transcripts that are written by then are whole.

    Example: oxlo transcribe meeting.mp3 --format srt -o meeting.srt
    """
    from oxlo_local.cli import dictation
    from oxlo_local.cli.connect import connected, model_here, pick_model

    form = "json" if as_json else form
    if words and form in ("text", "json"):
        raise typer.BadParameter(f"--words has no place in {form}; take --format srt, vtt or verbose_json")
    sources = dictation.sources_of(files)
    places = dictation.places_of(sources, output, form)
    if len(sources) > 1 and output is None and form != "text":
        raise typer.BadParameter(f"several files as {form} need a folder: -o FOLDER")
    settings = load()
    name = model or (None if url else model_here(settings, "speech"))
    with connected(settings, name, url=url, key=key) as client:
        asked = dictation.Asked(
            model=pick_model(client, model, "speech").id,
            form=form,
            language=language,
            translate=translate,
            words=words,
            prompt=prompt,
        )
        try:
            failed = dictation.transcribe_all(client.address, asked, sources, places, jobs)
        except KeyboardInterrupt:
            print("oxlo: stopped", file=sys.stderr)
            raise typer.Exit(130) from None
    for line in failed:
        print(f"oxlo: {line}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)
