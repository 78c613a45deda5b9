"""`oxlo chat` as its users run it: in a real terminal, and from scripts, against a real server."""

import json
import os
import signal
import sqlite3
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pexpect
import pytest

from tests.cli.conftest import Oxlo, environment
from tests.conftest import ROOT, RunningServer, demo_model, until
from tests.random_server import write_model

SECONDS = 30
PROMPT = "\x1b[?2004h"  # bracketed paste is switched on when the line editor waits for input


@contextmanager
def terminal(home: Path, *arguments: str) -> Iterator[pexpect.spawn]:
    """The command in a pseudo-terminal of its own."""
    child = pexpect.spawn(
        sys.executable,
        ["-m", "oxlo_local", "chat", *arguments],
        cwd=str(ROOT),
        env={**environment(home), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        encoding="utf-8",
        codec_errors="replace",
        dimensions=(40, 200),
        timeout=SECONDS,
    )
    try:
        child.expect_exact(PROMPT)
        yield child
    finally:
        child.close(force=True)


def test_a_conversation(nonsense: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    with terminal(nonsense.home, "--max-tokens", "20", "--temperature", "0") as child:
        child.send("Hello there\r")
        child.expect("cut off: the answer has reached its limit of tokens")
        child.expect_exact(PROMPT)
        child.send("/stats\r")
        child.expect(r"20 completion tokens.*first output \d+ ms.*0.0010 USD, ledger entry e_\w+.*1 answers")
        child.expect_exact(PROMPT)
        child.send(f"/save {file}\r")
        child.expect("2 messages saved")
        child.expect_exact(PROMPT)
        child.send("\x04")
        child.expect(pexpect.EOF)
        child.wait()
    assert child.exitstatus == 0
    saved = json.loads(file.read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    assert saved["options"] == {"temperature": 0.0, "max_tokens": 20} and saved["model"] == nonsense.model


def test_ctrl_c_stops_the_answer_and_not_the_program(nonsense: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    with terminal(nonsense.home, "--temperature", "0") as child:
        child.send("Tell me a very long story\r")
        child.expect(r"\x1b\[\?2004l.{200}")  # the answer is under way; it would end when the context is full
        child.sendintr()
        child.expect_exact("[stopped]")
        child.expect_exact(PROMPT)
        child.send(f"/save {file}\r")
        child.expect("2 messages saved")
        child.expect_exact(PROMPT)
        child.sendintr()
        child.expect_exact("(Ctrl-D or /exit leaves)")
        child.send("/exit\r")
        child.expect(pexpect.EOF)
        child.wait()
    assert child.exitstatus == 0
    assert json.loads(file.read_text())["messages"][1]["stopped"] is True
    until(lambda: last_row(nonsense)[0] == "settled")
    assert 0 < last_row(nonsense)[1] < 3000  # the server stopped too, long before the context was full


def last_row(server: RunningServer) -> tuple[str, int]:
    """Status and completion tokens of the newest row of the ledger."""
    with closing(sqlite3.connect(f"file:{server.home / 'ledger.db'}?mode=ro", uri=True)) as db:
        status, tokens = db.execute(
            "SELECT status, completion_tokens FROM entries ORDER BY id DESC"
        ).fetchone()
    return str(status), int(tokens or 0)


def test_one_question_from_a_script(nonsense: RunningServer, oxlo: Oxlo) -> None:
    same = ("--max-tokens", "8", "--temperature", "0")
    done = oxlo(nonsense.home, "chat", "--once", "Hello", *same)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.endswith("\n")
    asked = oxlo(nonsense.home, "chat", nonsense.model, "--json", *same, stdin="Hello")
    answer = json.loads(asked.stdout)
    assert answer["content"] + "\n" == done.stdout
    assert answer["model"] == nonsense.model and answer["usage"]["completion_tokens"] == 8
    assert (
        answer["finish_reason"] == "length"
        and answer["entry"].startswith("e_")
        and answer["price_usd"] == "0.0010"
    )


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "said"),
    [
        (["--once", "Hi", "no-such-model"], None, 1, "no-such-model"),
        (["--once", " "], None, 2, "no question"),
        ([], "", 2, "no question"),
        ([], "caf\udce9", 1, "no UTF-8 text"),  # as Latin-1 has it
        (["--once", "Hi", "a" * 300], None, 1, "no model 'aaa"),
        (["--once", "Hi", "--temperature", "9"], None, 2, "temperature"),
        (
            ["--once", "Hi", "--url", "http://127.0.0.1:9/v1"],
            None,
            1,
            "no server answers at http://127.0.0.1:9",
        ),
        (["--once", "Hi", "--url", "nonsense://"], None, 1, "no server address"),
    ],
)
def test_what_goes_wrong_is_one_clear_line(
    nonsense: RunningServer, oxlo: Oxlo, arguments: list[str], stdin: str | None, status: int, said: str
) -> None:
    done = oxlo(nonsense.home, "chat", *arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr and "Traceback" not in done.stderr


def test_history_is_kept_only_when_asked_for(nonsense: RunningServer) -> None:
    file = nonsense.home / "chat_history"
    for arguments in ((), ("--history",)):
        assert not file.exists()
        with terminal(nonsense.home, "--max-tokens", "1", *arguments) as child:
            child.send("private words\r")
            child.expect_exact(PROMPT)
            child.send("\x04")
            child.expect(pexpect.EOF)
    assert "private words" in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600


def test_where_no_server_runs_one_is_started_and_ended(home: Path) -> None:
    demo_model()
    (home / "config.toml").touch()
    with terminal(home) as child:
        left = json.loads((home / "serve.json").read_text())
        os.kill(left["pid"], 0)
        child.send("What is oxlo?\r")
        child.expect_exact(PROMPT)
        child.send("/exit\r")
        child.expect(pexpect.EOF)
        child.wait()
    assert child.exitstatus == 0
    assert not (home / "serve.json").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(left["pid"], signal.SIGTERM)


def test_a_closed_terminal_ends_the_server_too(home: Path) -> None:
    (home / "config.toml").touch()
    with terminal(home, str(write_model(home))) as child:
        left = json.loads((home / "serve.json").read_text())
        child.kill(signal.SIGHUP)
        child.wait()
    assert child.exitstatus == 1 and not (home / "serve.json").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(left["pid"], signal.SIGTERM)
