"""`oxlo chat`: what input means, what a conversation keeps, and the real program in a real terminal."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from oxlo_local.cli.terminal import Terminal, ask, pick_model, prompt_session
from oxlo_local.client import ChatBody, ChatUsage, Client, Head, PromptDetails, Turn
from oxlo_local.errors import BadRequest, ModelNotFound, WorkerLost
from oxlo_local.transcript import (
    COMMANDS,
    Answer,
    Command,
    Options,
    Said,
    Totals,
    Transcript,
    answer_object,
    printable,
    read_saved,
    stats_lines,
    understand,
    wants_more,
)
from tests.stub_server import CHAT, HEAD, Reply, Stub, answer, event, models, piece, refusal, stub_server

# -- input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entered", "meant"),
    [
        ("hello ", "hello"),
        ("", ""),
        ('"""two\nlines"""', "two\nlines"),
        ('"""\ntwo\nlines\n"""', "two\nlines"),
        ('""""""', ""),
        ("/stats", Command("stats", "")),
        ("/System You are terse. ", Command("system", "You are terse.")),
        ("/quit", Command("exit", "")),
        ("//etc is a folder", "/etc is a folder"),
        ("what is /etc?", "what is /etc?"),
    ],
)
def test_what_input_means(entered: str, meant: Command | str) -> None:
    assert understand(entered) == meant


@pytest.mark.parametrize(
    ("entered", "said"),
    [
        ("/stat", "did you mean /stats"),
        ("/xyzzy", "/help"),
        ("/save", "/save FILE"),
        ("/load  ", "/load FILE"),
        ("/reset all", "takes no argument"),
    ],
)
def test_a_wrong_command_says_what_to_write(entered: str, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        understand(entered)


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ('"""', True),
        ('"""a\nb', True),
        ('"""a\nb"""', False),
        ('""""""', False),
        ("a", False),
        ('a """ b', False),
    ],
)
def test_quotes_hold_the_message_open(text: str, more: bool) -> None:
    assert wants_more(text) is more


def test_an_answer_cannot_drive_the_terminal() -> None:
    assert printable("a\tb\nü\x1b]0;title\x07\x9b2J") == "a\tb\nü\\x1b]0;title\\x07\\x9b2J"


# -- what was said ----------------------------------------------------------------------------------------------


def spoken() -> Transcript:
    transcript = Transcript("m", "Be brief.", Options(temperature=0.5, max_tokens=9))
    transcript.heard("one?", "1")
    transcript.heard("two?", "2 and", stopped=True)
    return transcript


def test_a_question_goes_out_with_all_that_was_said() -> None:
    assert spoken().body("three?") == ChatBody(
        model="m",
        messages=[
            Turn("system", "Be brief."),
            Turn("user", "one?"),
            Turn("assistant", "1"),
            Turn("user", "two?"),
            Turn("assistant", "2 and"),
            Turn("user", "three?"),
        ],
        temperature=0.5,
        max_completion_tokens=9,
    )


def test_an_unanswered_question_is_put_aside_for_retry() -> None:
    transcript = spoken()
    transcript.heard("lost?", "")
    assert len(transcript.said) == 4
    assert transcript.retry() == "lost?"
    assert transcript.retry() == "two?" and len(transcript.said) == 2


def test_undo_and_reset() -> None:
    transcript = spoken()
    assert transcript.undo() == "two?" and transcript.undo() == "one?" and transcript.undo() is None
    transcript = spoken()
    transcript.reset()
    assert transcript.said == [] and transcript.retry() is None and transcript.system == "Be brief."


def test_a_conversation_survives_save_and_load(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    spoken().save(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    other = Transcript("another")
    other.load(file)
    assert other == spoken()
    assert other.said[-1] == Said("assistant", "2 and", stopped=True)
    other.undo()
    other.save(file)  # over an earlier save
    assert len(read_saved(file).messages) == 2


def test_save_overwrites_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("years of work")
    with pytest.raises(BadRequest, match="another name"):
        spoken().save(file)
    assert file.read_text() == "years of work"
    with pytest.raises(BadRequest, match="cannot write"):
        spoken().save(tmp_path / "no" / "folder.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read"),
        ("no json", "no saved conversation"),
        (
            '{"format": "oxlo-chat-1", "model": "m", "messages": [{"role": "user"}]}',
            r"content.*messages\[0\]",
        ),
        ('{"format": "oxlo-chat-9", "model": "m", "messages": []}', "oxlo-chat-9.*reads 'oxlo-chat-1'"),
        (
            '{"format": "oxlo-chat-1", "model": "m", "messages": [{"role": "user", "content": "a"}]}',
            "alternate",
        ),
        ('{"format": "oxlo-chat-1", "model": "m", "messages": [{"role": "tool", "content": "a"}]}', "tool"),
    ],
)
def test_load_says_what_is_wrong_and_changes_nothing(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "talk.json"
    if content is not None:
        file.write_text(content)
    transcript = spoken()
    with pytest.raises(BadRequest, match=said):
        transcript.load(file)
    assert transcript == spoken()


# -- what it cost -----------------------------------------------------------------------------------------------

WHOLE = Answer("text", Head("e_1", "0.0010"), "m", "stop", ChatUsage(20, 11, PromptDetails(16)), 0.5, 2.5)
STOPPED = Answer("te", Head("e_2", "0.0010"), "m", None, None, 0.5, 1.0, stopped=True)
NOTHING = Answer("", Head("e_3", "0.0010"), "m", None, None, None, 0.2, stopped=True)


def test_stats_tell_tokens_speed_price_and_entry() -> None:
    totals = Totals()
    for each in (STOPPED, NOTHING, WHOLE):
        totals.add(each)
    said = "\n".join(stats_lines(WHOLE, totals))
    for words in (
        "20 prompt tokens (16 cached)",
        "11 completion tokens",
        "first output 500 ms",
        "5.0 tokens/s",
        "e_1",
    ):
        assert words in said
    assert totals.price == Decimal("0.0020")  # what was stopped before any output is refunded
    assert "3 answers" in said and "2 stopped" in said and "0.0020 USD" in said
    assert stats_lines(None, Totals()) == ["nothing asked yet"]


def test_json_knows_what_it_does_not_know() -> None:
    assert answer_object(WHOLE).tokens_per_second == 5.0
    assert answer_object(NOTHING).first_output_ms is None and answer_object(NOTHING).usage is None


# -- over HTTP --------------------------------------------------------------------------------------------------


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server() as server:
        yield server


def test_an_answer_is_shown_piece_by_piece(stub: Stub) -> None:
    stub.replies[CHAT] = [answer("Hel", "lo", cached=3)]
    shown: list[str] = []
    with Client(stub.address) as client:
        got = ask(client, spoken().body("?"), shown.append)
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
        got = ask(client, spoken().body("?"), stop_at_three)
        assert got.stopped and got.text == "la la la " and got.usage is None
        assert endless.left.wait(5)


def test_the_model_is_the_first_chat_model_that_is_ready(stub: Stub) -> None:
    items = [("e", "embedding", "ready"), ("big", "chat", "stopped"), ("small", "chat", "ready")]
    data = [{"id": name, "kind": kind, "status": status} for name, kind, status in items]
    stub.replies["/v1/models"] = [Reply([json.dumps({"data": data}).encode()])]
    stub.replies["/v1/models/e"] = [Reply([json.dumps(data[0]).encode()])]
    stub.replies["/v1/models/x"] = [refusal(404, "model_not_found", "no x; did you mean e?")]
    with Client(stub.address) as client:
        assert pick_model(client, None) == "small"
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
