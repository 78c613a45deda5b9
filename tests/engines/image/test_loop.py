"""A function that calls back, stepped from outside: pauses, ends, faults, and being let go."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from oxlo_local.engines.image.loop import Ended, Loop, Paused


@pytest.fixture
def loop() -> Iterator[Loop[int, str]]:
    made: Loop[int, str] = Loop()
    yield made
    made.close()


def counting(to: int, seen: list[int]) -> Callable[[Callable[[int], None]], str]:
    def work(pause: Callable[[int], None]) -> str:
        for number in range(to):
            seen.append(number)
            pause(number)
        return "over"

    return work


def test_it_stands_still_between_steps(loop: Loop[int, str]) -> None:
    seen: list[int] = []
    loop.begin(counting(3, seen))
    assert loop.busy and seen == []  # nothing is computed before it is asked for
    for number in range(3):
        came = loop.step()
        assert isinstance(came, Paused) and came.said == number
        assert seen == list(range(number + 1))
    came = loop.step()
    assert isinstance(came, Ended) and came.result == "over" and not loop.busy


def test_all_work_is_done_by_one_thread_that_was_set_up() -> None:
    threads: list[threading.Thread] = []
    loop: Loop[int, None] = Loop(lambda: threads.append(threading.current_thread()))
    for _ in range(3):
        loop.begin(lambda pause: threads.append(threading.current_thread()))
        loop.step()
    assert len(threads) == 4 and len(set(threads)) == 1
    loop.close()
    threads[0].join(5)
    assert not threads[0].is_alive()


class Large:
    """Something that must not outlive the work that made it."""


def test_what_is_let_go_ends_where_it_stands_and_leaves_nothing(loop: Loop[int, str]) -> None:
    ends: list[str] = []
    held: list[weakref.ref[Large]] = []

    def work(pause: Callable[[int], None]) -> str:
        large = Large()
        held.append(weakref.ref(large))
        try:
            try:
                pause(0)
            except Exception:
                ends.append("caught on the way")
            return "went on"
        finally:
            ends.append("left")

    loop.begin(work)
    loop.step()
    loop.let_go()
    assert ends == ["left"] and not loop.busy
    loop.begin(counting(0, []))
    assert isinstance(loop.step(), Ended)
    gc.collect()
    assert held[0]() is None
    seen: list[int] = []
    loop.begin(counting(1, seen))
    loop.let_go()  # before it was begun
    assert seen == [] and not loop.busy


def test_a_fault_is_raised_where_it_was_stepped_and_holds_nothing(loop: Loop[int, str]) -> None:
    held: list[weakref.ref[Large]] = []

    def work(pause: Callable[[int], None]) -> str:
        large = Large()
        held.append(weakref.ref(large))
        pause(0)
        raise ValueError("broken")

    loop.begin(work)
    loop.step()
    with pytest.raises(ValueError, match="broken"):
        loop.step()
    gc.collect()
    assert held[0]() is None and not loop.busy
