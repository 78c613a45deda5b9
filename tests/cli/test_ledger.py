"""`oxlo ledger`: tables, JSON and CSV of a ledger that another process has open; periods; wrong usage."""

import asyncio
import csv
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from oxlo_local import audit
from oxlo_local.cli.ledger import moment
from oxlo_local.db import Database
from oxlo_local.ledger import Ask, Ledger, Outcome
from oxlo_local.limits import version_of
from tests.cli.shell import Shell

PRICES = {"oxlo-demo": 100, "whisper": 2_700_001}
ASK = Ask(
    "local",
    "/v1/chat/completions",
    "oxlo-demo",
    1,
    100,
    version_of(PRICES),
    "req_1",
    metadata={"a": 'b,"c"'},
)


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """A ledger held open, as a server does, with a settled, a refunded and an open row; the id of the first."""

    async def fill(db: Database) -> tuple[Ledger, str]:
        await db.write(lambda connection: audit.keep_prices(connection, 0, PRICES))
        ledger = await Ledger.open(db, home / "locks")
        entry = await ledger.reserve(ASK)
        await ledger.settle(entry, Outcome(1200, 800, 30))
        whisper = await ledger.reserve(replace(ASK, model="whisper", unit_price_micros=2_700_001))
        await ledger.refund(whisper, "timeout", Outcome(error_code="timeout"))
        await ledger.reserve(replace(ASK, chain_id="chain-1"))
        return ledger, entry.id

    with asyncio.Runner() as runner:
        db = Database.open(home / "ledger.db")
        ledger, entry_id = runner.run(fill(db))
        yield entry_id
        runner.run(ledger.close())
        db.close()


@pytest.mark.parametrize("command", ["summary", "show", "export", "compare", "credit", "audit", "verify"])
def test_every_command_has_help_with_an_example(shell: Shell, command: str) -> None:
    out, _ = shell.run("ledger", command, "--help")
    assert f"Example: oxlo ledger {command}" in " ".join(out.split())
    assert "--json" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("summary", "--by", "mood"),
        ("summary", "--since", "yesterday"),
        ("summary", "--since", "1h", "--until", "2h"),
        ("export", "--json", "--csv"),
        ("show",),
        ("credit", "ci", "5usd"),
        ("compare", "--since", "soon"),
    ],
)
def test_wrong_usage_is_exit_code_2(shell: Shell, arguments: tuple[str, ...]) -> None:
    out, err = shell.run("ledger", *arguments, code=2)
    assert out == "" and "Usage" in err


def test_a_ledger_is_read_while_a_server_has_it_open(shell: Shell) -> None:
    with serving(shell.home) as entry_id:
        out, err = shell.run("ledger")
        assert err == ""
        heading, *rows, total = [line.split() for line in out.splitlines()]
        assert heading[:4] == ["model", "requests", "settled", "refunded"]
        assert rows == [
            ["oxlo-demo", "2", "1", "0", "1", "1,200", "800", "30", "0.0002"],
            ["whisper", "1", "0", "1", "0", "0", "0", "0", "0.0000"],
        ]
        assert total == ["total", "3", "1", "1", "1", "1,200", "800", "30", "0.0002"]

        out, _ = shell.run("ledger", "summary", "--by", "chain", "--json")
        summed = json.loads(out)
        assert [row["chain"] for row in summed["rows"]] == ["chain-1"]
        assert (summed["by"], summed["total"]["spent_usd"]) == ("chain", "0.0001")

        out, _ = shell.run("ledger", "summary", "--csv")
        lines = list(csv.DictReader(out.splitlines()))
        assert [(line["model"], line["refunded_usd"]) for line in lines] == [
            ("oxlo-demo", "0.0000"),
            ("whisper", "2.700001"),
        ]

        out, _ = shell.run("ledger", "show", entry_id, "--json")
        row = json.loads(out)
        assert (row["status"], row["price_usd"], row["metadata"]) == ("settled", "0.0001", {"a": 'b,"c"'})
        assert row["opened"].endswith("Z")
        out, _ = shell.run("ledger", "show", entry_id)
        assert entry_id in out and "settled" in out and "images" not in out
        _, err = shell.run("ledger", "show", "e_nowhere", code=1)
        assert err.startswith("oxlo: no entry 'e_nowhere' in the ledger")


