"""Starting and stopping: what a server says, leaves and refuses, as its user meets it."""

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from oxlo_local import config
from oxlo_local.db import Database
from oxlo_local.errors import BadRequest
from oxlo_local.keys import Keys
from oxlo_local.limits import Limits
from oxlo_local.server import Progress, Signals, first, listen, serve, serve_file, url_of, within
from tests.conftest import ROOT, RunningServer, StartServer, demo_model, until

SPOKEN = ROOT / "tests" / "recordings" / "demo_speech" / "en-gb-scotland-klatt3.flac"


def failed(server: RunningServer) -> str:
    """The last line of a server that could not start, after its exit status has been checked."""
    assert server.process.wait(30) == 1
    lines = [line for line in server.log.splitlines() if line]
    assert "Traceback" not in server.log
    return lines[-1]


def test_a_server_says_when_it_is_ready_and_where(start_server: StartServer, long_winded: Path) -> None:
    server = start_server(str(long_winded))
    assert "oxlo: ready in " in server.log and f"base URL {server.base_url}" in server.log
    assert f'model="{long_winded.stem}"' in server.log
    models = httpx.get(f"{server.base_url}/models").json()["data"]
    assert {model["id"]: model["status"] for model in models}[long_winded.stem] == "ready"
    assert server.stop(signal.SIGINT) == 0


def test_the_serve_file_is_private_and_goes_with_its_server(
    start_server: StartServer, long_winded: Path
) -> None:
    server = start_server(str(long_winded))
    file = server.home / "serve.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    left = json.loads(file.read_text())
    assert left["pid"] == server.pid and len(left["admin_token"]) >= 32
    assert server.stop() == 0
    assert list(server.home.glob("serve.json*")) == []


def test_readyz_tells_what_is_missing_until_the_warm_up_is_answered(
    start_server: StartServer, long_winded: Path
) -> None:
    server = start_server(str(long_winded), wait=False)
    file = server.home / "serve.json"
    until(file.is_file, 30)
    url = json.loads(file.read_text())["url"]
    seen = []

    def is_ready() -> bool:
        answer = httpx.get(f"{url}/readyz")
        seen.append((answer.status_code, answer.json()["missing"]))
        return answer.status_code == 200

    until(is_ready, 30)
    assert seen[-1] == (200, [])
    waits = (long_winded.stem, "rehearsal")
    assert all(code == 503 and any(wait in missing[0] for wait in waits) for code, missing in seen[:-1])
    answer = httpx.get(f"{url}/healthz")
    assert answer.status_code == 200


def test_demos_of_other_kinds_load_behind_the_chat_demo_and_requests_for_them_wait(
    start_server: StartServer,
) -> None:
    pytest.importorskip("faster_whisper", reason="the speech engine is not installed")
    server = start_server(wait=False)
    file = server.home / "serve.json"
    until(file.is_file, 30)
    url = json.loads(file.read_text())["url"]
    assert statuses(url)["oxlo-demo-speech"] == "loading"
    form: dict[str, Any] = {
        "data": {"model": "oxlo-demo-speech"},
        "files": {"file": SPOKEN.read_bytes()},
        "timeout": 50,
    }
    answer = httpx.post(f"{url}/v1/audio/transcriptions", **form)
    assert (answer.status_code, answer.json()["text"]) == (200, "lock the black door please")
    assert httpx.get(f"{url}/readyz").status_code == 200
    assert {"oxlo-demo", "oxlo-demo-speech"} <= {
        id for id, status in statuses(url).items() if status == "ready"
    }
    until(lambda: re.search(r"oxlo: oxlo-demo-speech: ready \(\w+ on the [CG]PU\)", server.log))
    assert server.log.index("ready in ") < server.log.index(
        "oxlo-demo-speech"
    )  # not held up, nor before its time


