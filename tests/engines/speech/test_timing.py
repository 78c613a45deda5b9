"""Tokens become pieces with times, words are kept from reaching over pauses, and all is said in times of the file."""

import pytest

from oxlo_local.engines.speech.stretches import RATE, Stretch
from oxlo_local.engines.speech.timing import Clock, Piece, Spoken, noticed, pieces_of, settled, within

EOT, FIRST = 100, 200


def at(seconds: float) -> int:
    return FIRST + round(seconds / 0.02)


def spoken(text: str, start: float, end: float) -> Spoken:
    return Spoken(text, start, end, 0.9, 1)


def test_pieces_end_with_timestamps() -> None:
    tokens = [at(0.0), 1, 2, at(1.5), at(2.0), 3, at(2.5)]
    assert pieces_of(tokens, 8.0, FIRST, EOT) == [
        Piece(0.0, 1.5, (at(0.0), 1, 2, at(1.5))),
        Piece(2.0, 2.5, (at(2.0), 3, at(2.5))),
    ]


def test_without_timestamps_a_chunk_is_one_piece() -> None:
    assert pieces_of([1, 2, 3], 7.3, FIRST, EOT) == [Piece(0.0, 7.3, (1, 2, 3))]


def test_the_last_piece_may_lack_its_end_and_none_ends_after_the_chunk() -> None:
    tokens = [at(0.0), 1, at(1.0), at(1.0), 2]
    assert [(piece.start, piece.end) for piece in pieces_of(tokens, 5.0, FIRST, EOT)] == [
        (0.0, 1.0),
        (1.0, 5.0),
    ]
    (piece,) = pieces_of([at(0.0), 1, at(29.0)], 5.0, FIRST, EOT)
    assert piece.end == 5.0


def test_timestamps_alone_say_nothing() -> None:
    assert pieces_of([at(0.0), at(3.0)], 5.0, FIRST, EOT) == []
    assert pieces_of([], 5.0, FIRST, EOT) == []


def test_a_word_before_or_after_a_pause_does_not_cover_it() -> None:
    words = [
        spoken(" So", 0.0, 3.0),
        spoken(" we", 3.0, 3.2),
        spoken(" go.", 3.2, 5.0),
        spoken(" Now", 5.0, 9.0),
    ]
    words += [spoken(f" w{n}", 9.0 + n / 5, 9.2 + n / 5) for n in range(8)]
    first, _, go, now, *_ = settled(words)
    assert [first.start, first.end] == pytest.approx([2.6, 3.0])
    assert [go.start, go.end] == pytest.approx([3.2, 3.6])
    assert [now.start, now.end] == pytest.approx([8.6, 9.0])


def test_no_word_begins_long_before_anybody_was_heard() -> None:
    stretches = [
        Stretch(0, 2 * RATE, voice=RATE * 4 // 10),
        Stretch(9 * RATE, 12 * RATE, voice=RATE * 95 // 10),
    ]
    words = [spoken(" a", 0.0, 0.9), spoken(" b", 0.9, 1.8), spoken(" c", 2.0, 3.0), spoken(" d", 3.0, 4.0)]
    assert [word.start for word in noticed(words, stretches)] == pytest.approx([0.3, 0.9, 2.4, 3.0])
    early = [spoken(" uh", 0.0, 0.25), spoken(" a", 0.25, 0.9)]
    assert [word.start for word in noticed(early, stretches)] == pytest.approx([0.0, 0.3])
    assert noticed(words, [Stretch(0, 5 * RATE)]) == words


def test_a_piece_has_the_times_of_its_words_unless_they_reach_far_out() -> None:
    piece = Piece(2.0, 4.0, (1, 2, 3))
    words = [spoken(" a", 2.1, 2.4), spoken(" b", 2.4, 3.0), spoken(" c", 3.0, 3.8)]
    timed, same = within(piece, words)
    assert (timed.start, timed.end) == (2.1, 3.8) and same == words
    far = [spoken(" a", 0.1, 2.4), *words[1:2], spoken(" c", 3.0, 7.0)]
    timed, moved = within(piece, far)
    assert (timed.start, timed.end) == (moved[0].start, moved[-1].end)
    assert 1.0 < moved[0].start <= 2.0 and 4.0 <= moved[-1].end < 5.6
    assert within(piece, []) == (piece, [])


def test_times_of_the_file() -> None:
    clock = Clock((Stretch(10 * RATE, 12 * RATE), Stretch(60 * RATE, 63 * RATE)))
    assert clock.span(0.5, 2.0) == (10.5, 12.0)  # it ends with the first stretch, not with the second's start
    assert clock.span(2.0, 3.0) == (60.0, 61.0)
    assert clock.span(1.0, 4.0) == (11.0, 62.0)
    word = clock.word(spoken(" over", 1.9, 2.3))
    assert (word.start, word.end) == (59.9, 60.3) and word.text == " over"
