"""What `oxlo keys` and `oxlo ledger` print: nothing that a client wrote can reach the terminal as a command to it."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from oxlo_local.cli import accounts
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
    accounts.print_summary("chain", (None, None), as_json=False, as_csv=False)
    summary = capsys.readouterr().out
    assert "\ufffd]0;owned\ufffd[red]x" in summary
    accounts.export_rows((None, None), as_json=True)
    entry_id = capsys.readouterr().out.partition('"id": "')[2].partition('"')[0]
    accounts.print_entry(entry_id, as_json=False)
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
        "import resource; from oxlo_local.cli import accounts; from oxlo_local.statement import Row;"
        " accounts.export_rows((None, 0.001), False);"
        " before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; accounts.export_rows((None, None), True);"
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
