"""The generated parts of README.md: each is a function that prints what the program itself knows.

`scripts/readme` writes them between their marks; tests/test_docs.py fails when the README says something else.
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import typer.main

from oxlo_local.api.app import ROUTES
from oxlo_local.catalogue import LORA, SERVED_KINDS, Catalogue, Model
from oxlo_local.cli import app
from oxlo_local.config import SETTINGS
from oxlo_local.errors import Cancelled, OxloError, every_error
from oxlo_local.protocol.fields import (
    CHAT,
    COMPLETIONS,
    DETOKENIZE,
    EMBEDDINGS,
    RERANK,
    TOKENIZE,
    TRANSCRIPTIONS,
    TRANSLATIONS,
    Field,
)
from oxlo_local.protocol.images.fields import EDITS, GENERATIONS, VARIATIONS
from oxlo_local.protocol.messages.fields import MESSAGES

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"

# The rooms, in the order in which a newcomer would walk through them.
MAP: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "A request's way in",
        ("server.py", "api/", "uploads.py", "outputs.py", "protocol/", "inference.py", "calls/", "errors.py"),
    ),
    (
        "Models and their processes",
        (
            "lineup.py",
            "catalogue.py",
            "entry.py",
            "fit.py",
            "hardware.py",
            "gguf.py",
            "ct2.py",
            "diffuser.py",
            "mmproj.py",
            "workers/",
        ),
    ),
    ("Engines, which only workers import", ("engines/",)),
    (
        "Money",
        (
            "keys.py",
            "pepper.py",
            "limits.py",
            "allowance.py",
            "ledger.py",
            "statement.py",
            "compare.py",
            "audit.py",
            "verify.py",
            "claims.py",
            "replays.py",
            "instance.py",
            "db.py",
            "wal.py",
            "ids.py",
            "migrations.py",
        ),
    ),
    ("Fetching models", ("pull.py", "hub.py", "store.py")),
    ("For all", ("config.py", "log.py", "metrics.py")),
    (
        "Commands",
        (
            "cli/",
            "client.py",
            "launch.py",
            "transcript.py",
            "hearing.py",
            "drawing.py",
            "bench.py",
            "stream_connection.py",
        ),
    ),
    ("For tests", ("random_model.py", "random_eye.py", "random_whisper.py", "random_diffuser.py")),
)


def rows(head: tuple[str, ...], lines: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table."""
    drawn = [head, tuple("---" for _ in head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in drawn)


def first_sentence(text: str | None) -> str:
    """The first line of a docstring, whole."""
    paragraph = (text or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split())


def commands() -> str:
    """Every command, what it does, and its example."""

    def walk(command: typer.core.TyperCommand, words: str) -> Iterator[tuple[str, str, str]]:
        below = getattr(command, "commands", None)
        if below is not None:
            for name, child in below.items():
                yield from walk(child, f"{words} {name}")
            return
        text = inspect.cleandoc(command.help or "")
        example = re.search(r"Example:\s+(oxlo .*?)(?:\s{2,}|$)", text, re.MULTILINE)
        yield f"`{words}`", first_sentence(text), f"`{example[1]}`" if example else ""

    return rows(("command", "what it does", "example"), walk(typer.main.get_command(app), "oxlo"))


def settings() -> str:
    """Every setting: its name in config.toml, its kind, its default."""

    def line(name: str, kind: str, default: object, text: str) -> tuple[str, ...]:
        shown = "" if default is None or default == [] else f"`{str(default).lower()}`"
        return f"`{name}`", kind, shown, text

    found = (
        line(each.name, each.kind, each.default, each.help) for each in SETTINGS if each.name != "config"
    )
    return rows(("name", "kind", "default", "what it is"), found)


def endpoints() -> str:
    """Every route, who may ask, what it answers."""
    who = {"anyone": "anyone", "user": "any key", "admin": "an admin's key"}
    return rows(
        ("route", "who", "what"),
        (
            (
                f"`{each.method} {each.path.replace(':path', '')}`",
                who[each.who],
                first_sentence(each.answer.__doc__),
            )
            for each in ROUTES
        ),
    )


def fields(table: tuple[Field, ...]) -> str:
    """Every request field and what becomes of it."""
    return rows(("field", "fate", "note"), ((f"`{each.name}`", each.fate, each.about) for each in table))


def errors() -> str:
    """Every error code that an answer can carry."""

    def lines() -> Iterator[tuple[str, ...]]:
        for error in sorted(every_error(), key=lambda error: error.status):
            if error is OxloError or error is Cancelled:
                continue
            retry = "yes" if error.retryable else "no"
            yield (
                str(error.status),
                f"`{error.code}`",
                f"`{error.type}`",
                retry,
                first_sentence(error.__doc__),
            )
        yield (
            "500",
            f"`{OxloError.code}`",
            f"`{OxloError.type}`",
            "yes",
            "A fault of ours; the request was refunded.",
        )

    return rows(("status", "code", "type", "retry?", "when"), iter(sorted(lines(), key=lambda line: line[0])))


def models() -> str:
    """Every model of the catalogue, its price, and how it is had."""

    def how(model: Model) -> str:
        if model.file is not None:
            return "embedded"
        if model.refused is not None:
            return "cannot be had" + (f"; nearest: `{model.instead}`" if model.instead else "")
        aside = "pulled along by image models" if model.kind == LORA else "not served yet"
        return f"`oxlo pull {model.id}`" + ("" if model.kind in SERVED_KINDS else f" ({aside})")

    catalogue = Catalogue.load(None, installed={})
    return rows(
        ("model", "kind", "USD a request", "context", "licence", "how"),
        (
            (
                f"`{model.id}`",
                model.kind,
                f"{model.price_micros / 1e6:.4f}" if model.price_micros else "",
                f"{model.context:,}" if model.context else "",
                model.licence or "",
                how(model),
            )
            for model in sorted(catalogue.models.values(), key=lambda model: (model.kind, model.id))
        ),
    )


def house() -> str:
    """Every room, by the first line of its docstring. Raises LookupError for one that has no place in MAP."""
    package = ROOT / "oxlo_local"
    files = {path.relative_to(package).as_posix(): path for path in sorted(package.rglob("*.py"))}
    wanted = {name for name in files if not name.endswith("__init__.py") and name != "__main__.py"}
    lines = ["```"]
    for title, places in MAP:
        lines += ["", title] if len(lines) > 1 else [title]
        for place in places:
            for name in sorted(
                name for name in wanted if name == place or (place[-1] == "/" and name.startswith(place))
            ):
                wanted.discard(name)
                text = ast.get_docstring(ast.parse(files[name].read_text("utf-8"))) or ""
                lines.append(f"  {name:<27} {text.splitlines()[0]}")
    if wanted:
        raise LookupError(f"scripts/readme.py: MAP has no place for {', '.join(sorted(wanted))}")
    return "\n".join([*lines, "```"])


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "settings": settings,
    "endpoints": endpoints,
    "chat fields": lambda: fields(CHAT),
    "completion fields": lambda: fields(COMPLETIONS),
    "messages fields": lambda: fields(MESSAGES),
    "embedding fields": lambda: fields(EMBEDDINGS),
    "transcription fields": lambda: fields(TRANSCRIPTIONS),
    "translation fields": lambda: fields(TRANSLATIONS),
    "image generation fields": lambda: fields(GENERATIONS),
    "image edit fields": lambda: fields(EDITS),
    "image variation fields": lambda: fields(VARIATIONS),
    "rerank fields": lambda: fields(RERANK),
    "tokenize fields": lambda: fields(TOKENIZE),
    "detokenize fields": lambda: fields(DETOKENIZE),
    "errors": errors,
    "models": models,
    "map": house,
}


def render(text: str) -> str:
    """The README with every generated part as it should be. Raises LookupError when a mark is missing."""
    for name, part in PARTS.items():
        begin, end = f"<!-- begin {name} (scripts/readme writes this) -->", f"<!-- end {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise LookupError(f"README.md needs {begin} and {end}, once")
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n\n{part()}\n\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    before = README.read_text("utf-8")
    after = render(before)
    README.write_text(after, "utf-8")
    print("README.md was up to date" if after == before else "README.md is written anew", file=sys.stderr)
