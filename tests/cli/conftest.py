"""A real server for the commands, and the commands as their users run them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import hub as stand_in
from tests.cli.shell import Shell, opened_shell
from tests.conftest import ROOT, RunningServer
from tests.hub import Repository, gguf_bytes, running_hub
from tests.random_server import random_server

Oxlo = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real server over a model of random weights, for a whole module."""
    with random_server(tmp_path_factory.mktemp("nonsense")) as running:
        yield running


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a command whose data folder is `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OXLO_")}
    return {
        **kept,
        "OXLO_HOME": str(home),
        "OXLO_CONFIG": str(home / "config.toml"),
        "HF_HUB_OFFLINE": "1",
        **more,
    }


@pytest.fixture
def oxlo() -> Oxlo:
    """Runs a command to its end: `oxlo(home, "chat", "--once", "Hello", stdin="…")`."""

    def run(home: Path, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "oxlo_local", *arguments],
            cwd=ROOT,
            env=environment(home),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=50,
        )

    return run


@pytest.fixture
def site() -> Iterator[stand_in.Hub]:
    """A hub with one small model."""
    with running_hub() as site:
        site.repositories["own/tiny-GGUF"] = Repository({"tiny-Q4_K_M.gguf": gguf_bytes(4000)})
        yield site


@pytest.fixture
def shell(home: Path, tmp_path: Path, site: stand_in.Hub) -> Iterator[Shell]:
    """Runs commands against that hub: `shell.run("pull", "tiny", code=1, HF_TOKEN="…")`."""
    with opened_shell(home, tmp_path / "cache", site.url) as shell:
        yield shell
