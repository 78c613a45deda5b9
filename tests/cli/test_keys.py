"""`oxlo keys`: the secret alone on stdout, JSON, and errors on stderr with the right exit code."""

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oxlo_local.cli.keys import app
from oxlo_local.db import Database
from oxlo_local.errors import Unauthorized
from oxlo_local.keys import Key, Keys, well_formed
from oxlo_local.limits import Budget
from tests.cli.shell import Shell


def verified(home: Path, secret: str) -> Key:
    """What a server would make of this secret."""

    async def verify() -> Key:
        db = Database.open(home / "ledger.db")
        try:
            return await Keys(db).verify(secret)
        finally:
            db.close()

    return asyncio.run(verify())


@pytest.mark.parametrize("command", ["create", "list", "show", "limit", "rotate", "revoke"])
def test_every_command_has_help_with_an_example(shell: Shell, command: str) -> None:
    out, _ = shell.run("keys", command, "--help")
    assert f"Example: oxlo keys {command}" in " ".join(out.split())
    assert "--json" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("create",),
        ("create", "x", "--role", "root"),
        ("revoke",),
        ("mint",),
    ],
)
def test_wrong_usage_is_exit_code_2(shell: Shell, arguments: tuple[str, ...]) -> None:
    out, err = shell.run("keys", *arguments, code=2)
    assert out == "" and "Usage" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("create x --name y", "give one name"),
        ("create x --rate fast", "'fast' is no rate; write 30/min"),
        ("create x --plan gold", "there are free, pro, premium"),
        ("create x --tier first", "there are priority, standard, batch"),
        ("limit x", "say what to change"),
        ("limit x --budget 20eur/month", "'20eur' is no sum of money"),
        ("rotate x --grace soon", "'soon' is no span of time"),
    ],
)
def test_a_limit_that_cannot_be_read_is_wrong_usage_before_the_ledger_is_opened(
    arguments: str, words: str
) -> None:
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_a_key_from_create_to_revoke(shell: Shell) -> None:
    secret, notes = shell.run("keys", "create", "laptop")
    secret = secret.removesuffix("\n")
    assert well_formed(secret)  # stdout is the secret alone: it can be taken into a variable
    assert "it is shown only now" in notes and "from now on every request needs a key" in notes
    key = verified(shell.home, secret)
    assert (key.name, key.role) == ("laptop", "user")

    _, err = shell.run("keys", "create", "laptop", code=1)
    assert err == f"oxlo: key {key.id} has the name 'laptop' already: take another, or revoke it first\n"

    out, notes = shell.run("keys", "create", "ops", "--role", "admin", "--json")
    made = json.loads(out)
    assert verified(shell.home, made.pop("key")).admin
    assert notes == ""

    out, _ = shell.run("keys", "list", "--json")
    listed = json.loads(out)
    assert listed[1] == made
    assert [(item["name"], item["role"], item["revoked"]) for item in listed] == [
        ("laptop", "user", None),
        ("ops", "admin", None),
    ]
    out, _ = shell.run("keys", "list")
    assert out.splitlines()[1].split()[:4] == [key.id, "laptop", "user", key.hint]

    out, _ = shell.run("keys", "show", "laptop", "--json")
    shown = json.loads(out)
    assert (shown["id"], shown["usage"]["requests"], shown["usage"]["spent_usd"]) == (key.id, 0, "0.0000")
    out, _ = shell.run("keys", "show", key.id)
    assert "0 settled" in out and "0.0000 USD" in out

    out, notes = shell.run("keys", "revoke", "laptop")
    assert (out, notes) == (f"revoked key {key.id} (laptop)\n", "")
    _, err = shell.run("keys", "revoke", key.id, code=1)
    assert err == f"oxlo: key {key.id} (laptop) has been revoked already\n"
    out, notes = shell.run("keys", "revoke", "ops", "--json")
    assert json.loads(out)["revoked"].endswith("Z")
    assert "no key is left, and requests still need one" in notes
    _, err = shell.run("keys", "show", "nobody", code=1)
    assert err.startswith("oxlo: no key with the id or name 'nobody'")


def test_a_limited_key_from_flags_to_rotation(shell: Shell) -> None:
    flags = "--name ci --models llama-*,whisper-* --endpoints chat,audio --budget 20usd/month --rate 30/min"
    secret, _ = shell.run(
        "keys", "create", *flags.split(), "--concurrency", "4", "--expires", "90d", "--tier", "batch"
    )
    limits = verified(shell.home, secret.strip()).limits
    assert limits.models == ("llama-*", "whisper-*") and limits.endpoints == ("chat", "audio")
    assert (limits.budget, limits.rate, limits.concurrency) == (Budget(20_000_000, "month"), 30, 4)
    assert limits.tier == "batch" and limits.expires_ms is not None

    out, _ = shell.run("keys", "limit", "ci", "--rate", "none", "--price", "llama-*=0.002")
    assert "budget 20.0000 USD/month" in out and "prices llama-*=0.0020" in out and "rate" not in out
    assert verified(shell.home, secret.strip()).limits.prices == {"llama-*": 2000}

    newer, notes = shell.run("keys", "rotate", "ci", "--grace", "1h")
    assert "shown only now; the old one is valid until" in notes
    assert verified(shell.home, newer.strip()).id == verified(shell.home, secret.strip()).id
    newest, notes = shell.run("keys", "rotate", "ci", "--grace", "0s", "--json")
    assert well_formed(json.loads(newest)["key"]) and notes == ""
    with pytest.raises(Unauthorized, match="after a rotation use the newer secret"):
        verified(shell.home, newer.strip())
