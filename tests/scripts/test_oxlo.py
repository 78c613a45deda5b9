"""scripts/oxlo in a checkout of its own: without a Python, with a complete environment, with one that does not fit.

The real installation takes minutes and the network, so the environment here is a small one: a Python that only tells
what it was asked for, and pip pointed at an index that does not exist.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = ("scripts/oxlo", "scripts/environment.sh", "scripts/install.py", "pyproject.toml", "constraints.txt")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What scripts/oxlo needs of a checkout."""
    root = tmp_path / "a checkout"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    return root


def tools(folder: Path, *names: str) -> str:
    """A PATH with a few programs and nothing else."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found is not None, f"this machine has no {name}"
        (folder / name).symlink_to(found)
    return str(folder)


SMALL = ("sh", "cat", "cksum", "dirname", "readlink", "tr")


def run(checkout: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [str(checkout / "scripts" / "oxlo"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environ, stdin=subprocess.DEVNULL)


def finish(checkout: Path, extras: str) -> None:
    """Make an environment that looks installed: its oxlo echoes, its stamp is the one that the script computes."""
    program = checkout / ".venv" / "bin" / "oxlo"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "oxlo got: $*"\n')
    program.chmod(0o755)
    (program.parent / "python").symlink_to(shutil.which("sh") or "/bin/sh")
    script = ". scripts/environment.sh; root=$PWD; fingerprint"
    print_ = subprocess.run(
        ["sh", "-c", script], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout
    (checkout / ".venv" / "installed").write_text(f"{print_.strip()}\n{extras}\n")


def test_without_a_python_it_says_so_in_one_line(checkout: Path, tmp_path: Path) -> None:
    done = run(checkout, "serve", PATH=tools(tmp_path / "bin", *SMALL))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "no Python >= 3.11" in done.stderr
    assert not (checkout / ".venv").exists()


def test_an_old_python_does_not_count(checkout: Path, tmp_path: Path) -> None:
    path = tools(tmp_path / "bin", *SMALL)
    old = tmp_path / "bin" / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")  # what any Python before 3.11 answers to the question
    old.chmod(0o755)
    done = run(checkout, "serve", PATH=path)
    assert done.returncode == 1 and "no Python >= 3.11" in done.stderr


def test_a_complete_environment_is_used_at_once(checkout: Path, tmp_path: Path) -> None:
    finish(checkout, "image speech text")
    path = tools(tmp_path / "bin", *SMALL)  # no Python: nothing but the shell may run
    done = run(checkout, "serve", "two words", PATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "oxlo got: serve two words\n", "")
    begun = time.perf_counter()
    for _ in range(10):
        run(checkout, "-V", PATH=path)
    assert (time.perf_counter() - begun) / 10 < 0.1


def test_a_link_to_the_script_finds_the_checkout(checkout: Path, tmp_path: Path) -> None:
    finish(checkout, "image speech text")
    link = tmp_path / "oxlo"
    link.symlink_to(checkout / "scripts" / "oxlo")
    done = subprocess.run([str(link), "-V"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.stdout == "oxlo got: -V\n"


def test_stdin_may_be_closed(checkout: Path) -> None:
    finish(checkout, "image speech text")
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -V <&-', str(checkout / "scripts" / "oxlo")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "oxlo got: -V\n")


def test_what_was_left_out_once_stays_out(checkout: Path, tmp_path: Path) -> None:
    """OXLO_EXTRAS=text the first time, and nothing the second: no torch may come behind the user's back."""
    finish(checkout, "text")
    done = run(checkout, "serve", PATH=tools(tmp_path / "bin", *SMALL))
    assert (done.returncode, done.stdout, done.stderr) == (0, "oxlo got: serve\n", "")


@pytest.mark.parametrize("change", ["requirement", "extra", "place", "stamp", "python"])
def test_an_environment_that_does_not_fit_is_not_used(checkout: Path, tmp_path: Path, change: str) -> None:
    finish(checkout, "speech text" if change == "extra" else "image speech text")
    if change == "requirement":
        with (checkout / "constraints.txt").open("a") as file:
            file.write("# changed\n")
    elif change == "place":
        checkout = checkout.rename(tmp_path / "elsewhere")
    elif change != "extra":
        (checkout / ".venv" / {"stamp": "installed", "python": "bin/python"}[change]).unlink()
    done = run(checkout, "serve", PATH=tools(tmp_path / "bin", *SMALL), OXLO_EXTRAS="all")
    assert done.returncode == 1 and done.stdout == ""
    assert "no Python >= 3.11" in done.stderr  # it went on to the installer, which needs one


@pytest.mark.timeout(240)
def test_a_failed_installation_is_one_clear_line_and_leaves_no_stamp(checkout: Path) -> None:
    finish(checkout, "text")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "OXLO_"))}
    environ |= {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "1", "PIP_CONFIG_FILE": os.devnull}
    done = run(checkout, "serve", **environ, OXLO_EXTRAS="speech")
    assert done.returncode == 1 and done.stdout == ""
    assert "stopped: the package index cannot be reached" in done.stderr.splitlines()[-1]
    assert not (checkout / ".venv" / "installed").exists()
