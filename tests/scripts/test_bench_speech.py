"""scripts/bench-speech: run small, over the embedded model, it measures what it says and judges as it prints."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytest.importorskip("faster_whisper", reason="the speech engine is not installed")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "bench_speech.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=110)


@pytest.mark.timeout(120)
def test_every_part_is_measured_and_judged() -> None:
    small = ("--models", "demo", "--rounds", "1", "--seconds", "10", "--hours", "0.02", "--threads", "1")
    done = bench(*small, "--json")
    assert "Traceback" not in done.stderr, done.stderr
    checks = json.loads(done.stdout)["checks"]
    holds = {check["name"]: check["holds"] for check in checks if check["bar"]}
    assert any("API / library" in name for name in holds)
    assert any("at once / one after another" in name for name in holds)
    assert [held for name, held in holds.items() if "beyond the loaded model" in name] == [True]
    assert done.returncode == int(False in holds.values())


def test_a_model_or_part_that_does_not_exist_is_wrong_usage() -> None:
    for arguments in (("--only", "race"), ("--models", "large")):
        done = bench(*arguments)
        assert done.returncode == 2 and arguments[1] in done.stderr and done.stdout == ""
