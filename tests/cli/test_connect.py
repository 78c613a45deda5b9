"""Which server a command talks to: the one it names, the one that runs here, else one of its own."""

import json
import os
from pathlib import Path

import psutil
import pytest

from oxlo_local.cli.connect import connected
from oxlo_local.client import Address
from oxlo_local.config import Settings, load
from oxlo_local.errors import Unavailable
from tests.cli.conftest import environment
from tests.conftest import RunningServer
from tests.random_server import write_model
from tests.stub_server import free_port, stub_server


def settings_of(home: Path) -> Settings:
    (home / "config.toml").touch()
    return load(environ=environment(home))


def test_the_server_that_runs_here_is_taken(nonsense: RunningServer) -> None:
    with connected(settings_of(nonsense.home), None, url=None, key=None) as client:
        assert client.address == Address(nonsense.url, nonsense.admin_token)
        assert client.get("/admin/workers")


def test_a_named_server_comes_first(nonsense: RunningServer) -> None:
    with stub_server() as stub:
        with connected(settings_of(nonsense.home), None, url=stub.address.url, key="sk-1") as client:
            assert client.address == Address(stub.address.url, "sk-1")


def test_a_named_server_that_is_not_there_is_not_replaced(home: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with (
        pytest.raises(Unavailable, match=url),
        connected(settings_of(home), None, url=url, key=None) as client,
    ):
        client.models()


def test_where_none_runs_one_is_started_for_the_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = {
        "url": f"http://127.0.0.1:{free_port()}",
        "pid": 1,
        "admin_token": "left by a server that was killed",
    }
    (home / "serve.json").write_text(json.dumps(killed))
    settings = settings_of(home)
    settings.config.write_text('host = "0.0.0.0"\nport = 8000\n')  # of the real server, not of this one
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
    model = write_model(home)
    with connected(settings, str(model), url=None, key=None) as client:
        assert client.address.url.startswith("http://127.0.0.1:") and not client.address.url.endswith(":8000")
        assert model.stem in {item.id for item in client.models()}
        pid = json.loads((home / "serve.json").read_text())["pid"]
        assert psutil.Process(pid).ppid() == os.getpid()
    assert not psutil.pid_exists(pid)
