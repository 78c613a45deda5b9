"""Who shares a batch: pieces of one kind, jobs in turn, as many as there is room for of that kind."""

from hypothesis import given
from hypothesis import strategies as st

from oxlo_local.engines.turns import Turn, share


def test_jobs_give_in_turn_and_the_one_that_had_least_chooses() -> None:
    first, second, third = Turn("aaaaa", had=4), Turn("bb", had=1), Turn("abab", had=2)
    share([first, second, third], lambda key: 3)
    assert (first.picked, second.picked, third.picked) == ([], [0, 1], [1])


def test_there_is_room_for_fewer_of_some_kinds() -> None:
    small, large = Turn("aaa"), Turn("AAA")
    share([small, large], {"a": 2, "A": 1}.__getitem__)
    assert (small.picked, large.picked) == ([0, 1], [])
    share([again := Turn("AAA")], {"a": 2, "A": 1}.__getitem__)
    assert again.picked == [0]


@given(st.lists(st.tuples(st.text("ab", max_size=9), st.integers(0, 9)), max_size=5), st.integers(1, 9))
def test_a_batch_is_as_full_as_can_be(jobs: list[tuple[str, int]], room: int) -> None:
    turns = [Turn(keys, had) for keys, had in jobs]
    share(turns, lambda key: room)
    picked = [turn.keys[place] for turn in turns for place in turn.picked]
    assert len(set(picked)) == bool(any(keys for keys, _ in jobs))
    if picked:
        assert len(picked) == min(room, sum(keys.count(picked[0]) for keys, _ in jobs))
        counts = [
            len(turn.picked)
            for turn in turns
            if len(turn.picked) < sum(one == picked[0] for one in turn.keys)
        ]
        assert not counts or max(len(turn.picked) for turn in turns) - min(counts) <= 1
