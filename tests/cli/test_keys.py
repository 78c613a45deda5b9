"""`oxlo keys`: the secret alone on stdout, JSON, and errors on stderr with the right exit code."""

import asyncio
import json
from pathlib import Path

import pytest

from oxlo_local.db import Database
from oxlo_local.keys import Key, Keys, well_formed
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


@pytest.mark.parametrize("command", ["create", "list", "show", "revoke"])
def test_every_command_has_help_with_an_example(shell: Shell, command: str) -> None:
    out, _ = shell.run("keys", command, "--help")
    assert f"Example: oxlo keys {command}" in " ".join(out.split())
    assert "--json" in out


@pytest.mark.parametrize(
    "arguments", [("create",), ("create", "x", "--role", "root"), ("revoke",), ("mint",)]
)
def test_wrong_usage_is_exit_code_2(shell: Shell, arguments: tuple[str, ...]) -> None:
    out, err = shell.run("keys", *arguments, code=2)
    assert out == "" and "Usage" in err


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
