"""`oxlo transcribe` as its users run it: against a running server, and alone."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Oxlo, environment
from tests.conftest import ROOT, RunningServer, ledger_rows, speech_model, until

sounds = pytest.importorskip("tests.engines.speech.sounds", reason="the speech engine is not installed")


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    """Three files."""
    folder = tmp_path / "sound"
    folder.mkdir()
    return [
        Path(sounds.wav(folder / f"{name}.wav", sounds.speech(3.0, seed))) for seed, name in enumerate("abc")
    ]


def test_a_file_to_standard_output(ears: RunningServer, oxlo: Oxlo, recordings: list[Path]) -> None:
    done = oxlo(ears.home, "transcribe", str(recordings[0]), "--format", "srt", "--language", "en")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1\n00:00:") and "a.wav" in done.stderr


def test_a_pattern_to_a_folder(
    ears: RunningServer, oxlo: Oxlo, recordings: list[Path], tmp_path: Path
) -> None:
    before = len(ears.rows())
    pattern, out = str(recordings[0].parent / "*.wav"), tmp_path / "out"
    done = oxlo(ears.home, "transcribe", pattern, "-f", "verbose_json", "--words", "-o", str(out))
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["a.json", "b.json", "c.json"]
    for path in out.iterdir():
        told = json.loads(path.read_text())
        assert told["duration"] == 3.0 and {"segments", "words"} <= told.keys()
    assert [row["status"] for row in ears.rows()[before:]] == ["settled"] * 3


def test_one_that_fails_does_not_keep_the_others(
    ears: RunningServer, oxlo: Oxlo, recordings: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp3"
    broken.write_text("These are words.")
    done = oxlo(ears.home, "transcribe", str(recordings[0]), str(broken), str(recordings[1]))
    assert done.returncode == 1
    assert done.stdout.count("==> ") == 2 and "broken" not in done.stdout
    assert f"oxlo: {broken}: the file cannot be decoded" in done.stderr


def test_standard_input(ears: RunningServer, recordings: list[Path]) -> None:
    with recordings[0].open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "oxlo_local", "transcribe", "-", "--json"],
            cwd=ROOT,
            env=environment(ears.home),
            input=file.read(),
            capture_output=True,
            timeout=50,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() == {"text", "language"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.wav"], "does not exist"),
        ([], "Missing argument"),
        (["a.wav", "--format", "docx"], "docx"),
        (["a.wav", "--words"], "--words has no place in text"),
        (["a.wav", "b.wav", "--json"], "-o FOLDER"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    ears: RunningServer, oxlo: Oxlo, recordings: list[Path], arguments: list[str], words: str
) -> None:
    given = [str(recordings[0].parent / each) if each in ("a.wav", "b.wav") else each for each in arguments]
    done = oxlo(ears.home, "transcribe", *given)
    assert done.returncode == 2 and words in " ".join(done.stderr.split()), done.stderr


def test_a_model_of_another_kind_or_none(ears: RunningServer, oxlo: Oxlo, recordings: list[Path]) -> None:
    for model, words in (("oxlo-demo", "not for speech"), ("nobody", "no model")):
        done = oxlo(ears.home, "transcribe", str(recordings[0]), "--model", model)
        assert done.returncode == 1 and words in done.stderr


def test_alone_it_starts_a_server_and_leaves_a_row(oxlo: Oxlo, home: Path, recordings: list[Path]) -> None:
    done = oxlo(home, "transcribe", str(recordings[0]), "--model", speech_model(home))
    assert done.returncode == 0, done.stderr
    assert [(row["status"], row["audio_seconds"]) for row in ledger_rows(home)] == [("settled", 3.0)]
    assert not (home / "serve.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_whatever_is_left(
    ears: RunningServer, recordings: list[Path], tmp_path: Path, number: signal.Signals
) -> None:
    long = sounds.wav(tmp_path / "long.wav", sounds.np.tile(sounds.speech(60.0), 60))
    rows, out = len(ears.rows()), tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "oxlo_local",
        "transcribe",
        str(recordings[0]),
        str(long),
        "-o",
        str(out),
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(ears.home), stderr=subprocess.PIPE, text=True
    )
    until(lambda: (out / "a.txt").exists() and ears.workers()[0].get("files"))
    process.send_signal(number)
    begun = time.monotonic()
    _, told = process.communicate(timeout=50)
    assert time.monotonic() - begun < 3
    assert "Traceback" not in told
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGTERM)
    assert [path.name for path in out.iterdir()] == ["a.txt"]  # whole, and no draft of the other
    until(lambda: all(row["status"] != "open" for row in ears.rows()))
    assert [row["error_code"] for row in ears.rows()[rows:]] in ([None, "cancelled"], ["cancelled", None])
    until(lambda: not [path for path in (ears.home / "uploads").rglob("*") if path.is_file()])
