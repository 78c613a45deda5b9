"""The soak: a short one holds, and its judgement is not blind."""

import json
import subprocess
import sys
from random import Random

import pytest

import soak
from oxlo_local.calls import Gauges
from oxlo_local.client import CHAT_PATH, COMPLETIONS_PATH
from soak import Errand, Row, Window, Worker
from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_short_soak_leaves_nothing_behind() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "soak.py"), "--json", "--seed", "7"]
    # Too short for a warm-up, so a process may grow by more than in an hour; nothing else is forgiven.
    done = subprocess.run(
        [*command, "--minutes", "0.1", "--windows", "4", "--growth", "15"], capture_output=True
    )
    outcome = json.loads(done.stdout)
    assert outcome["faults"] == [] and done.returncode == 0, done.stderr.decode()
    assert set(outcome["ways"]) == set(soak.WAYS) and outcome["requests"] > 50
    assert set(outcome["rows"]) == {"settled", "refunded"} and set(outcome["growth"]) == {
        *soak.KINDS,
        "parent",
    }
    assert outcome["windows"][-1]["cached"] > 0


def worker(gauges: Gauges | None = None, *, running: int = 0, restarts: int = 0) -> Worker:
    return Worker("m", gauges or Gauges(), 1, 0, running, restarts)


def test_a_cache_is_whole_when_free_and_cached_are_all() -> None:
    assert soak.cache_faults(worker(Gauges(kv_used=10, kv_idle=10, kv_total=64))) == []
    broken = {
        "differ by 3": Gauges(kv_used=10, kv_idle=10, kv_total=64, kv_strayed=3),
        "4 tokens belong": Gauges(kv_used=10, kv_idle=6, kv_total=64),
        "70 tokens are in": Gauges(kv_used=70, kv_idle=70, kv_total=64),
    }
    for words, gauges in broken.items():
        (fault,) = soak.cache_faults(worker(gauges))
        assert words in fault
    assert "started again" in soak.cache_faults(worker(restarts=1))[0]


def test_idle_means_that_nobody_has_anything_left() -> None:
    assert soak.idle([worker()])
    assert not soak.idle([worker(), worker(running=1)])
    assert not soak.idle([worker(Gauges(waiting=1))])


FATES: dict[str, soak.Fate] = {"soak-1": "settled", "soak-2": "refunded", "soak-3": "either"}
RIGHT = [Row("soak-1", "settled", 10, None), Row("soak-2", "refunded", 10, "context_length_exceeded")]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (RIGHT, None),
        ([*RIGHT, Row("soak-3", "settled", 10, None)], None),
        ([*RIGHT, Row("soak-3", "refunded", 10, "cancelled")], None),
        ([*RIGHT, Row("warm-up", "settled", 99, None)], None),  # somebody else's
        (RIGHT[:1], "soak-2 has no row"),
        ([*RIGHT, RIGHT[0]], "soak-1 has 2 rows"),
        (
            [Row("soak-1", "refunded", 10, "cancelled"), RIGHT[1]],
            "soak-1 is refunded (cancelled) and should be settled",
        ),
        ([*RIGHT, Row("soak-3", "open", 10, None)], "soak-3 is open"),
        ([Row("soak-1", "settled", 11, None), RIGHT[1]], "do not sum to 10"),
    ],
)
def test_the_ledger_is_held_against_the_clients_account(rows: list[Row], words: str | None) -> None:
    faults = soak.ledger_faults(rows, FATES, 10)
    assert faults == [] if words is None else any(words in fault for fault in faults)


def test_growth_is_told_after_the_warm_up() -> None:
    sizes = [100, 150, 200, 200, 201, 200, 202, 203, 204, 204, 206, 204]
    windows = [Window(i, i, {"parent": size}, 0, 0, 0) for i, size in enumerate(sizes)]
    assert soak.growth(windows) == {"parent": 2.0}  # 200 at first, 204 in the end


def test_what_is_owed_depends_on_what_had_arrived() -> None:
    assert soak.fate_of("cut late", output=True) == soak.fate_of("stream", output=True) == "settled"
    assert soak.fate_of("cut early", output=True) == "settled"
    assert soak.fate_of("cut early", output=False) == soak.fate_of("walk away", output=False) == "either"
    assert soak.fate_of("too long", output=False) == "refunded"


def test_errands_are_of_every_way_and_of_very_different_lengths() -> None:
    random = Random(1)
    drawn = [Errand.drawn(random, ["m"]) for _ in range(400)]
    assert {errand.way for errand in drawn} == set(soak.WAYS)
    lengths = {len(json.dumps(errand.body).split()) for errand in drawn}
    assert min(lengths) < 20 and max(lengths) > soak.OVER_CONTEXT
    assert {errand.path for errand in drawn} == {CHAT_PATH, COMPLETIONS_PATH}
