"""Equal shares: nobody starves, whatever the lengths of lists and of inputs."""

import random

from oxlo_local.engines.embedding.packing import Pick, Queue, pack


def test_a_step_is_filled_by_turns() -> None:
    queues = [Queue([10, 10, 10]), Queue([10, 10])]
    assert pack(queues, tokens=40, sequences=9) == [Pick(0, 0), Pick(1, 0), Pick(0, 1), Pick(1, 1)]


def test_shares_are_counted_in_tokens() -> None:
    queues = [Queue([30] * 9), Queue([10] * 9)]
    picks = pack(queues, tokens=120, sequences=99)
    assert [pick.place for pick in picks].count(1) == 6 and [pick.place for pick in picks].count(0) == 2


def test_it_never_exceeds_what_a_step_holds() -> None:
    assert len(pack([Queue([1] * 50)], tokens=100, sequences=7)) == 7
    assert pack([Queue([60, 60])], tokens=100, sequences=7) == [Pick(0, 0)]
    assert pack([], tokens=100, sequences=7) == [] == pack([Queue([5], next=1)], tokens=9, sequences=7)


def test_an_input_that_fills_a_step_gets_one() -> None:
    """The short ones pass it once, and then it is the one served least."""
    queues = [Queue([20] * 100), Queue([100], served=10)]
    queues[0].served = 5
    first = pack(queues, tokens=100, sequences=99)
    assert Pick(1, 0) not in first
    queues[0].served += 20 * len(first)
    queues[0].next = len(first)
    assert pack(queues, tokens=100, sequences=99) == [Pick(1, 0)]


def test_everything_is_computed_once_and_in_order() -> None:
    dice = random.Random(7)
    queues = [Queue([dice.randint(1, 64) for _ in range(dice.randint(1, 200))]) for _ in range(12)]
    done: list[list[int]] = [[] for _ in queues]
    while picks := pack(queues, tokens=64, sequences=16):
        assert sum(queues[place].sizes[item] for place, item in picks) <= 64
        for place, item in picks:
            done[place].append(item)
            queues[place].next, queues[place].served = (
                item + 1,
                queues[place].served + queues[place].sizes[item],
            )
    assert done == [list(range(len(queue.sizes))) for queue in queues]
