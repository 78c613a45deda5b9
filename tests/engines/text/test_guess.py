"""Guesses: what repeats is found, what was guessed in vain is remembered, and what does not pay is left alone."""

import math
import random
from collections.abc import Sequence

import pytest

from oxlo_local.engines.text.guess import (
    ROWS,
    SHORTEST,
    Account,
    Chance,
    Costs,
    Guess,
    Lookup,
    Trust,
    choose,
    expected,
    most_sequences,
)

# One core of a CPU: 1 row 7 ms, 2 rows 31 ms, 16 rows 51 ms. And a GPU, to which rows are nothing.
CPU = Costs([(1, 7.0), (2, 31.0), (4, 46.0), (8, 53.0), (16, 51.0), (32, 105.0)], together=8)
GPU = Costs([(1, 10.0), (2, 10.1), (4, 10.2), (8, 10.4), (16, 10.8), (32, 11.5)], together=2)


def after(
    tokens: Sequence[int], length: int = 4, *, answer: Sequence[int] = (), prediction: Sequence[int] = ()
) -> list[int]:
    """What is guessed to follow a prompt and an answer."""
    lookup = Lookup(tokens, prediction)
    lookup.follow([*tokens, *answer])
    return lookup.guess(length).tokens if lookup.chance() else []


# -- finding what repeats ---------------------------------------------------------------------------------------------


def test_what_followed_the_last_time_is_guessed() -> None:
    assert after([1, 2, 3, 4, 5, 6, 9, 1, 2]) == [3, 4, 5, 6]
    assert after([1, 2, 3, 8, 1, 2, 4, 8, 9, 1, 2], 1) == [4]
    assert after([1, 2, 3, 4]) == []
    assert after([7, 1, 8, 1]) == []  # one token alone


def test_the_longest_match_wins_over_the_latest() -> None:
    assert after([5, 1, 2, 3, 6, 6, 9, 2, 3, 7, 7, 4, 5, 1, 2, 3], 2) == [6, 6]


def test_a_loop_is_guessed_for_as_long_as_asked() -> None:
    assert after([1, 2, 3, 1, 2, 3], 8) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert after([5, 5, 5], 4) == [5, 5, 5, 5]


def test_no_image_is_guessed() -> None:
    assert after([1, 2, 3, -5, -6, 9, 1, 2], 4) == [3]
    assert after([1, 2, -5, -6, 9, 1, 2], 4) == []


def test_an_answer_begins_as_predicted() -> None:
    """The first token of an answer is enough, since the prediction stands where an answer would."""
    assert after([40, 41, 42, 43], 4, answer=[7], prediction=[7, 8, 9, 10, 11]) == [8, 9, 10, 11]


def test_a_prediction_is_left_where_it_ends() -> None:
    assert after([40, 41], 4, answer=[7, 8], prediction=[7, 8, 9]) == [9]
    assert after([40, 41], 4, answer=[7, 8, 9], prediction=[7, 8, 9]) == []


def test_a_guess_says_whether_it_was_predicted() -> None:
    prompt, answer = [1, 2, 3, 4, 8], [9, 1, 2]
    own, told = Lookup(prompt), Lookup(prompt, prediction=[9, 1, 2, 6])
    for lookup in (own, told):
        lookup.follow([*prompt, *answer])
    assert not own.guess(2).predicted
    assert told.guess(2).predicted and told.guess(2).tokens == [6]


def test_following_token_by_token_finds_the_longest_match() -> None:
    chance = random.Random(1)
    tokens = chance.choices(range(6), k=40)
    lookup = Lookup(tokens)
    for _ in range(400):
        lookup.follow(tokens)
        longest = max(agreement(tokens, place) for place in range(1, len(tokens)))
        assert lookup.matched <= longest
        assert (lookup.matched == 0) == (longest < SHORTEST)
        if lookup.matched:
            (guessed,) = lookup.guess(1).tokens
            end = tokens[-lookup.matched :]
            places = [i for i in range(len(end), len(tokens)) if tokens[i - len(end) : i] == end]
            assert guessed in [tokens[i] for i in places]
        tokens = [*tokens, chance.randrange(6)]


def agreement(tokens: Sequence[int], place: int) -> int:
    """Tokens before `place` that are those at the end."""
    return next((i for i in range(place) if tokens[place - 1 - i] != tokens[-1 - i]), place)


def test_a_match_grows_beyond_what_is_searched() -> None:
    text = random.Random(2).choices(range(1000), k=300)
    tokens = [*text, *text[:2]]
    lookup = Lookup(tokens)
    lookup.follow(tokens)
    tokens = [*tokens, *text[2:200]]
    lookup.follow(tokens)
    assert lookup.matched == 200
    assert lookup.guess(5).tokens == text[200:205]


# -- chance -----------------------------------------------------------------------------------------------------------


def test_a_longer_match_is_a_better_chance_and_a_miss_makes_it_worse() -> None:
    trust = Trust()
    before = trust.chance(4, 100)
    assert before < trust.chance(40, 100) < 1
    trust.learn(0.0)
    missed = trust.chance(4, 100)
    assert missed < before
    assert missed < trust.chance(4, 200) < before, "a miss is forgotten in time"
    trust.learn(1.0)
    assert trust.chance(4, 200) == before, "a guess that came true settles it"


