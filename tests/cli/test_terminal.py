"""The conversation in the terminal: answers piece by piece, every command, every way to write several lines."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from oxlo_local.cli.terminal import Terminal, ask, pick_model, prompt_session
from oxlo_local.client import Client
from oxlo_local.errors import BadRequest, ModelNotFound, WorkerLost
from oxlo_local.transcript import (
    COMMANDS,
    Said,
    Transcript,
)
from tests.stub_server import CHAT, HEAD, Reply, Stub, answer, event, models, piece, refusal, stub_server


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server() as server:
        yield server


def test_an_answer_is_shown_piece_by_piece(stub: Stub) -> None:
    stub.replies[CHAT] = [answer("Hel", "lo", cached=3)]
    shown: list[str] = []
    with Client(stub.address) as client:
        got = ask(client, Transcript("m").body("?"), shown.append)
    assert shown == ["Hel", "lo"] and got.text == "Hello" and got.finish_reason == "stop" and not got.stopped
    assert got.usage is not None and got.usage.cached_tokens == 3 and got.head.entry == "e_1"


def test_ctrl_c_keeps_what_came_and_tells_the_server(stub: Stub) -> None:
    endless = Reply([piece("la ")], headers=HEAD, endless=True)
    stub.replies[CHAT] = [endless]
    shown: list[str] = []

    def stop_at_three(text: str) -> None:
        shown.append(text)
        if len(shown) == 3:
            raise KeyboardInterrupt

    with Client(stub.address) as client:
        got = ask(client, Transcript("m").body("?"), stop_at_three)
        assert got.stopped and got.text == "la la la " and got.usage is None
        assert endless.left.wait(5)


def test_the_model_is_the_first_chat_model_that_is_ready(stub: Stub) -> None:
    items = [("e", "embedding", "ready"), ("big", "chat", "stopped"), ("small", "chat", "ready")]
    data = [{"id": name, "kind": kind, "status": status} for name, kind, status in items]
    stub.replies["/v1/models"] = [Reply([json.dumps({"data": data}).encode()])]
    stub.replies["/v1/models/e"] = [Reply([json.dumps(data[0]).encode()])]
    stub.replies["/v1/models/x"] = [refusal(404, "model_not_found", "no x; did you mean e?")]
    with Client(stub.address) as client:
        assert pick_model(client, None).id == "small"
        with pytest.raises(BadRequest, match="for embedding"):
            pick_model(client, "e")
        with pytest.raises(ModelNotFound, match="did you mean e"):
            pick_model(client, "x")


@contextmanager
def terminal(stub: Stub, transcript: Transcript) -> Iterator[tuple[Terminal, PipeInput]]:
    """A conversation whose keys come from a pipe."""
    with (
        create_pipe_input() as keys,
        create_app_session(input=keys, output=DummyOutput()),
        Client(stub.address) as client,
    ):
        yield Terminal(client, transcript, prompt_session(None)), keys


def test_every_command_of_the_table_works(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.replies[CHAT] = [answer("first"), answer("second"), answer("third")]
    stub.replies["/v1/models"] = [models("a", "b")]
    stub.replies["/v1/models/b"] = [Reply([b'{"id": "b"}'])]
    file = tmp_path / "talk.json"
    lines = [
        "one?",
        "/retry",
        "/system Be brief.",
        "/model",
        "/model b",
        f"/save {file}",
        "/reset",
        f"/load {file}",
        "/undo",
        "two?",
        "/stats",
        "/help",
        "/nonsense",
        "/exit",
    ]
    transcript = Transcript("a")
    with terminal(stub, transcript) as (conversation, keys):
        keys.send_text("".join(f"{line}\r" for line in lines))
        conversation.run()
    printed = capsys.readouterr().out
    for words in (
        "first",
        "second",
        "system prompt: Be brief.",
        "* a",
        "now talking to b",
        "2 messages saved",
    ):
        assert words in printed
    for words in (
        "2 messages loaded",
        "taken back: one?",
        "third",
        "3 answers",
        "/undo",
        "no such command: /nonsense",
    ):
        assert words in printed
    assert {line.split()[0][1:] for line in lines if line[0] == "/"} - {"nonsense"} == set(COMMANDS)
    asked = [json.loads(seen.body)["messages"] for seen in stub.seen if seen.path == CHAT]
    assert asked[0] == asked[1] == [{"role": "user", "content": "one?"}]  # retry took the first answer back
    assert asked[2] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "two?"}]
    assert transcript.said == [Said("user", "two?"), Said("assistant", "third")]


def test_a_name_that_no_file_can_have_ends_the_line_and_not_the_program(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.replies["/v1/models"] = [models("a")]
    lines = [
        f"/save {'a' * 300}",
        f"/load {'a' * 300}",
        "/save ~nobody-of-that-name/talk",
        f"/model {'a' * 300}",
    ]
    with terminal(stub, Transcript("a")) as (conversation, keys):
        keys.send_text("".join(f"{line}\r" for line in [*lines, "/help", "/exit"]))
        conversation.run()
    printed = capsys.readouterr().out
    assert printed.count("error: ") == len(lines) and "/undo" in printed


@pytest.mark.parametrize(
    ("keys_sent", "message"),
    [
        ('"""one\rtwo"""\r', "one\ntwo"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("\x1b[200~one\ntwo \\\nthree\x1b[201~\r", "one\ntwo \\\nthree"),
    ],
    ids=["quotes", "backslash", "alt-enter", "pasted"],
)
def test_ways_to_write_several_lines(stub: Stub, keys_sent: str, message: str) -> None:
    stub.replies[CHAT] = [answer("ok")]
    with terminal(stub, Transcript("a")) as (conversation, keys):
        keys.send_text(keys_sent + "\x04")
        conversation.run()
    assert [json.loads(seen.body)["messages"][-1]["content"] for seen in stub.seen] == [message]


def test_a_failed_answer_ends_the_line_and_not_the_program(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    died = event(
        {
            "error": {
                "message": "the worker died",
                "type": "server_error",
                "param": None,
                "code": WorkerLost.code,
            }
        }
    )
    stub.replies[CHAT] = [Reply([piece("half"), died], headers=HEAD), answer("whole")]
    transcript = Transcript("a")
    with terminal(stub, transcript) as (conversation, keys):
        keys.send_text("one?\r/retry\r\x03/exit\r")  # Ctrl-C at the prompt leaves nothing behind either
        conversation.run()
    printed = capsys.readouterr().out
    assert "error: the worker died" in printed and "(Ctrl-D or /exit leaves)" in printed
    assert transcript.said == [Said("user", "one?"), Said("assistant", "whole")]


def test_questions_are_on_disk_only_when_asked_for(stub: Stub, tmp_path: Path) -> None:
    stub.replies[CHAT] = [answer("ok")]
    file = tmp_path / "home" / "chat_history"
    with (
        create_pipe_input() as keys,
        create_app_session(input=keys, output=DummyOutput()),
        Client(stub.address) as client,
    ):
        keys.send_text("private?\r\x04")
        Terminal(client, Transcript("a"), prompt_session(file)).run()
    assert "private?" in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600
    with terminal(stub, Transcript("a")) as (conversation, keys):
        before = sorted(os.walk(tmp_path))
        keys.send_text("secret?\r\x04")
        conversation.run()
    assert sorted(os.walk(tmp_path)) == before and "secret?" not in file.read_text()