def test_an_export_is_csv_or_one_json_object_a_line(shell: Shell) -> None:
    with serving(shell.home):
        out, _ = shell.run("ledger", "export")
        rows = list(csv.DictReader(out.splitlines()))
        assert [row["status"] for row in rows] == ["settled", "refunded", "open"]
        assert json.loads(rows[0]["metadata"]) == {"a": 'b,"c"'}
        out, _ = shell.run("ledger", "export", "--json", "--since", "1h")
        objects = [json.loads(line) for line in out.splitlines()]
        assert [row["id"] for row in objects] == [row["id"] for row in rows]
        assert objects[1]["price_usd"] == "2.700001"
        out, _ = shell.run("ledger", "export", "--json", "--until", "1h")
        assert out == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("30m", 1_000_000 - 1800),
        ("24h", 1_000_000 - 86400),
        ("7d", 1_000_000 - 7 * 86400),
        ("1970-01-02T00:00Z", 86400),
        ("1970-01-02T01:00+01:00", 86400),
    ],
)
def test_moments(text: str | None, seconds: float | None) -> None:
    assert moment(text, "--since", 1_000_000) == seconds


@pytest.mark.parametrize("text", ["", "yesterday", "7w", "-1d", "2026-13-01", "٣d"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a date or time"):
        moment(text, "--since", 1_000_000)


def test_a_credit_without_a_budget_says_that_it_changes_nothing(shell: Shell) -> None:
    shell.run("keys", "create", "free")
    out, err = shell.run("ledger", "credit", "free", "1usd", "--why", "a gift")
    assert out.startswith("credited key ")
    assert err.startswith(
        "the key has no budget, so this changes nothing until `oxlo keys limit free --budget`"
    )
    shell.run("keys", "limit", "free", "--budget", "1usd/day")
    assert shell.run("ledger", "credit", "free", "1usd", "--why", "a gift")[1] == ""


def test_a_credit_is_written_down_and_verified(shell: Shell) -> None:
    shell.run("keys", "create", "ci", "--budget", "1usd/day")
    out, _ = shell.run("ledger", "credit", "ci", "5usd", "--why", "the outage of Monday", "--json")
    credit = json.loads(out)
    assert (credit["amount_usd"], credit["why"]) == ("5.0000", "the outage of Monday")
    assert credit["who"].startswith("user ")
    shell.run("ledger", "credit", "ci", "--why", "too much", "--", "-2usd")
    out, _ = shell.run("keys", "show", "ci", "--json")
    assert json.loads(out)["standings"][0]["remaining_usd"] == "4.0000"
    _, err = shell.run("ledger", "credit", "ci", "0usd", "--why", "nothing", code=1)
    assert err == "oxlo: a credit of nothing changes nothing\n"
    _, err = shell.run("ledger", "credit", "ci", "1usd", "--why", "a row", "--entry", "e_nowhere", code=1)
    assert "has no entry 'e_nowhere'" in err

    out, _ = shell.run("ledger", "audit", "--key", "ci", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["action"] for event in events] == ["key_created", "credited", "credited"]
    assert events[0]["detail"]["limits"]["budget"] == {"micros": 1_000_000, "per": "day"}
    out, _ = shell.run("ledger", "audit")
    assert "the outage of Monday" in out and "-2.0000" in out

    out, _ = shell.run("ledger", "verify")
    assert out == "all right: 0 rows, 1 kept sums, 2 credits\n"


def test_a_ledger_that_is_wrong_is_exit_code_1_with_the_row(shell: Shell) -> None:
    with serving(shell.home) as entry_id:
        out, _ = shell.run("ledger", "verify", "--json")
        assert json.loads(out) == {"right": True, "rows": 3, "sums": 1, "credits": 0, "faults": []}
    connection = sqlite3.connect(shell.home / "ledger.db")
    connection.execute("DROP TRIGGER entries_are_kept")
    connection.execute("DELETE FROM entries WHERE id = ?", (entry_id,))
    connection.commit()
    connection.close()
    out, err = shell.run("ledger", "verify", code=1)
    assert "rows 1 to 1, written before it, are missing" in out
    assert err.startswith("2 faults in 2 rows")
    out, _ = shell.run("ledger", "verify", "--json", code=1)
    assert json.loads(out)["right"] is False


def test_a_comparison_prices_the_rows_of_a_period(shell: Shell) -> None:
    with serving(shell.home):
        out, _ = shell.run("ledger", "compare", "--since", "1h", "--json")
        told = json.loads(out)
        assert (told["requests"], told["flat_usd"]) == (1, "0.0001")
        assert {offer["provider"] for offer in told["providers"]} >= {"together", "openrouter", "openai"}
        out, _ = shell.run("ledger", "compare", "--until", "1h")
        assert out.startswith("0 settled requests")
