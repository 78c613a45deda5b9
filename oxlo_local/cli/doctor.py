"""`oxlo doctor`, `version` and `purge`: is all well, what is installed, and what may be forgotten."""

import platform
import shutil
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct

from oxlo_local import __version__
from oxlo_local.config import load

AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


def doctor(
    online: Annotated[
        bool, typer.Option("--online", help="Ask the model hub too, over the network.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine and this installation.

    Starts the embedded model in a worker, as a real test of the text engine. Exit code 1 when something fails.

    Example: oxlo doctor --online
    """
    from oxlo_local.cli.checks import findings

    settings = load()
    found = []
    for finding in findings(settings, online=online):
        found.append(finding)
        if not as_json:
            print(f"{MARKS[finding.level]}  {finding.check}: {finding.found}")
            if finding.level != "ok":
                print(f"      -> {finding.advice}")
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    if any(finding.level == "fail" for finding in found):
        raise typer.Exit(1)


class Versions(Struct, frozen=True):
    """What runs here; an engine that is not installed is null."""

    oxlo: str
    python: str
    platform: str
    engines: dict[str, str | None]


def version(as_json: AsJson = False) -> None:
    """Print the versions of oxlo and its engines.

    Example: oxlo version --json
    """
    from oxlo_local.cli.checks import version_of

    engines = {
        name: version_of(name) for name in ("llama-cpp-python", "faster-whisper", "diffusers", "torch")
    }
    found = Versions(__version__, platform.python_version(), platform.platform(), engines)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    print(f"oxlo {found.oxlo}, Python {found.python}, {found.platform}")
    for name, number in found.engines.items():
        print(f"{name} {number or 'not installed'}")


class Purged(Struct, frozen=True):
    """What `oxlo purge` removed, or would remove; `bytes` in all."""

    paths: list[str]
    bytes: int
    removed: bool


def purge(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what may hold users' words.

    That is: outputs, uploads, replays, and the chat history of the terminal. The ledger, the keys and the models
    stay: none of them holds prompts or answers.

    Example: oxlo purge --dry-run
    """
    paths = [path for path in load().content_paths if path.exists()]
    size = sum(_size(path) for path in paths)
    if paths and not dry_run and not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("there is nobody to ask: give --yes, or --dry-run to see what would go")
        for path in paths:
            print(path, file=sys.stderr)
        typer.confirm(f"Remove {len(paths)} of these, {size / 1e6:.1f} MB?", abort=True, err=True)
    if not dry_run:
        for path in paths:
            _remove(path)
    if as_json:
        print(
            msgspec.json.format(
                msgspec.json.encode(Purged(list(map(str, paths)), size, not dry_run)), indent=2
            ).decode()
        )
        return
    for path in paths:
        print(path)
    done = "would be removed" if dry_run else "removed"
    print(
        f"{len(paths)} {done}, {size / 1e6:.1f} MB" if paths else "there is nothing to remove",
        file=sys.stderr,
    )


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
