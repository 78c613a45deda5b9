"""How figures look: every load has its line, and what failed is named."""

import msgspec
import pytest

from oxlo_local import bench
from oxlo_local.bench import Figures, Plan, Quantiles, Report
from oxlo_local.cli.figures import as_json, progress, show

GOOD = Figures(
    16, {}, 61.04, 0.95, Quantiles(305, 437, 440), Quantiles(5.16, 31, 90), 16, 1728, 432, 1024, 0.03
)
FAILED = Figures(8, {"queue_full": 8}, 0, 0, None, None, 0, 0, 0, 0, 0.01)
REPORT = Report(
    "http://127.0.0.1:8000",
    Plan(model="mistral-7b"),
    [
        bench.row("16 clients", 16, [GOOD, msgspec.structs.replace(GOOD, tokens_per_second=59.0)]),
        bench.row("8 clients", 8, [FAILED]),
    ],
    ["16 clients: something [odd]"],
)


def test_the_table_holds_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    show(REPORT)
    printed = capsys.readouterr().out
    for words in (
        "60.0 (59.0-61.0)",
        "0.95",
        "305/437/440",
        "5.2/31/90",
        "3456 (25%)",
        "3%",
        "[odd]",
        "mistral-7b",
    ):
        assert words in printed, words
    failed = next(line for line in printed.splitlines() if "8 queue_full" in line)
    assert "8 clients" in failed and "-" in failed


def test_json_loses_nothing() -> None:
    assert msgspec.json.decode(as_json(REPORT), type=Report) == REPORT
    assert as_json(REPORT).endswith("}\n")


def test_progress_is_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as tell:
        tell("round 1 of 3: [8] clients")
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "round 1 of 3: [8] clients\n"
