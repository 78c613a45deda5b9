"""The router's decisions, without a process: admission, the window, restarts, and one end for every call."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from oxlo_local.calls import Gauges, Pong
from oxlo_local.errors import ModelNotLoaded, QueueFull, ShuttingDown
from oxlo_local.workers.router import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    LOSSES_MAX,
    MOVES,
    STABLE_AFTER,
    Action,
    Fail,
    Pulse,
    Router,
    Send,
    Spawn,
)
from tests.conftest import Clock


def router_with(queue_max: int = 4, parallel: int = 2) -> Router:
    """One model, `m`, that is ready."""
    router = Router(queue_max)
    router.add("m", True)
    router.warming("m", parallel)
    assert router.ready("m", 0.0) == []
    return router


def take(router: Router, id: str, slots: int = 1) -> list[Action]:
    router.admit("m")
    return router.submit("m", id, slots)


def restart(router: Router, now: float) -> None:
    router.restarting("m")
    router.warming("m", 2)
    router.ready("m", now)


def test_every_state_can_be_reached_and_left() -> None:
    assert set(MOVES) == {to for moves in MOVES.values() for to in moves}
    assert all(MOVES.values())


def test_an_illegal_move_is_refused() -> None:
    router = router_with()
    with pytest.raises(RuntimeError, match="cannot go from ready to starting"):
        router.restarting("m")


def test_those_of_a_lower_rank_are_sent_first_and_equals_in_their_order() -> None:
    router = router_with(queue_max=100, parallel=1)
    for number, rank in enumerate([1, 1, 2, 1, 0, 2, 0]):
        router.admit("m")
        router.submit("m", f"c{number}", 1, rank)
    assert list(router.lanes["m"].sent) == ["c0", "c1"]  # the window was open
    assert router.withdraw("c6")
    order = [action.id for held in ("c0", "c1", "c4", "c3", "c2") for action in sent(router.ended(held, 1.0))]
    assert order == ["c4", "c3", "c2", "c5"]
    assert router.lanes["m"].ranks == {}


def sent(actions: list[Action]) -> list[Send]:
    return [action for action in actions if isinstance(action, Send)]


def test_a_call_without_slots_waits_for_nobody_and_says_nothing_about_service() -> None:
    router = router_with(queue_max=100)
    for i in range(6):
        take(router, f"c{i}")
    before = router.retry_after(router.lanes["m"])
    assert take(router, "question", slots=0) == [Send("m", "question")]
    router.started("question", 1.0)
    assert router.ended("question", 1.0) == []
    assert router.retry_after(router.lanes["m"]) == before


def test_a_call_without_slots_waits_until_its_model_is_ready() -> None:
    router = Router(4)
    router.add("m", True)
    assert take(router, "question", slots=0) == []
    router.warming("m", 2)
    assert router.ready("m", 0.0) == [Send("m", "question")]


def test_the_window_is_twice_the_slots_and_first_come_is_first_sent() -> None:
    router = router_with(queue_max=100)
    sent = [action for i in range(6) for action in take(router, f"c{i}")]
    assert sent == [Send("m", f"c{i}") for i in range(4)]
    router.started("c1", 1.0)
    assert router.ended("c1", 2.0) == [Send("m", "c4")]
    assert router.withdraw("c5") and not router.withdraw("c0")


def test_queue_max_counts_those_beyond_the_free_slots() -> None:
    router = router_with(queue_max=1, parallel=2)
    for i in range(3):
        take(router, f"c{i}")
    with pytest.raises(QueueFull):
        router.admit("m")
    router.started("c0", 0.0)
    with pytest.raises(QueueFull):
        router.admit("m")
    router.ended("c0", 1.0)
    take(router, "c3")


def test_a_call_of_many_choices_takes_many_slots() -> None:
    router = router_with(queue_max=1, parallel=4)
    take(router, "wide", slots=4)
    router.started("wide", 0.0)
    take(router, "next")
    with pytest.raises(QueueFull):
        router.admit("m")


def test_the_queue_is_one_for_all_models() -> None:
    router = router_with(queue_max=2, parallel=1)
    router.add("n", True)
    for id in ("a", "b"):
        router.admit("n")
        router.submit("n", id, 1)
    take(router, "fits-a-free-slot")
    with pytest.raises(QueueFull):
        router.admit("m")


def test_retry_after_grows_with_those_refused_and_with_the_time_a_call_takes() -> None:
    router = router_with(queue_max=1, parallel=1)
    take(router, "a")
    router.started("a", 0.0)
    for i in range(30):
        take(router, f"b{i}")
        router.ended("a" if i == 0 else f"b{i - 1}", 100.0 * (i + 1))
        router.started(f"b{i}", 100.0 * (i + 1))
    take(router, "waits")
    told = []
    for _ in range(3):
        with pytest.raises(QueueFull) as refused:
            router.admit("m")
        told.append(refused.value.retry_after or 0.0)
    assert told[0] == pytest.approx(100, abs=5)
    assert told == pytest.approx([told[0], 2 * told[0], 3 * told[0]], rel=0.05)


def test_unknown_models_and_a_draining_server_admit_nobody() -> None:
    router = router_with()
    with pytest.raises(ModelNotLoaded, match="oxlo serve other"):
        router.admit("other")
    router.drain()
    with pytest.raises(ShuttingDown):
        router.admit("m")


def test_restarts_come_ever_more_slowly_and_end() -> None:
    router, now = router_with(), 0.0
    pauses = []
    for _ in range(LOSSES_MAX):
        (action,) = router.lost("m", "killed", now)
        assert isinstance(action, Spawn)
        pauses.append(action.after)
        restart(router, now)
    assert pauses == [min(FIRST_PAUSE * 2**i, LONGEST_PAUSE) for i in range(LOSSES_MAX)]
    take(router, "a")
    assert [type(action) for action in router.lost("m", "killed again", now)] == [Fail]
    assert router.lanes["m"].state == "failed" and router.lanes["m"].error == "killed again"
    with pytest.raises(ModelNotLoaded):
        router.admit("m")


def test_a_worker_that_was_stable_starts_again_at_once() -> None:
    router = router_with()
    router.lost("m", "killed", 0.0)
    restart(router, 0.0)
    assert router.lost("m", "killed", STABLE_AFTER + 1) == [Spawn("m", FIRST_PAUSE)]


def test_a_restart_that_fails_counts_as_a_loss() -> None:
    router = router_with()
    assert router.lost("m", "killed", 0.0) == [Spawn("m", FIRST_PAUSE)]
    router.restarting("m")
    assert router.lost("m", "no memory", 1.0) == [Spawn("m", 2 * FIRST_PAUSE)]


def test_pulse_tells_a_hung_step_from_a_long_call(clock: Clock) -> None:
    pulse = Pulse(step_timeout=10, silent_max=3)
    for step in range(100):
        pulse.ping()
        pulse.pong(Pong(step, step, True, Gauges()), clock.advance(5))
    assert pulse.verdict() is None
    for _ in range(2):
        pulse.pong(Pong(1, 99, True, Gauges()), clock.advance(5))
    assert pulse.verdict() is None
    pulse.pong(Pong(1, 99, True, Gauges()), clock.advance(1))
    assert "step_timeout" in (pulse.verdict() or "")


def test_pulse_lets_an_idle_engine_rest(clock: Clock) -> None:
    pulse = Pulse(step_timeout=10, silent_max=3)
    for _ in range(9):
        pulse.pong(Pong(1, 7, False, Gauges()), clock.advance(100))
    pulse.pong(Pong(1, 8, True, Gauges()), clock.advance(100))
    assert pulse.verdict() is None


def test_pulse_counts_pings_without_an_answer() -> None:
    pulse = Pulse(step_timeout=10, silent_max=3)
    assert [pulse.ping() for _ in range(3)] == [1, 2, 3]
    assert pulse.verdict() is None
    pulse.ping()
    assert "did not answer" in (pulse.verdict() or "")
    pulse.pong(Pong(4, 0, False, Gauges()), 0.0)
    assert pulse.verdict() is None


class Traffic(RuleBasedStateMachine):
    """Any order of calls, ends, deaths and restarts: every call is ended once, and none is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router(queue_max=3)
        self.router.add("m", True)
        self.now = 0.0
        self.next_id = 0
        self.open: set[str] = set()
        self.held: set[str] = set()  # by the worker

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                assert action.id in self.open and action.id not in self.held
                self.held.add(action.id)
            elif isinstance(action, Fail):
                self.open.remove(action.id)
                self.held.discard(action.id)
            else:
                self.router.restarting("m")

    @property
    def state(self) -> str:
        return self.router.lanes["m"].state

    @rule(slots=st.integers(1, 3))
    def call(self, slots: int) -> None:
        self.next_id += 1
        try:
            self.router.admit("m")
        except (QueueFull, ModelNotLoaded, ShuttingDown):
            return
        self.open.add(str(self.next_id))
        self.perform(self.router.submit("m", str(self.next_id), slots))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.held)))
        self.now += 1
        if data.draw(st.booleans()):
            self.router.started(id, self.now)
            return
        self.held.remove(id)
        self.open.remove(id)
        self.perform(self.router.ended(id, self.now))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.open)))
        if self.router.withdraw(id):
            assert id not in self.held
            self.open.remove(id)

    @precondition(lambda self: self.state == "starting")
    @rule()
    def load(self) -> None:
        self.router.warming("m", 2)
        self.perform(self.router.ready("m", self.now))

    @precondition(lambda self: self.state in ("starting", "ready", "draining"))
    @rule(seconds=st.sampled_from([1.0, 100.0, 1000.0]))
    def die(self, seconds: float) -> None:
        self.now += seconds
        self.perform(self.router.lost("m", "died", self.now))
        assert not self.held

    @rule(how=st.sampled_from(["go on", "go on", "go on", "drain", "stop"]))
    def shut(self, how: str) -> None:
        if how == "drain":
            self.router.drain()
        elif how == "stop":
            self.perform(self.router.stop())
            assert not self.open

    @invariant()
    def nothing_is_forgotten(self) -> None:
        assert self.router.lanes["m"].calls() == len(self.open)
        assert self.router.idle() == (not self.open)
        if self.state in ("failed", "stopped"):
            assert not self.open
        if self.state == "ready" and len(self.held) < 4:
            assert self.open == self.held


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
