"""Text output: whole characters, no stop strings, and which tokens have been shown."""

import codecs
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from oxlo_local.engines.text.output import STOP_CHARACTERS, TextOutput
from oxlo_local.errors import BadRequest


def naive(text: str, stop: list[str]) -> str:
    """The definition, over the whole text: cut at the stop that completes first, the longest of several."""
    for end in range(1, len(text) + 1):
        hits = [len(string) for string in stop if text[:end].endswith(string)]
        if hits:
            return text[: end - max(hits)]
    return text


def run(pieces: list[bytes], stop: list[str]) -> list[str]:
    output = TextOutput(stop)
    return [*(output.feed(piece) for piece in pieces), output.finish()]


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[a:b] for a, b in zip([0, *edges], [*edges, len(data)], strict=True)]


# Few letters, so that stops do occur; the bytes include broken UTF-8.
LETTERS = "abé世🦙"
byte_texts = st.one_of(
    st.text(LETTERS, max_size=40).map(str.encode),
    st.lists(st.sampled_from([b"a", b"b", b"\xc3", b"\xa9", b"\xf0\x9f", b"\xa6\x99", b"\xff"])).map(
        b"".join
    ),
    st.binary(max_size=40),
)
stops = st.lists(st.text(LETTERS + "\ufffd", min_size=1, max_size=5), max_size=4)


@given(byte_texts, stops, st.lists(st.integers(0, 1000), max_size=12))
@example(b"abcd", ["bc", "abcd"], [1, 2, 3])
@example(b"aab", ["ab"], [1, 2])
@example(b"xabaabab", ["abab"], [3])
def test_any_cutting_gives_the_text_of_the_whole(data: bytes, stop: list[str], cuts: list[int]) -> None:
    assert "".join(run(chunks(data, cuts), stop)) == naive(data.decode("utf-8", "replace"), stop)


@given(byte_texts, stops, st.lists(st.integers(0, 1000), max_size=12))
def test_a_token_is_released_with_its_last_character(data: bytes, stop: list[str], cuts: list[int]) -> None:
    """Held against offsets counted the slow way: the characters that the bytes so far have begun."""
    pieces = chunks(data, cuts)
    output = TextOutput(stop)
    shown = released = 0
    for count, piece in enumerate(pieces, start=1):
        shown += len(output.feed(piece))
        released += output.release()
        assert released <= count
        assert released == sum(begun(pieces[:k]) <= shown for k in range(1, count + 1))
    shown += len(output.finish())
    released += output.release()
    assert released == sum(begun(pieces[:k]) <= shown for k in range(1, len(pieces) + 1))
    if not output.stopped:
        assert released == len(pieces)


