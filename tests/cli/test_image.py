"""`oxlo image` as its users run it: against a running server, and alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.api.painting import mask, opened, picture
from tests.cli.conftest import Oxlo, environment
from tests.conftest import ROOT, RunningServer, ledger_rows, until

pytest.importorskip("PIL", reason="the image engine is not installed")
pytestmark = pytest.mark.timeout(180)  # torch takes its time to be imported where others compute


def test_a_file_with_what_it_was_drawn_from(painter: RunningServer, oxlo: Oxlo, tmp_path: Path) -> None:
    path = tmp_path / "circle.png"
    fields = ("--seed", "7", "--steps", "2", "--preview", "-o", str(path))
    done = oxlo(painter.home, "image", "a red circle", *fields)
    assert (done.returncode, done.stdout) == (0, f"{path}\n"), done.stderr
    assert "a red circle" in done.stderr and "\x1b_G" not in done.stderr and "shows no images" in done.stderr
    image = opened(path.read_bytes())
    assert (image.size, image.info["prompt"], image.info["seed"]) == ((64, 64), "a red circle", "7")
    assert painter.rows()[-1]["steps"] == 2


def test_several_to_a_folder_as_json(painter: RunningServer, oxlo: Oxlo, tmp_path: Path) -> None:
    done = oxlo(
        painter.home, "image", "x", "-n", "2", "--seed", "3", "--format", "webp", "-o", str(tmp_path / "out"),
        "--no-metadata", "--json", "--size", "64x96",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [each["seed"] for each in told["images"]] == [3, 4] and told["model"] == "painter"
    assert told["entry"] == painter.rows()[-1]["id"] and told["price_usd"] == "0.0020"
    for each in told["images"]:
        assert Path(each["path"]).parent == tmp_path / "out" and each["size"] == "64x96"
        data = Path(each["path"]).read_bytes()
        assert (opened(data).format, opened(data).size) == ("WEBP", (64, 96))
        assert b"oxlo" not in data and b"painter" not in data


def test_an_image_is_drawn_again_under_a_mask_to_standard_output(
    painter: RunningServer, tmp_path: Path
) -> None:
    (tmp_path / "in.png").write_bytes(picture())
    (tmp_path / "hole.png").write_bytes(mask())
    files = ("--from", str(tmp_path / "in.png"), "--mask", str(tmp_path / "hole.png"))
    done = subprocess.run(
        [sys.executable, "-m", "oxlo_local", "image", "x", *files, "--strength", "0.9", "-o", "-"],
        cwd=ROOT,
        env=environment(painter.home),
        capture_output=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert opened(done.stdout).convert("RGB").getpixel((60, 32)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("x", "--size", "63x63"), 1, "64x64, 64x96"),
        (("x", "--model", "oxlo-demo"), 1, "not for image"),
        (("x", "--mask", "a.png"), 2, "--from"),
        (("x", "--from", __file__, "-o", "never.png"), 1, "image"),
    ],
)
def test_what_fails_says_why(
    painter: RunningServer, oxlo: Oxlo, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = oxlo(painter.home, "image", *arguments)
    assert done.returncode == code and words in " ".join(done.stderr.split()), done.stderr
    assert done.stdout == "" and not (ROOT / "never.png").exists()


def test_images_are_compared_by_the_image(painter: RunningServer, oxlo: Oxlo, tmp_path: Path) -> None:
    done = oxlo(painter.home, "image", "x", "-n", "2", "--steps", "1", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    told = json.loads(oxlo(painter.home, "ledger", "compare", "--json").stdout)
    images = sum(row["images"] for row in painter.rows() if row["status"] == "settled")
    (offer,) = told["providers"]
    assert offer["provider"] == "bfl" and float(offer["usd"]) == pytest.approx(0.014 * images)
    row = json.loads(oxlo(painter.home, "ledger", "show", painter.rows()[-1]["id"], "--json").stdout)
    assert (row["units"], row["images"], row["steps"], row["size"]) == (2, 2, 1, "64x64") and row[
        "draw_seconds"
    ] > 0
    assert oxlo(painter.home, "ledger", "verify").returncode == 0


@pytest.mark.slow
def test_alone_and_with_nothing_pulled_the_demo_draws_and_leaves_a_row(
    oxlo: Oxlo, home: Path, tmp_path: Path
) -> None:
    (home / "config.toml").touch()
    done = oxlo(home, "image", "a red circle", "-o", str(tmp_path / "a.jpg"))
    assert done.returncode == 0, done.stderr
    rows = ledger_rows(home)
    assert [(row["model"], row["status"], row["images"]) for row in rows] == [
        ("oxlo-demo-image", "settled", 1)
    ]
    assert opened((tmp_path / "a.jpg").read_bytes()).format == "JPEG" and not (home / "serve.json").exists()


@contextmanager
def drawing(server: RunningServer, out: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A command that draws ten images, and the first of them."""
    process = subprocess.Popen(
        [sys.executable, "-m", "oxlo_local", "image", "x", "-n", "10", "--steps", "20", "-o", str(out)],
        cwd=ROOT,
        env=environment(server.home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().decode().strip())


def test_ctrl_c_stops_the_drawing_and_keeps_what_is_complete(painter: RunningServer, tmp_path: Path) -> None:
    with drawing(painter, tmp_path / "out") as (process, first):
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and b"oxlo: stopped" in errors
    assert opened(first.read_bytes()).size == (64, 64) and not list((tmp_path / "out").glob("*.part"))
    until(lambda: painter.rows()[-1]["status"] == "settled")
    assert painter.rows()[-1]["units"] < 10 and painter.rows()[-1]["error_code"] == "cancelled"


def test_what_a_lost_worker_had_delivered_is_kept_and_settled(painter: RunningServer, tmp_path: Path) -> None:
    """The last that is asked of this server: its worker is not waited for."""
    with drawing(painter, tmp_path / "out") as (process, first):
        os.kill(int(str(painter.workers()[0]["pid"])), signal.SIGKILL)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1 and b"oxlo: " in errors.splitlines()[-1]
    assert opened(first.read_bytes()).size == (64, 64)
    row = painter.rows()[-1]
    assert (row["status"], row["error_code"]) == ("settled", "worker_lost")
    assert row["units"] == row["images"] == len(list((tmp_path / "out").iterdir())) < 10
