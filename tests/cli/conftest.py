"""A real server for the commands, and the commands as their users run them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, RunningServer
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
            timeout=50,
        )

    return run
