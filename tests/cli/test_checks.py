"""The checks of `oxlo doctor`, each on a machine where it finds something."""

import asyncio
import socket
from contextlib import closing
from pathlib import Path

import pytest

from oxlo_local.cli import checks
from oxlo_local.config import Settings
from oxlo_local.db import Database
from oxlo_local.hardware import Gpu, Machine
from oxlo_local.keys import Keys


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", config=tmp_path / "config.toml", port=0)


def test_the_home_is_made_private_and_told(settings: Settings) -> None:
    assert checks.home(settings) == checks.Finding("data folder", "ok", str(settings.home))
    settings.home.chmod(0o755)
    assert checks.home(settings).level == "warn"


def test_a_home_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finding = checks.home(Settings(home=tmp_path / "file", config=tmp_path / "config.toml"))
    assert finding.level == "fail" and "OXLO_HOME" in finding.advice


def test_a_damaged_ledger_fails(settings: Settings) -> None:
    settings.make_home()
    assert checks.ledger(settings).level == "ok"
    settings.ledger_path.write_bytes(b"this is no database" * 1000)
    assert checks.ledger(settings).level == "fail"


def test_a_ledger_without_the_pepper_of_its_keys_fails(settings: Settings) -> None:
    with closing(Database.open(settings.ledger_path)) as db:
        asyncio.run(Keys(db).create("ci"))
    assert checks.ledger(settings).level == "ok"
    (settings.home / "keys.pepper").unlink()
    finding = checks.ledger(settings)
    assert finding.level == "fail" and "these keys cannot be checked: ci" in finding.found


def test_a_broken_catalogue_fails(settings: Settings) -> None:
    assert checks.models(settings).level == "ok"
    settings.user_models_toml.write_text("[models.x]\ntitel = 'X'\n")
    finding = checks.models(settings)
    assert finding.level == "fail" and "titel" in finding.found


def test_a_taken_port_fails_and_a_free_one_does_not(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        settings = Settings(home=tmp_path, config=tmp_path / "config.toml", port=number)
        assert checks.port(settings).level == "fail"
    assert checks.port(settings).level == "ok"


def test_a_gpu_that_the_engine_cannot_use_is_a_warning() -> None:
    card = Gpu("Card 9000", 24 << 30, 20 << 30, "9.0")
    machine = Machine(cores=8, ram_total=64 << 30, ram_available=60 << 30, gpus=(card,))
    finding = checks.gpu(machine)
    assert finding.level == "warn" and "Card 9000" in finding.found and "nvcc" in finding.advice


def test_little_memory_is_a_warning() -> None:
    assert checks.memory(Machine(cores=2, ram_total=8 << 30, ram_available=1 << 28)).level == "warn"
    assert checks.memory(Machine(cores=2, ram_total=None, ram_available=None)).level == "warn"
    assert checks.memory(Machine(cores=2, ram_total=8 << 30, ram_available=4 << 30)).level == "ok"


def test_a_missing_extra_names_the_command_that_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checks.ENGINES, "speech", ("no-such-distribution-anywhere",))
    finding = checks.engine_installed("speech")
    assert finding.level == "warn" and "OXLO_EXTRAS=speech" in finding.advice


def test_a_hub_that_does_not_answer_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{number}")
    assert checks.hub().level == "warn"
