"""`oxlo bench` as its users run it, against a real server."""

import json

import pytest

from tests.cli.conftest import Oxlo
from tests.conftest import RunningServer

SMALL = ("--clients", "1,3", "--requests", "3", "--rounds", "1", "--prompt-tokens", "40", "--max-tokens", "4")


def test_a_table_for_people(nonsense: RunningServer, oxlo: Oxlo) -> None:
    done = oxlo(nonsense.home, "bench", nonsense.url, *SMALL, "--loads", "clients", "--seed", "11")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert nonsense.model in lines[0] and nonsense.url in lines[0]
    assert any(line.strip().startswith("3 clients") for line in lines)
    assert done.stderr.splitlines() == ["round 1 of 1: 1 client", "round 1 of 1: 3 clients"]


def test_json_for_programs(nonsense: RunningServer, oxlo: Oxlo) -> None:
    done = oxlo(nonsense.home, "bench", *SMALL, "--shared-tokens", "60", "--seed", "12", "--json")
    report = json.loads(done.stdout)
    assert [row["clients"] for row in report["rows"]] == [1, 3, 8, 8, 8, 8]
    figure = report["rows"][1]["rounds"][0]
    assert (figure["requests"], figure["errors"]) == (3, {}) and 3 <= figure["completion_tokens"] <= 12
    assert report["plan"]["seed"] == 12


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--clients", "0"], 2, "--clients"),
        (["--clients", "few"], 2, "--clients"),
        (["--loads", "everything"], 2, "clients, shared, mixed"),
        (["--model", "no-such-model"], 1, "no-such-model"),
        (["--prompt-tokens", "99999"], 1, "--prompt-tokens"),
        (["http://127.0.0.1:9"], 1, "no server answers"),
    ],
)
def test_what_goes_wrong_is_one_clear_line(
    nonsense: RunningServer, oxlo: Oxlo, arguments: list[str], status: int, said: str
) -> None:
    done = oxlo(nonsense.home, "bench", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr and "Traceback" not in done.stderr
