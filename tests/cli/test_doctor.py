"""`oxlo doctor`, `version` and `purge` as commands."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oxlo_local import __version__
from oxlo_local.cli import app
from tests.conftest import demo_model


@pytest.fixture
def environ(home: Path) -> dict[str, str]:
    (home / "config.toml").touch()
    home.chmod(0o700)
    return {"OXLO_HOME": str(home), "OXLO_CONFIG": str(home / "config.toml"), "OXLO_PORT": "0"}


def test_doctor_starts_the_demo_model(environ: dict[str, str]) -> None:
    demo_model()
    result = CliRunner().invoke(app, ["doctor", "--json"], env=environ)
    found = {finding["check"]: finding for finding in json.loads(result.stdout)}
    assert found["text engine"]["level"] == "ok", found["text engine"]
    assert result.exit_code == 0, result.stdout
    assert "model hub" not in found


def test_doctor_fails_on_a_damaged_ledger(environ: dict[str, str], home: Path) -> None:
    (home / "ledger.db").write_bytes(b"this is no database" * 1000)
    result = CliRunner().invoke(app, ["doctor"], env=environ)
    assert result.exit_code == 1
    assert "FAIL  ledger" in result.stdout and "->" in result.stdout


def test_version_as_json(environ: dict[str, str]) -> None:
    told = json.loads(CliRunner().invoke(app, ["version", "--json"], env=environ).stdout)
    assert told["oxlo"] == __version__ and "llama-cpp-python" in told["engines"]


@pytest.fixture
def content(home: Path) -> list[Path]:
    """Files with words of users, and beside them the ledger and a manifest, which have none."""
    files = [home / "outputs" / "a" / "image.png", home / "replays" / "r", home / "chat_history"]
    for file in (*files, home / "ledger.db", home / "manifests" / "m.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 1000)
    return files


def test_purge_removes_words_and_nothing_else(
    environ: dict[str, str], home: Path, content: list[Path]
) -> None:
    result = CliRunner().invoke(app, ["purge", "--yes", "--json"], env=environ)
    told = json.loads(result.stdout)
    assert result.exit_code == 0 and told["bytes"] == 3000 and told["removed"] is True
    assert not any(file.exists() for file in content)
    assert (home / "ledger.db").exists() and (home / "manifests" / "m.json").exists()


def test_purge_can_be_tried(environ: dict[str, str], content: list[Path]) -> None:
    result = CliRunner().invoke(app, ["purge", "--dry-run"], env=environ)
    assert result.exit_code == 0 and "outputs" in result.stdout
    assert all(file.exists() for file in content)


def test_purge_asks_nobody_when_nobody_is_there(environ: dict[str, str], content: list[Path]) -> None:
    result = CliRunner().invoke(app, ["purge"], env=environ)
    assert result.exit_code == 2 and "--yes" in result.output
    assert all(file.exists() for file in content)


def test_purge_follows_no_link_out_of_the_home(environ: dict[str, str], home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").touch()
    (home / "outputs").symlink_to(outside)
    assert CliRunner().invoke(app, ["purge", "--yes"], env=environ).exit_code == 0
    assert not (home / "outputs").exists() and (outside / "mine").exists()
