"""A shell that runs real `oxlo` commands against a hub on loopback."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ROOT

OWN_MODELS = """
[models.tiny]
title = "A tiny model"
repo = "own/tiny-GGUF"
licence = "mit"
default_quant = "Q4_K_M"
context = 2048
files.Q4_K_M = { bytes = 4_000, status = "unconfirmed", files = ["tiny-Q4_K_M.gguf"] }
files.Q8_0 = { bytes = 9_000_000_000_000, status = "confirmed", files = ["tiny-Q8_0.gguf"] }
[aliases]
wee = "tiny"
"""


@dataclass
class Shell:
    """Runs `oxlo` commands in one OXLO_HOME against the stand-in."""

    home: Path
    environ: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "oxlo_local", *arguments],
            cwd=ROOT,
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, code: int = 0, **environ: str) -> tuple[str, str]:
        process = self.start(*arguments, **environ)
        out, err = process.communicate(timeout=50)
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
        return out, err


@contextmanager
def opened_shell(home: Path, cache: Path, hub_url: str) -> Iterator[Shell]:
    """A shell with a catalogue of its own; what it started and left running ends with the block."""
    (home / "config.toml").touch()
    (home / "models.toml").write_text(OWN_MODELS)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OXLO_", "HF_"))}
    shell = Shell(
        home,
        {
            **kept,
            "OXLO_HOME": str(home),
            "OXLO_CONFIG": str(home / "config.toml"),
            "HF_ENDPOINT": hub_url,
            "HF_HUB_CACHE": str(cache),
            "HF_TOKEN_PATH": str(cache / "no-token"),
        },
    )
    yield shell
    for process in shell.started:
        with process:
            process.kill()
