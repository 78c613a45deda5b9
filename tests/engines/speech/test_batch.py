"""Who shares a batch: one kind of options, files in turn, nobody kept waiting by a long file."""

from hypothesis import given
from hypothesis import strategies as st

from oxlo_local.engines.speech.batch import LOGITS, Key, share
from oxlo_local.engines.turns import Turn

GREEDY = Key(0.0, encoded=False, prompt=4, logprobs=False)
AGAIN = Key(0.2, encoded=True, prompt=4, logprobs=False)
PROMPTED = Key(0.0, encoded=False, prompt=9, logprobs=False)


def test_a_short_clip_is_in_the_next_batch_of_a_long_file() -> None:
    long, clip = Turn([GREEDY] * 100, had=400), Turn([GREEDY], had=400)
    share([long, clip], 8)
    assert clip.picked == [0] and long.picked == [0, 1, 2, 3, 4, 5, 6]


def test_a_clip_with_other_options_chooses_the_next_batch() -> None:
    long, clip = Turn([GREEDY] * 100, had=407), Turn([PROMPTED], had=400)
    share([long, clip], 8)
    assert clip.picked == [0] and long.picked == []


def test_files_give_in_turn() -> None:
    files = [Turn([GREEDY] * 5), Turn([GREEDY] * 2), Turn([GREEDY] * 9)]
    share(files, 9)
    assert [len(file.picked) for file in files] == [4, 2, 3]


def test_what_failed_goes_first_and_together() -> None:
    first, second = Turn([AGAIN, GREEDY, AGAIN, GREEDY]), Turn([GREEDY, AGAIN], had=3)
    share([first, second], 8)
    assert first.picked == [0, 2] and second.picked == [1]


def test_probabilities_of_all_tokens_are_kept_of_few() -> None:
    file = Turn([Key(0.0, encoded=False, prompt=4, logprobs=True)] * 8)
    share([file], 8)
    assert len(file.picked) == LOGITS


def test_nothing_waits() -> None:
    share([], 8)
    share([Turn([])], 8)


keys = st.lists(st.sampled_from([GREEDY, AGAIN, PROMPTED]), max_size=12)


@given(st.lists(st.tuples(keys, st.integers(0, 50)), max_size=6), st.integers(1, 16))
def test_a_batch_has_one_key_and_is_as_full_as_can_be(files: list[tuple[list[Key], int]], size: int) -> None:
    turns = [Turn(keys, had) for keys, had in files]
    share(turns, size)
    picked = [turn.keys[place] for turn in turns for place in turn.picked]
    waiting = [turn for turn in turns if turn.keys]
    if not waiting:
        assert not picked
        return
    assert len(set(picked)) == 1
    key = picked[0]
    assert len(picked) == min(size, sum(one == key for turn in turns for one in turn.keys))
    least = min(waiting, key=lambda turn: turn.had)
    assert least.picked[0] == 0
    assert all(turn.picked == sorted(set(turn.picked)) for turn in turns)
