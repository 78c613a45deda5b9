"""scripts/bench: run small, over a model of random weights, it measures what it says and judges as it prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from oxlo_local import random_model
from tests.conftest import ROOT


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "bench_server.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=110)


@pytest.mark.timeout(120)
def test_loads_and_cold_starts(tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    random_model.write(model)
    small = ("--rounds", "1", "--requests", "2", "--max-tokens", "4", "--starts", "1", "--threads", "1")
    done = bench("--only", "demo,cold", "--model", str(model), *small, "--json")
    assert "Traceback" not in done.stderr, done.stderr
    result = json.loads(done.stdout)
    holds = {check["name"]: check["holds"] for check in result["checks"]}
    assert holds["tiny: failed requests"] and holds["tiny: parent's memory"] and holds["tiny: ready after"]
    assert {
        "first request / hundredth, time to first token",
        "first request / hundredth, whole answer",
    } <= set(holds)
    assert done.returncode == int(False in holds.values())
    assert [row["clients"] for row in result["reports"][0]["rows"]] == [1, 8, 16, 32, 8, 8, 8, 8]
    assert result["reports"][0]["rows"][3]["rounds"][0]["at_once"] >= 1


def test_a_part_that_does_not_exist_is_wrong_usage() -> None:
    done = bench("--only", "race")
    assert done.returncode == 2 and "race" in done.stderr and done.stdout == ""
