"""What a line of input means, what a conversation keeps, and what an answer cost."""

import stat
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from oxlo_local.client import ChatBody, ChatUsage, Head, PromptDetails, Turn
from oxlo_local.errors import BadRequest
from oxlo_local.transcript import (
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


def test_bytes_that_are_no_text_are_not_sent() -> None:
    with pytest.raises(BadRequest, match="no UTF-8 text"):
        spoken().body("caf\udce9")
    assert spoken().body("\N{PILE OF POO}").messages[-1].content == "\N{PILE OF POO}"


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
    file.chmod(0o644)
    other.save(file)  # over an earlier save
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(read_saved(file).messages) == 2


def test_save_overwrites_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("years of work")
    with pytest.raises(BadRequest, match="another name"):
        spoken().save(file)
    assert file.read_text() == "years of work"
    for place in ("no/folder.json", "a" * 300):
        with pytest.raises(BadRequest, match="cannot write"):
            spoken().save(tmp_path / place)


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
    assert answer_object(replace(WHOLE, total=0.501)).tokens_per_second is None  # it came in one piece
    assert answer_object(NOTHING).first_output_ms is None and answer_object(NOTHING).usage is None
