"""The command line as a whole: exit codes, where things are printed, and help that has an example."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from oxlo_local import __version__
from oxlo_local.cli import app


def commands() -> list[list[str]]:
    """Every command as the words that reach it."""
    found: list[list[str]] = []

    def walk(command: object, words: list[str]) -> None:
        below = getattr(command, "commands", None)
        if below is None:
            found.append(words)
        for name, child in (below or {}).items():
            walk(child, [*words, name])

    walk(typer.main.get_command(app), [])
    return found


def oxlo(*arguments: str, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "oxlo_local", *arguments],
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "OXLO_HOME": str(home), **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_json_and_help_with_an_example_that_names_it(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.output or words == ["serve"], "serve prints no data"
    assert "Example" in result.output and f"oxlo {' '.join(words)}" in result.output.split("Example", 1)[1]


def test_the_list_of_commands_is_cut_nowhere() -> None:
    result = CliRunner().invoke(app, ["--help"], terminal_width=80)
    listed = result.output.partition("Commands:")[2]
    assert "chat" in listed and "..." not in listed


def test_the_version_is_one_line_on_stdout(home: Path) -> None:
    done = oxlo("-V", home=home)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"oxlo {__version__}\n", "")


def test_no_arguments_show_the_commands(home: Path) -> None:
    done = oxlo(home=home)
    assert "serve" in done.stdout + done.stderr and "doctor" in done.stdout + done.stderr


def test_a_failure_is_one_line_on_stderr_and_exit_code_1(home: Path) -> None:
    done = oxlo("ps", home=home)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "oxlo: no server is running here; start one with `oxlo serve`, or name one with --url\n"
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["version"], ["--help"], ["list"], ["list", "--json"], ["doctor"]])
def test_a_reader_that_has_had_enough_is_no_traceback(
    home: Path, arguments: list[str], unbuffered: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "oxlo_local", *arguments],
            env={"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONUNBUFFERED": unbuffered},
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_wrong_setting_is_a_failure_of_every_command(home: Path) -> None:
    done = oxlo("ps", home=home, OXLO_PROT="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "oxlo: unknown environment variable OXLO_PROT; did you mean OXLO_PORT?\n"


@pytest.mark.parametrize(
    "arguments", [["sevre"], ["serve", "--prot", "1"], ["ps", "extra"], ["doctor", "--jsn"]]
)
def test_wrong_usage_is_exit_code_2(home: Path, arguments: list[str]) -> None:
    done = oxlo(*arguments, home=home)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: oxlo" in done.stderr