def begun(pieces: list[bytes]) -> int:
    """Characters that these bytes hold, an incomplete last one included."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    whole = len(decoder.decode(b"".join(pieces)))
    return whole + bool(decoder.getstate()[0])


@given(byte_texts, stops, st.lists(st.integers(0, 1000), max_size=12))
def test_no_more_is_held_than_a_stop_may_need(data: bytes, stop: list[str], cuts: list[int]) -> None:
    output = TextOutput(stop)
    shown, fed = "", b""
    for piece in chunks(data, cuts):
        shown, fed = shown + output.feed(piece), fed + piece
        if output.stopped:
            break
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(fed)
        needed = max((k for s in stop for k in range(1, len(s)) if text.endswith(s[:k])), default=0)
        assert shown == text[: len(text) - needed]


def test_a_stop_across_tokens_is_not_shown() -> None:
    assert run([b"Hello", b"\nUs", b"er", b": x"], ["\nUser:"]) == ["Hello", "", "", "", ""]


def test_what_looked_like_a_stop_is_shown_once_it_is_none() -> None:
    assert run([b"a\nUs", b"age"], ["\nUser:"]) == ["a", "\nUsage", ""]


def test_an_unmet_stop_is_shown_at_the_end() -> None:
    assert run([b"a\nUser"], ["\nUser:"]) == ["a", "\nUser"]


def test_the_stop_that_completes_first_wins_and_then_the_longest() -> None:
    assert "".join(run([b"xabcd"], ["bc", "abcd"])) == "xa"
    assert "".join(run([b"xabc"], ["bc", "abc", "c"])) == "x"


@pytest.mark.parametrize(
    ("text", "stop", "met"),
    [
        ("xabcdx", ["bc", "abcd"], "bc"),
        ("xabc", ["bc", "abc"], "abc"),
        ("xab", ["abc"], None),
        ("x", [], None),
    ],
)
def test_it_says_which_stop_was_met(text: str, stop: list[str], met: str | None) -> None:
    output = TextOutput(stop)
    for character in text:
        output.feed(character.encode())
    output.finish()
    assert output.met == met


def test_a_stop_of_one_character() -> None:
    assert run([b"one", b"tw.o", b"three"], ["."]) == ["one", "tw", "", ""]


def test_a_stop_of_many_bytes_split_inside_a_character() -> None:
    raw = "okay 世界 more".encode()
    assert "".join(run([raw[:7], raw[7:10], raw[10:]], ["世界"])) == "okay "


def test_text_after_a_stop_is_ignored() -> None:
    output = TextOutput(["x"])
    assert (output.feed(b"ax"), output.stopped, output.feed(b"b\xc3"), output.finish()) == ("a", True, "", "")


def test_an_incomplete_end_shows_once_per_maximal_subpart() -> None:
    assert run([b"a\xf0\x9f", b"\xa6"], []) == ["a", "", "\ufffd"]
    assert "".join(run([b"\xe4", b"A", b"\xff\xfe"], [])) == b"\xe4A\xff\xfe".decode("utf-8", "replace")


def test_tokens_of_a_stop_are_not_released() -> None:
    output = TextOutput(["STOP"])
    counts = []
    for piece in (b"one", b" S", b"it S", b"TO", b"P and"):
        output.feed(piece)
        counts.append(output.release())
    assert counts == [1, 0, 1, 0, 0]
    assert output.finish() == ""
    assert output.release() == 0


def test_a_character_over_three_tokens_is_released_with_the_third() -> None:
    output = TextOutput()
    raw = "🦙".encode()
    counts = [(output.feed(piece), output.release()) for piece in (b"a", raw[:1], raw[1:3], raw[3:], b"")]
    assert counts == [("a", 1), ("", 0), ("", 0), ("🦙", 3), ("", 1)]


@pytest.mark.parametrize(("stop", "words"), [(["a", ""], "empty"), (["x" * STOP_CHARACTERS, "y"], "4096")])
def test_stops_that_cannot_be_are_refused(stop: list[str], words: str) -> None:
    with pytest.raises(BadRequest, match=words) as refused:
        TextOutput(stop)
    assert refused.value.param == "stop"


def test_the_cost_of_a_token_does_not_grow_with_the_text_or_the_stop() -> None:
    """The worst stop for naive search, always one character short: cost per token at the end as at the start."""
    output = TextOutput(["a" * 2000 + "b"])
    times = []
    for _ in range(10):
        began = time.process_time()
        for _ in range(2000):
            output.feed(b"aaaa")
        times.append(time.process_time() - began)
    assert min(times[5:]) < 4 * min(times[:3])


def test_the_choices_of_a_call_share_what_its_stop_strings_cost() -> None:
    stop = ["".join(map(chr, range(32, 32 + STOP_CHARACTERS)))]
    began = time.process_time()
    outputs = [TextOutput(stop) for _ in range(2000)]
    assert time.process_time() - began < 1  # 2000 automata took 6 s
    assert [output.feed(stop[0][:5].encode()) for output in outputs[:2]] == ["", ""]
    assert outputs[0].feed(stop[0][5:].encode()) == "" and outputs[0].stopped and not outputs[1].stopped


def test_plain_text_costs_next_to_nothing() -> None:
    output = TextOutput()
    best = min(timed(output) for _ in range(5))
    assert best < 2e-6  # some 0.2 microseconds here: room for a slow machine, none for a scan of the text


def timed(output: TextOutput) -> float:
    began = time.process_time()
    for _ in range(10_000):
        output.feed(b" word")
    return (time.process_time() - began) / 10_000