def test_a_guess_holds_up_to_its_first_miss() -> None:
    guess = Guess([1, 2, 3, 4], Trust())
    assert [guess.check(token) for token in (1, 2, 9, 4)] == [True, True, False, False]
    assert guess.accepted == 2
    whole = Guess([1, 2], Trust())
    assert [whole.check(token) for token in (1, 2, 3)] == [True, True, False]


def test_expected_is_a_geometric_sum() -> None:
    assert expected(0.0, 5) == 1
    assert expected(1.0, 5) == 6
    assert expected(0.5, 2) == pytest.approx(1 + 0.5 + 0.25)


# -- length -----------------------------------------------------------------------------------------------------------


def test_a_gpu_guesses_at_little_a_cpu_only_at_much() -> None:
    assert choose([Chance(0.75)], 1, GPU, rows=500).length > 0
    assert choose([Chance(0.75)], 1, CPU, rows=500).length == 0
    assert choose([Chance(0.98)], 1, CPU, rows=500).length == 15, "the size that the kernels are made for"


def test_nobody_pays_for_the_speed_of_one() -> None:
    assert choose([Chance(0.999)], 1, CPU, rows=500).length > 0
    assert choose([Chance(0.999)], 4, CPU, rows=500).length == 0
    assert choose([Chance(0.999)] * 2, 2, CPU, rows=500).sequences == 2


def test_whoever_has_no_chance_is_left_out() -> None:
    choice = choose([Chance(0.99), Chance(0.99), Chance(0.01)], 3, CPU, rows=500)
    assert choice.sequences == 2


def test_a_step_has_room_for_so_many_rows() -> None:
    choice = choose([Chance(0.99)] * 4, 4, GPU, rows=20)
    assert 0 < choice.sequences * (choice.length + 1) <= 20
    assert choose([Chance(0.99)], 1, GPU, rows=1).length == 0


def test_drafting_costs_too() -> None:
    slow, quick = Costs(GPU.seconds, 2, draft=9.0), Costs(GPU.seconds, 2, draft=0.1)
    assert choose([Chance(0.8, drafted=True)], 1, slow, rows=500).length == 0
    assert choose([Chance(0.8, drafted=True)], 1, quick, rows=500).length > 0
    assert choose([Chance(0.8)], 1, slow, rows=500).length > 0, "what is looked up is free"


def test_from_some_number_of_sequences_on_nothing_pays() -> None:
    floor = Costs([(1, 1.0), *((rows, float(rows)) for rows in ROWS)], together=2)
    assert most_sequences(floor, rows=500) == 0, "every row costs the same: nothing is gained"
    assert 1 <= most_sequences(CPU, rows=500) < 16 <= most_sequences(GPU, rows=5000)


def test_costs_beyond_the_measured_never_fall_however_noisy_it_was() -> None:
    noisy = Costs([(1, 42.0), (4, 66.0), (8, 60.0), (16, 81.0), (32, 61.0)], together=2)
    assert noisy.graph(6) == 63 and noisy.graph(400) == 61
    assert most_sequences(noisy, rows=124) >= 0


def test_costs_go_on_in_straight_lines() -> None:
    assert CPU.graph(12) == pytest.approx((53 + 51) / 2)
    assert CPU.graph(64) == pytest.approx(105 + 2 * (105 - 51))
    assert Costs([(1, 5.0)], together=2).graph(8) == 40
    assert (CPU.plain(0), CPU.plain(4), CPU.plain(16)) == (0, 28, 51)


# -- account ----------------------------------------------------------------------------------------------------------


def guessing_steps(account: Account, gains: Sequence[float]) -> int:
    """In how many of so many steps guesses are made, each of which brings what stands there."""
    made = 0
    for gain in gains:
        if account.willing():
            made += 1
            account.book(gain)
    return made


def test_guesses_that_lose_are_given_up_and_tried_again_ever_more_rarely() -> None:
    assert guessing_steps(Account(), [-3.0] * 100) == 4, "two, then one after 16 steps and one after 32 more"
    assert guessing_steps(Account(), [-3.0] * 10_000) < 30


def test_guesses_that_gain_go_on() -> None:
    assert guessing_steps(Account(), [0.5, 0.5, -0.8] * 100) == 300


def test_what_gains_again_is_trusted_again() -> None:
    account = Account()
    guessing_steps(account, [-3.0] * 10_000)
    assert guessing_steps(account, [3.0] * 1000) > 400
    assert guessing_steps(account, [3.0] * 100) == 100


def test_a_delay_is_what_each_sequence_loses() -> None:
    assert CPU.delay(1, 1, 15, 0) == pytest.approx(math.log(51 / 7))
    assert CPU.delay(8, 8, 1, 0) == pytest.approx(8 * math.log(51 / 53))
    assert choose([Chance(0.99)], 1, CPU, rows=500).delay == pytest.approx(CPU.delay(1, 1, 15, 0))
