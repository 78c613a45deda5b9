"""A server of one's own: it is awaited, it ends with its owner, and it says why it could not start."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from oxlo_local.client import Client, read_serve_file
from oxlo_local.errors import TimedOut, Unavailable
from oxlo_local.launch import LaunchedServer
from tests.cli.conftest import environment
from tests.conftest import ROOT, until
from tests.random_server import write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path)


def prepared(home: Path) -> dict[str, str]:
    (home / "config.toml").touch()
    return {**environment(home), "PYTHONPATH": str(ROOT)}


def test_it_is_ready_when_it_says_so_and_gone_when_the_block_ends(home: Path, model: Path) -> None:
    waited: list[float] = []
    with LaunchedServer([str(model), "--port", "0"], home / "serve.json", prepared(home)) as server:
        address = server.wait_ready(50, waited.append)
        with Client(address) as client:
            assert client.ready() and [item.status for item in client.models() if item.id == model.stem] == [
                "ready"
            ]
        children = psutil.Process(server.pid).children(recursive=True)
    assert waited == sorted(waited) and waited
    assert not psutil.pid_exists(server.pid) and children
    assert not any(child.is_running() for child in children)


def test_a_failed_start_is_told_in_the_servers_words(home: Path) -> None:
    with LaunchedServer(["no-such-model", "--port", "0"], home / "serve.json", prepared(home)) as server:
        with pytest.raises(Unavailable, match=r"exit 1(?s:.*)no-such-model"):
            server.wait_ready(50)


def test_waiting_has_an_end(home: Path, model: Path) -> None:
    with LaunchedServer([str(model), "--port", "0"], home / "serve.json", prepared(home)) as server:
        with pytest.raises(TimedOut, match="not ready after 0 s"):
            server.wait_ready(0)


def test_the_file_of_another_server_is_not_believed(home: Path, model: Path) -> None:
    (home / "serve.json").write_text('{"url": "http://127.0.0.1:9", "pid": 1, "admin_token": "x"}')
    with LaunchedServer([str(model), "--port", "0"], home / "serve.json", prepared(home)) as server:
        server.wait_ready(50)
        left = read_serve_file(home / "serve.json")
        assert left is not None and left.pid == server.pid


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has died")
def test_it_ends_when_its_owner_is_killed(home: Path, model: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from oxlo_local.launch import LaunchedServer\n"
        "server = LaunchedServer([sys.argv[1], '--port', '0'], Path(sys.argv[2]))\n"
        "server.wait_ready(50); print(server.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(model), str(home / "serve.json")]
    with subprocess.Popen(command, env=prepared(home), stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        server = int(owner.stdout.readline())
        os.kill(server, 0)
        owner.send_signal(signal.SIGKILL)
    until(lambda: not psutil.pid_exists(server))
