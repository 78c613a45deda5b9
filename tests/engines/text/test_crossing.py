"""Two threads take turns, strictly, and nobody waits for ever."""

import threading

from oxlo_local.engines.text.crossing import Crossing


def test_steps_and_slices_alternate_and_never_overlap() -> None:
    crossing, log = Crossing(turns=True), []
    stepping, over = threading.Event(), threading.Event()

    def encode() -> None:
        with crossing.encoding():
            while not over.is_set():
                log.append("n")
                assert not stepping.is_set()
                threading.Event().wait(0.005)
                crossing.between()

    thread = threading.Thread(target=encode)
    with crossing.step():
        thread.start()
    for _ in range(20):
        with crossing.step():
            stepping.set()
            log.append("S")
            stepping.clear()
    over.set()
    thread.join(10)
    assert not thread.is_alive()
    slices = "".join(log).strip("n").strip("S").split("S")
    assert len(slices) == 19
    # A slice of at least 20 ms after each step, in nodes of 5 ms; a slow machine may take fewer of them.
    assert all(1 <= len(nodes) <= 6 for nodes in slices), slices


def test_where_there_are_cores_for_both_nobody_waits() -> None:
    crossing = Crossing(turns=False)
    with crossing.encoding(), crossing.step():
        assert crossing.between() is False


def test_an_encoder_alone_is_not_held_up() -> None:
    crossing = Crossing(turns=True)
    with crossing.encoding():
        assert not any(crossing.between() for _ in range(1000))


def test_steps_alone_are_not_held_up() -> None:
    crossing = Crossing(turns=True)
    for _ in range(1000):
        with crossing.step():
            pass


def test_an_encoder_is_asked_often_while_others_step() -> None:
    crossing = Crossing(turns=True)
    with crossing.step():
        pass
    with crossing.encoding():
        assert crossing.between() is True


def test_a_failing_step_or_encoder_gives_its_turn_back() -> None:
    crossing = Crossing(turns=True)
    for hold in (crossing.step, crossing.encoding):
        try:
            with hold():
                raise RuntimeError("it breaks")
        except RuntimeError:
            pass
    with crossing.step():
        pass