def test_a_demo_that_cannot_be_loaded_is_told_and_disturbs_nothing(
    start_server: StartServer, home: Path
) -> None:
    pytest.importorskip("faster_whisper", reason="the speech engine is not installed")
    broken = home / "broken"
    broken.mkdir()
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (broken / name).write_text("{}")
    (home / "models.toml").write_text(f'[models.oxlo-demo-speech]\nfile = "{broken}"\n')
    server = start_server(home=home)
    until(lambda: "oxlo-demo-speech cannot be started" in server.log)
    assert statuses(server.url)["oxlo-demo-speech"] == "failed"
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    answer = httpx.post(
        f"{server.base_url}/audio/transcriptions",
        data={"model": "oxlo-demo-speech"},
        files={"file": b"x"},
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_loaded")
    body = {"model": "oxlo-demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    assert httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=30).status_code == 200
    assert server.stop() == 0


def statuses(url: str) -> dict[str, str]:
    """How each model is that is here."""
    return {model["id"]: model["status"] for model in httpx.get(f"{url}/v1/models").json()["data"]}


def test_the_first_request_finds_everything_made(start_server: StartServer, long_winded: Path) -> None:
    """The server and its worker import nothing for it, and it makes no series in the metrics."""
    server = start_server(str(long_winded), "--log-level", "debug", PYTHONPROFILEIMPORTTIME="1")
    before = series(server)
    said = len(server.log)
    assert (
        "import time:" in server.log and ": import time:" in server.log
    )  # the server's own, and the worker's
    body = {"model": long_winded.stem, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    for stream in (True, False):
        answer = httpx.post(
            f"{server.base_url}/chat/completions", json={**body, "stream": stream}, timeout=30
        )
        assert answer.status_code == 200
    assert series(server) == before
    assert "import time:" not in server.log[said:]
    assert len(server.rows()) == 2  # none of the rehearsal


def series(server: RunningServer) -> set[str]:
    """Names and labels of the metrics that requests move."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return {line.rpartition(" ")[0] for line in lines if line.startswith("oxlo_") and server.model in line}


def test_a_model_that_drafts_is_loaded_and_its_guesses_are_counted(
    start_server: StartServer, long_winded: Path
) -> None:
    """A model that drafts for itself is right; what it is predicted to say, it says."""
    server = start_server(str(long_winded), "--draft", str(long_winded), "--guesses", "3")
    ask = {
        "model": server.model,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 40,
        "temperature": 0,
    }
    answer = httpx.post(f"{server.base_url}/chat/completions", json=ask, timeout=30)
    said = answer.json()["choices"][0]["message"]["content"]
    predicted = ask | {"prediction": {"type": "content", "content": said}}
    again = httpx.post(f"{server.base_url}/chat/completions", json=predicted, timeout=30)
    assert again.json()["choices"][0]["message"]["content"] == said
    assert "x-oxlo-warnings" not in again.headers
    details = again.json()["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] + details["rejected_prediction_tokens"] <= 60
    until(lambda: counted(server, "oxlo_speculated_tokens_accepted_total") >= 30)  # read from pings
    assert counted(server, "oxlo_speculated_tokens_total") >= 30


def counted(server: RunningServer, name: str) -> float:
    """The value of a counter of the server's model."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


def test_a_draft_of_another_family_ends_the_start(start_server: StartServer, long_winded: Path) -> None:
    server = start_server(str(long_winded), "--draft", str(demo_model()), wait=False)
    assert failed(server)
    assert "cannot draft for this model: its vocabulary has" in server.log


def test_a_request_that_comes_while_the_model_loads_is_answered(
    start_server: StartServer, long_winded: Path
) -> None:
    server = start_server(str(long_winded), wait=False)
    file = server.home / "serve.json"
    until(file.is_file, 30)
    url = json.loads(file.read_text())["url"]
    answer = httpx.post(
        f"{url}/v1/completions",
        json={"model": long_winded.stem, "prompt": "x", "max_tokens": 2},
        timeout=30,
    )
    assert answer.status_code == 200


def test_a_limited_key_of_another_process_is_held_to_it_by_the_running_server(
    start_server: StartServer, long_winded: Path
) -> None:
    server = start_server(str(long_winded))

    async def keys_of_the_command_line() -> str:
        with closing(Database.open(server.home / "ledger.db")) as db:
            _, secret = await Keys(db).create("ci", limits=Limits(daily=2, models=("long-*",)))
            return secret

    def ask(secret: str, model: str) -> httpx.Response:
        body = {"model": model, "prompt": "a", "max_tokens": 1}
        headers = {"authorization": f"Bearer {secret}"}
        return httpx.post(f"{server.base_url}/completions", json=body, headers=headers, timeout=30)

    secret = asyncio.run(keys_of_the_command_line())
    answers = [ask(secret, server.model) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["code"] == "insufficient_quota"
    assert answers[2].headers["x-should-retry"] == "false"

    async def only_others() -> None:
        with closing(Database.open(server.home / "ledger.db")) as db:
            await Keys(db).limit("ci", lambda limits: Limits(models=("llama-*",)))

    asyncio.run(only_others())
    refused = ask(secret, server.model)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
    with closing(sqlite3.connect(server.home / "ledger.db")) as connection:
        lists = {row[0] for row in connection.execute("SELECT version FROM price_lists")}
    assert {
        row["price_version"] for row in server.rows()
    } == lists  # which was there before the first request


def test_a_port_in_use_is_one_clear_line(start_server: StartServer, long_winded: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start_server(str(long_winded), "--port", str(port), wait=False)
        line = failed(server)
    assert f"127.0.0.1:{port}" in line and "in use" in line and "--port" in line


def test_an_unknown_model_is_named_with_its_neighbours(start_server: StartServer, long_winded: Path) -> None:
    line = failed(start_server(str(long_winded), "mistral-7c", wait=False))
    assert line.startswith("oxlo: ") and "mistral-7c" in line and "mistral-7b" in line


def test_a_model_that_is_not_here_is_told_with_its_pull(start_server: StartServer, long_winded: Path) -> None:
    assert "oxlo pull mistral-7b" in failed(start_server(str(long_winded), "mistral-7b", wait=False))


def test_a_broken_file_is_refused_in_the_engine_s_own_words(
    start_server: StartServer, long_winded: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(long_winded.read_bytes()[:-1_000_000])
    server = start_server(str(broken), wait=False)
    assert server.process.wait(30) == 1
    assert "oxlo: broken cannot be started" in server.log
    assert "not within the file bounds" in server.log or "incomplete" in server.log
    assert "Traceback" not in server.log


def test_what_cannot_fit_is_refused_with_the_sum(start_server: StartServer, long_winded: Path) -> None:
    server = start_server(str(long_winded), "--ctx", "4000000", "--parallel", "256", wait=False)
    line = failed(server)
    assert "KV cache" in server.log and "256 sequences" in server.log, line


def test_two_models_are_both_served(start_server: StartServer, long_winded: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(long_winded.read_bytes())
    server = start_server(str(long_winded), str(other), "--ctx", "512", "--parallel", "2")
    assert [worker["model"] for worker in server.workers()] == ["long-winded", "other"]
    for model in ("long-winded", "other"):
        answer = httpx.post(
            f"{server.base_url}/completions",
            json={"model": model, "prompt": "x", "max_tokens": 2},
            timeout=30,
        )
        assert answer.json()["model"] == model
    assert {row["model"] for row in server.rows()} == {"long-winded", "other"}


def test_more_connections_are_allowed_than_a_shell_allows(
    start_server: StartServer, long_winded: Path
) -> None:
    server = start_server(str(long_winded))
    if sys.platform != "linux":
        pytest.skip("the limits of another process are read from /proc")
    limits = Path(f"/proc/{server.pid}/limits").read_text().splitlines()
    (files,) = [line.split() for line in limits if line.startswith("Max open files")]
    assert int(files[3]) == min(int(files[4]), 65_536)


def test_the_parent_stays_small(start_server: StartServer, long_winded: Path) -> None:
    server = start_server(str(long_winded))
    if sys.platform != "linux":
        pytest.skip("memory of another process is read from /proc")
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    assert pages * 4096 < 150_000_000


def test_a_server_whose_words_nobody_reads_any_more_goes_on(
    start_server: StartServer, long_winded: Path, tmp_path: Path
) -> None:
    fifo = tmp_path / "serve-0.log"  # where the server's words go
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    server = start_server(str(long_winded), wait=False)
    os.close(reading)
    file = server.home / "serve.json"
    until(file.is_file, 30)
    server.url = json.loads(file.read_text())["url"]
    until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200, 30)
    server.process.terminate()
    assert server.process.wait(20) == 0


def test_keys_without_their_pepper_stop_the_start(
    start_server: StartServer, long_winded: Path, home: Path
) -> None:
    with closing(Database.open(home / "ledger.db")) as db:
        asyncio.run(Keys(db).create("ci"))
    (home / "keys.pepper").unlink()
    words = failed(start_server(str(long_winded), home=home, wait=False))
    assert words.startswith("oxlo: these keys cannot be checked: ci. ")
    assert "keys.pepper is missing. Put it back from your backup" in words


def test_beyond_loopback_an_admin_key_is_made_and_shown_once(
    start_server: StartServer, long_winded: Path, home: Path
) -> None:
    server = start_server(str(long_winded), "--host", "0.0.0.0", home=home, wait=False)
    until(lambda: "oxlo_" in server.log, 30)
    (secret,) = [line.split()[-1] for line in server.log.splitlines() if "oxlo: oxlo_" in line]
    until(lambda: (home / "serve.json").is_file(), 30)
    url = json.loads((home / "serve.json").read_text())["url"]
    assert url.startswith("http://127.0.0.1:")
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/v1/models", headers={"x-api-key": secret}).status_code == 200
    assert server.stop() == 0
    again = start_server(str(long_winded), "--host", "0.0.0.0", home=home, wait=False)
    until(lambda: "is listening on" in again.log, 30)
    assert "oxlo_" not in again.log.replace("oxlo_local", "")
    assert again.stop() == 0


async def test_two_servers_in_one_process(long_winded: Path, tmp_path: Path) -> None:
    """Nothing is global: two servers share an interpreter and a loop, and one signal object each ends them."""
    settings = [
        config.load(
            {"home": tmp_path / name, "port": 0, "ctx": 512, "parallel": 2, "log_level": "warning"}, {}
        )
        for name in "ab"
    ]
    serving = [asyncio.create_task(serve(one, [str(long_winded)])) for one in settings]
    async with httpx.AsyncClient() as client, asyncio.timeout(40):
        for one in settings:
            while not one.serve_file.is_file():  # noqa: ASYNC110  # another task writes the file
                await asyncio.sleep(0.01)
            url = json.loads(one.serve_file.read_text())["url"]
            request = {"model": long_winded.stem, "prompt": "x", "max_tokens": 2}
            answer = await client.post(f"{url}/v1/completions", json=request, timeout=30)
            assert answer.status_code == 200
    for task in serving:
        task.cancel()
    await asyncio.wait(serving)
    assert not any(one.serve_file.exists() for one in settings)


def test_listen_tells_why_an_address_cannot_be_had() -> None:
    with pytest.raises(BadRequest, match="cannot listen on 192.0.2.1:1"):
        listen("192.0.2.1", 1)


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:"), ("::1", "http://[::1]:")],
)
def test_the_url_is_one_that_this_machine_can_reach(host: str, url: str) -> None:
    try:
        listener = listen(host, 0)
    except BadRequest as error:
        pytest.skip(str(error))
    with listener:
        assert url_of(listener) == f"{url}{listener.getsockname()[1]}"


def test_a_serve_file_that_another_server_took_over_is_left_alone(home: Path) -> None:
    settings = config.load({"home": home}, {})
    with serve_file(settings, "http://one", "a"):
        with serve_file(settings, "http://two", "b"):
            assert json.loads(settings.serve_file.read_text())["url"] == "http://two"
        assert not settings.serve_file.exists()
        settings.serve_file.write_text("{}")
    assert settings.serve_file.read_text() == "{}"


async def test_the_first_signal_drains_and_the_second_ends() -> None:
    with Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(signals.first.wait(), 5)
        assert not signals.second.is_set()
        signal.raise_signal(signal.SIGINT)
        await asyncio.wait_for(signals.second.wait(), 5)


async def test_first_tells_who_won_cancels_the_rest_and_raises_what_was_raised() -> None:
    async def fail() -> None:
        raise ValueError("lost")

    never = asyncio.Event()
    assert await first(never.wait(), asyncio.sleep(0)) == 1
    with pytest.raises(ValueError, match="lost"):
        await first(never.wait(), fail())
    await within(0.01, never.wait())


async def test_progress_says_each_quarter_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    change = progress.next()
    for state, loaded in [("starting", 0.0), ("starting", 0.3), ("starting", 0.4), ("starting", 0.8)]:
        progress.tell("m", state, loaded)
    progress.tell("m", "warming", 1.0)
    progress.tell("m", "ready", 1.0, " (int8 on the CPU)")
    progress.changed()
    progress.changed()
    await change
    assert capsys.readouterr().err.splitlines() == [
        "oxlo: m: 25 % loaded",
        "oxlo: m: 75 % loaded",
        "oxlo: m: warming",
        "oxlo: m: ready (int8 on the CPU)",
    ]
