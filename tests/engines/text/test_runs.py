"""Where images lie in token lists and positions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oxlo_local.engines.text.runs import (
    Look,
    Placed,
    Run,
    Seen,
    at,
    boundary,
    cut_at,
    lag,
    next_position,
    splice,
    whole,
)


def flat(count: int) -> Run:
    return Run(count, count)


def grid(width: int, height: int) -> Run:
    """As M-RoPE has it: all rows of one moment, the next token behind the longer side."""
    rows = np.arange(width * height)
    offsets = np.stack([0 * rows, rows // width, rows % width, 0 * rows]).astype(np.int32)
    slopes = np.repeat(np.array([[1], [1], [1], [0]], np.int32), width * height, axis=1)
    return Run(width * height, max(width, height), offsets, slopes)


PLACED = [Placed(5, Seen(-1, grid(4, 3))), Placed(20, Seen(-20, grid(2, 2)))]


def test_a_cache_is_cut_before_a_run_or_behind_it() -> None:
    assert [whole(PLACED, keep) for keep in (0, 4, 5, 6, 16, 17, 19, 20, 21, 24)] == [
        0, 4, 5, 5, 5, 17, 19, 20, 20, 24,
    ]  # fmt: skip


def test_positions_lag_behind_tokens_by_what_images_save() -> None:
    assert [lag(PLACED, token) for token in (0, 5, 16, 17, 20, 23, 24, 99)] == [0, 0, 0, 8, 8, 8, 10, 10]


def test_boundaries_are_where_runs_begin_and_end() -> None:
    assert [boundary(PLACED, token) for token in (0, 4, 5, 16, 17, 23, 24)] == [5, 5, 17, 17, 20, 24, None]
    assert [at(PLACED, token) for token in (4, 5, 16, 17)] == [None, PLACED[0], PLACED[0], None]


def test_the_largest_position_in_a_cache_that_ends_in_an_image_is_its_beginning() -> None:
    assert [next_position(PLACED, length) for length in (5, 6, 17, 18, 20, 24, 25)] == [
        5,
        6,
        6,
        10,
        12,
        13,
        15,
    ]
    plain = [Placed(5, Seen(-1, flat(12)))]
    assert [next_position(plain, length) for length in (5, 10, 17, 18)] == [5, 10, 17, 18]


def test_rows_move_with_the_beginning_of_their_run() -> None:
    found = PLACED[0].positions(5 + 4, 3, 100)
    assert found is not None
    assert found.tolist() == [[100] * 3, [101] * 3, [100, 101, 102], [0] * 3]
    assert Placed(5, Seen(-1, flat(12))).positions(5, 3, 100) is None


def test_marks_become_runs_and_texts_are_cut_there() -> None:
    look = Look(b"k", [[7], Seen(-1, flat(3)), [8]])
    tokens, placed = splice("ab<m>c<m>", {"<m>": look}, lambda text: [ord(c) for c in text], begins=[1])
    assert tokens == [1, 97, 98, 7, -1, -2, -3, 8, 99, 7, -1, -2, -3, 8]
    assert [(mark, each.start) for mark, each in placed] == [("<m>", 4), ("<m>", 10)]


@given(st.lists(st.sampled_from(["x", "<1>", "<2>", "<1", ">"]), max_size=12))
def test_pieces_and_marks_are_the_text_again(parts: list[str]) -> None:
    text = "".join(parts)
    pieces = cut_at(text, {"<1>": 0, "<2>": 0})
    assert "".join(plain + mark for plain, mark in pieces) == text
    assert not any("<1>" in plain or "<2>" in plain for plain, _ in pieces)
