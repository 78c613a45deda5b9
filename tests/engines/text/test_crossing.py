"""Two threads take turns, strictly, and nobody waits for ever."""

import threading

from oxlo_local.engines.text.crossing import Crossing


def test_steps_and_slices_alternate_and_never_overlap() -> None:
    crossing, log = Crossing(), []
    stepping = threading.Event()

    def encode() -> None:
        with crossing.encoding():
            for _ in range(20):
                log.append("slice")
                assert not stepping.is_set()
                crossing.between()

    thread = threading.Thread(target=encode)
    with crossing.step():
        thread.start()
    for _ in range(20):
        with crossing.step():
            stepping.set()
            log.append("step")
            stepping.clear()
    thread.join(10)
    assert not thread.is_alive()
    assert log.count("slice") == log.count("step") == 20
    together = "".join(entry[1] for entry in log)  # l = slice, t = step
    assert "tt" not in together.partition("l")[2].rpartition("l")[0], "each step was followed by a slice"


def test_an_encoder_alone_is_not_held_up() -> None:
    crossing = Crossing()
    with crossing.encoding():
        assert all(crossing.between() > 0 for _ in range(1000))


def test_steps_alone_are_not_held_up() -> None:
    crossing = Crossing()
    for _ in range(1000):
        with crossing.step():
            pass


def test_a_slice_may_last_as_long_as_the_step_before() -> None:
    crossing = Crossing()
    with crossing.step():
        threading.Event().wait(0.06)
    with crossing.encoding():
        assert 0.06 <= crossing.between() < 1.0


def test_a_failing_step_or_encoder_gives_its_turn_back() -> None:
    crossing = Crossing()
    for hold in (crossing.step, crossing.encoding):
        try:
            with hold():
                raise RuntimeError("it breaks")
        except RuntimeError:
            pass
    with crossing.step():
        pass
