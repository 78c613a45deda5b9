"""What `oxlo ledger` prints: nothing that a client wrote can reach the terminal as a command to it."""

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from oxlo_local.cli import books
from oxlo_local.db import Connection, Database
from oxlo_local.ledger import Ask, Ledger, Outcome
from tests.cli.shell import Shell

ASK = Ask("local", "/v1/chat/completions", "oxlo-demo", 1, 100, "2026-11", "req_1")


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OXLO_HOME of this process."""
    (home / "config.toml").touch()
    monkeypatch.setenv("OXLO_HOME", str(home))
    monkeypatch.setenv("OXLO_CONFIG", str(home / "config.toml"))
    return home


def test_what_a_client_wrote_is_harmless_in_tables(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def fill() -> None:
        db = Database.open(here / "ledger.db")
        ledger = await Ledger.open(db, here / "locks")
        ask = replace(
            ASK, chain_id="\x1b]0;owned\x07[red]x", request_id="[bold]r[/]", metadata={"k": "\x9b31m"}
        )
        await ledger.settle(await ledger.reserve(ask), Outcome())
        await ledger.close()
        db.close()

    asyncio.run(fill())
    books.print_summary("chain", (None, None), as_json=False, as_csv=False, chart=True)
    summary = capsys.readouterr().out
    assert "\ufffd]0;owned\ufffd[red]x" in summary
    books.export_rows((None, None), as_json=True)
    entry_id = capsys.readouterr().out.partition('"id": "')[2].partition('"')[0]
    books.print_entry(entry_id, as_json=False)
    shown = capsys.readouterr().out
    assert "[bold]r[/]" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(summary + shown)


def test_a_long_export_needs_little_memory(here: Path) -> None:
    def fill(connection: Connection) -> None:
        connection.execute(
            "WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 29999)"
            " INSERT INTO entries (id, opened_ms, instance, status, key_id, endpoint, model, units,"
            " unit_price_micros, price_micros, price_version, request_id, metadata, address_class)"
            " SELECT printf('e_1%021d', n), 1, 'i', 'open', 'local', '/', 'm', 1, 1, 1, 'v', 'r',"
            " printf('{\"note\": \"%1000s\"}', ''), 'loopback' FROM numbers"
        )

    async def write() -> None:
        db = Database.open(here / "ledger.db")
        await db.write(fill)
        db.close()

    asyncio.run(write())
    measure = (
        "import resource; from oxlo_local.cli import books; from oxlo_local.statement import Row;"
        " books.export_rows((None, 0.001), False);"
        " before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; books.export_rows((None, None), True);"
        " import sys; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", measure], capture_output=True, text=True, check=True)
    assert run.stdout.count("\n") == 30_001  # the heading of an empty export, and 40 MB of rows
    assert int(run.stderr) < 15_000  # KiB (macOS: bytes)


def test_a_reader_that_stops_early_is_no_error(shell: Shell) -> None:
    process = shell.start("ledger", "export")
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert "Traceback" not in err


def traffic(home: Path, rows: list[tuple[str, int]]) -> None:
    """Settled rows: model, and prompt tokens of each."""

    async def fill() -> None:
        db = Database.open(home / "ledger.db")
        ledger = await Ledger.open(db, home / "locks")
        for model, prompt in rows:
            entry = await ledger.reserve(replace(ASK, model=model, unit_price_micros=1000))
            await ledger.settle(entry, Outcome(prompt, 0, 100))
        await ledger.close()
        db.close()

    asyncio.run(fill())


def test_the_chart_draws_what_was_spent(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traffic(here, [("a", 1), ("a", 1), ("a", 1), ("a", 1), ("b", 1)])
    books.print_summary("model", (None, None), as_json=False, as_csv=False, chart=True)
    a, b = [line.count("█") for line in capsys.readouterr().out.splitlines()[1:3]]
    assert (a, b) == (books.CHART_WIDTH, books.CHART_WIDTH // 4)
    books.print_summary(
        "model", (None, None), as_json=False, as_csv=False, chart=None
    )  # no terminal: no chart
    assert "█" not in capsys.readouterr().out


def test_a_comparison_names_sources_nearest_models_and_where_flat_loses(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traffic(here, [("llama-3.3-70b", 100), ("oxlo-demo", 1000), ("my-own-file", 5)])
    books.print_comparison((None, None), as_json=False)
    out = capsys.readouterr().out
    assert "3 settled requests, 0.003000 USD" in out
    [openrouter] = [line for line in out.splitlines() if line.startswith("openrouter")]
    # 100 in + 100 out at 0.1/0.32, and 1000 in + 100 out at 0.027/0.201 a million
    assert (
        openrouter.split()[1:4] == ["2", "~0.000089", "0.002000"] and "flat loses: 22.4 times" in openrouter
    )
    assert "~meta-llama/llama-3.2-1b-instruct" in out and "2026-07-02" in out and "models.dev@f3fc6922" in out
    assert "no provider's price is known for my-own-file (1 requests)" in out
    assert "yes (60 a day, 5 a minute)" in out and "oxlo.ai" in out
    books.print_comparison((None, None), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [offer["provider"] for offer in told["providers"]][:4] == [
        "together", "fireworks", "openrouter", "openai",
    ]  # fmt: skip
    assert [plan["fits"] for plan in told["plans"]] == [True, True, True]
    assert told["unpriced"] == [{"model": "my-own-file", "requests": 1}]


def test_a_new_price_list_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def announce() -> str:
        db = Database.open(here / "ledger.db")
        ledger = await Ledger.open(db, here / "locks")
        version = await ledger.announce({f"model-{number}": 1000 for number in range(300)}, "user x")
        await ledger.close()
        db.close()
        return version

    version = asyncio.run(announce())
    books.print_events(None, None, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and f"list {version}: 300 prices differ from list none" in lines[1]
    books.print_events(None, None, as_json=True)
    assert json.loads(capsys.readouterr().out)["detail"]["changed"]["model-7"] == [None, 1000]


def test_a_comparison_of_nothing_is_no_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    books.print_comparison((None, None), as_json=False)
    assert capsys.readouterr().out == "0 settled requests, 0.000000 USD at the flat prices here\n"
