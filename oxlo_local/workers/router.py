"""Which call goes where, and what becomes of a model whose process is lost. Pure: no clock, no process, no await.

Every model has a lane: its state, the calls that wait in the parent and those that its worker holds. Each method takes
what has happened (and the time) and returns the actions that follow, for the supervisor to perform. The rules:

- One bounded queue for the whole server: at most `queue_max` calls may wait beyond what the models can run at once.
- A worker is sent a window of twice its slots, so that its next step never waits for the parent; the rest stays here,
  where a worker's death does not reach it.
- A first start that fails is final: the file, the memory or the engine is wrong, and trying again would only hide the
  engine's own words. A worker that was once ready is started again, ever more slowly, and given up in the end.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from oxlo_local.calls import Pong
from oxlo_local.errors import ModelNotLoaded, QueueFull, ShuttingDown

State = Literal["starting", "warming", "ready", "draining", "backing_off", "failed", "stopped"]

MOVES: dict[State, frozenset[State]] = {
    "starting": frozenset({"warming", "backing_off", "failed", "stopped"}),
    "warming": frozenset({"ready", "backing_off", "failed", "stopped"}),
    "ready": frozenset({"draining", "backing_off", "failed", "stopped"}),
    "draining": frozenset({"stopped"}),
    "backing_off": frozenset({"starting", "stopped"}),
    "failed": frozenset({"stopped"}),
    "stopped": frozenset({"starting"}),
}

MIDDLE_RANK = 1  # of a call that nothing is said about
LOSSES_MAX = 5  # a worker lost more often than this within the window is given up
LOSS_WINDOW = 600.0  # seconds
FIRST_PAUSE = 0.25  # seconds before the first restart; doubled with each further one
LONGEST_PAUSE = 30.0
STABLE_AFTER = 60.0  # seconds of being ready after which a loss counts as the first one again
SERVICE_GUESS = 2.0  # seconds a call is thought to take before any has been seen
SERVICE_WEIGHT = 0.2  # of the newest call in the running mean
LONGEST_RETRY = 600.0


@dataclass(frozen=True)
class Spawn:
    """Start a process for the model, `after` seconds from now."""

    model: str
    after: float


@dataclass(frozen=True)
class Send:
    """Hand the call to the model's worker."""

    model: str
    id: str


@dataclass(frozen=True)
class Fail:
    """End the call: `code` is one of errors.py."""

    id: str
    code: str
    message: str


Action = Spawn | Send | Fail


@dataclass
class Lane:
    """One model. Calls move from `waiting` to `sent` to `running`; each is counted with the slots that it takes."""

    model: str
    required: bool
    state: State = "stopped"
    parallel: int = 1
    held: int = 0  # admitted, their rows being written
    waiting: dict[str, int] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)  # of those that wait; a lower one goes first
    sent: dict[str, int] = field(default_factory=dict)
    running: dict[str, tuple[int, float]] = field(default_factory=dict)  # slots, time of the start
    service: float = SERVICE_GUESS
    refused: int = 0  # turned away since a place was last free
    error: str = ""
    restarts: int = 0
    was_ready: bool = False
    ready_at: float = 0.0
    pause: float = FIRST_PAUSE
    losses: list[float] = field(default_factory=list)

    def serving(self) -> bool:
        """Whether its worker takes calls."""
        return self.state in ("ready", "draining")

    def calls(self) -> int:
        """Calls that it owes an end, those being admitted included."""
        return self.held + len(self.waiting) + len(self.sent) + len(self.running)

    def queued(self) -> int:
        """Calls that wait beyond the slots that are free."""
        pending = self.held + len(self.waiting) + len(self.sent)
        taken = sum(slots for slots, _ in self.running.values())
        return max(0, pending - max(0, self.parallel - taken)) if self.serving() else pending


class Router:
    """All lanes of a server."""

    def __init__(self, queue_max: int) -> None:
        self.lanes: dict[str, Lane] = {}
        self.draining = False
        self._queue_max = queue_max
        self._lane_of: dict[str, Lane] = {}

    # -- models -------------------------------------------------------------------------------------------------------

    def add(self, model: str, required: bool) -> None:
        """Open a lane for a model that is about to be started: from now on calls for it wait."""
        lane = self.lanes[model] = Lane(model, required)
        self._move(lane, "starting")

    def restarting(self, model: str) -> None:
        """Its pause is over, and its process is being started."""
        self._move(self.lanes[model], "starting")

    def warming(self, model: str, parallel: int) -> None:
        """It has loaded, with this many slots, and is answering its warm-up."""
        lane = self.lanes[model]
        lane.parallel = parallel
        self._move(lane, "warming")

    def ready(self, model: str, now: float) -> list[Action]:
        """It has answered its warm-up."""
        lane = self.lanes[model]
        self._move(lane, "ready")
        lane.was_ready, lane.ready_at, lane.error = True, now, ""
        if self.draining:
            self._move(lane, "draining")
        return list(self._pump(lane))

    def lost(self, model: str, why: str, now: float) -> list[Action]:
        """Its process has ended, for the reason `why`: fail what it held, then start again or give up."""
        lane = self.lanes[model]
        actions: list[Action] = []
        for id in [*lane.sent, *lane.running]:
            self._forget(lane, id)
            actions.append(
                Fail(id, "worker_lost", f"the process of model {model!r} ended while it held the request")
            )
        if self.draining or lane.state in ("draining", "stopped"):
            if lane.state != "stopped":
                self._move(lane, "stopped")
            return actions + self._fail_waiting(lane, "shutting_down", "the server is shutting down")
        lane.error = why
        pause = self._pause(lane, now)
        if pause is None:
            self._move(lane, "failed")
            return actions + self._fail_waiting(lane, ModelNotLoaded.code, failed_message(lane))
        self._move(lane, "backing_off")
        lane.restarts += 1
        return [*actions, Spawn(model, pause)]

    def _pause(self, lane: Lane, now: float) -> float | None:
        """Seconds before the next start; None = no more starts."""
        if not lane.was_ready:
            return None
        if lane.state == "ready" and now - lane.ready_at >= STABLE_AFTER:
            lane.pause = FIRST_PAUSE
        lane.losses = [at for at in lane.losses if now - at < LOSS_WINDOW] + [now]
        if len(lane.losses) > LOSSES_MAX:
            return None
        pause, lane.pause = lane.pause, min(2 * lane.pause, LONGEST_PAUSE)
        return pause

    def drain(self) -> None:
        """Admit nobody any more; what was admitted goes on."""
        self.draining = True
        for lane in self.lanes.values():
            if lane.state == "ready":
                self._move(lane, "draining")

    def stop(self) -> list[Action]:
        """The end: whatever is still here fails, and no lane starts again."""
        self.drain()
        actions: list[Action] = []
        for lane in self.lanes.values():
            for id in [*lane.waiting, *lane.sent, *lane.running]:
                self._forget(lane, id)
                actions.append(Fail(id, "shutting_down", "the server is shutting down"))
            if lane.state != "stopped":
                self._move(lane, "stopped")
        return actions

    def idle(self) -> bool:
        """Whether no call is owed an end."""
        return not any(lane.calls() for lane in self.lanes.values())

    # -- calls --------------------------------------------------------------------------------------------------------

    def admit(self, model: str) -> None:
        """Hold a place for a call. Raises ShuttingDown, ModelNotLoaded or QueueFull."""
        if self.draining:
            raise ShuttingDown("the server is shutting down", retry_after=LONGEST_PAUSE)
        lane = self.lanes.get(model)
        if lane is None:
            raise ModelNotLoaded(f"model {model!r} is not loaded; start it with: oxlo serve {model}")
        if lane.state == "failed":
            raise ModelNotLoaded(failed_message(lane))
        # The queue bounds those who wait beyond the free slots: whoever finds a free slot is always let in.
        before = lane.queued()
        lane.held += 1
        if lane.queued() > before and sum(one.queued() for one in self.lanes.values()) > self._queue_max:
            lane.held -= 1
            lane.refused += 1
            raise QueueFull(
                f"the queue is full: {self._queue_max} requests are waiting; try again later",
                retry_after=self.retry_after(lane),
            )

    def leave(self, model: str) -> None:
        """Give a held place back."""
        self.lanes[model].held -= 1

    def submit(self, model: str, id: str, slots: int, rank: int = MIDDLE_RANK) -> list[Action]:
        """A call takes its held place; it needs `slots` sequences, and goes before those of a higher rank."""
        lane = self.lanes[model]
        lane.held -= 1
        if lane.state == "failed":
            return [Fail(id, ModelNotLoaded.code, failed_message(lane))]
        if lane.state == "stopped" and self.draining:
            return [Fail(id, ShuttingDown.code, "the server is shutting down")]
        self._lane_of[id] = lane
        if slots == 0 and lane.serving():  # it waits for nobody, and nobody for it
            lane.sent[id] = slots
            return [Send(lane.model, id)]
        lane.waiting[id], lane.ranks[id] = slots, rank
        return list(self._pump(lane))

    def started(self, id: str, now: float) -> None:
        """The call has left its worker's queue."""
        lane = self._lane_of.get(id)
        if lane is not None and (slots := lane.sent.pop(id, None)) is not None:
            lane.running[id] = (slots, now)

    def ended(self, id: str, now: float) -> list[Action]:
        """The worker is through with the call, in whatever way."""
        lane = self._lane_of.get(id)
        if lane is None:
            return []
        slots, began = lane.running.get(id, (0, now))
        if slots:  # else it says nothing about how long calls take
            lane.service += SERVICE_WEIGHT * (now - began - lane.service)
        self._forget(lane, id)
        lane.refused = max(0, lane.refused - 1)
        return list(self._pump(lane))

    def withdraw(self, id: str) -> bool:
        """Drop a call that still waits here; False when its worker has it, or nobody."""
        lane = self._lane_of.get(id)
        if lane is None or id not in lane.waiting:
            return False
        self._forget(lane, id)
        return True

    def holder(self, id: str) -> str | None:
        """The model whose worker holds the call."""
        lane = self._lane_of.get(id)
        return lane.model if lane is not None and id not in lane.waiting else None

    def retry_after(self, lane: Lane) -> float:
        """Seconds until there is likely to be a place: of those refused, the k-th gets the k-th that becomes free."""
        seconds = lane.service * max(1, lane.refused) / max(1, lane.parallel)
        return float(min(LONGEST_RETRY, max(1, math.ceil(seconds))))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _pump(self, lane: Lane) -> Iterator[Send]:
        """Send waiting calls, by rank and then oldest first, while the worker's window is open."""
        if not lane.serving():
            return
        window = 2 * lane.parallel
        while lane.waiting and len(lane.sent) + len(lane.running) < window:
            id = min(lane.waiting, key=lane.ranks.__getitem__)  # the first of equals is the oldest
            lane.sent[id] = lane.waiting.pop(id)
            del lane.ranks[id]
            yield Send(lane.model, id)

    def _fail_waiting(self, lane: Lane, code: str, message: str) -> list[Action]:
        ids = list(lane.waiting)
        for id in ids:
            self._forget(lane, id)
        return [Fail(id, code, message) for id in ids]

    def _forget(self, lane: Lane, id: str) -> None:
        lane.waiting.pop(id, None)
        lane.ranks.pop(id, None)
        lane.sent.pop(id, None)
        lane.running.pop(id, None)
        self._lane_of.pop(id, None)

    def _move(self, lane: Lane, to: State) -> None:
        if to not in MOVES[lane.state]:
            raise RuntimeError(f"model {lane.model!r} cannot go from {lane.state} to {to}")
        lane.state = to


def failed_message(lane: Lane) -> str:
    """Why requests for a failed model are refused. The engine's words may hold paths: they are for the operator."""
    return f"model {lane.model!r} could not be started; the reason is in the server's log and in `oxlo ps`"


@dataclass
class Pulse:
    """Whether a process still lives, judged by its answers alone.

    Two different deaths: no answer at all to `silent_max` pings in a row (a frozen process), or answers in which a busy
    engine's step counter has not moved for `step_timeout` seconds (a hung step). Answers are counted rather than
    seconds since the last one, so that a parent that was itself suspended does not kill its children on waking.
    """

    step_timeout: float
    silent_max: int
    unanswered: int = 0
    number: int = 0
    _step: int = -1
    _moved_at: float = 0.0
    _stuck_for: float = 0.0

    def ping(self) -> int:
        """The number of the next ping; counts it as unanswered."""
        self.number += 1
        self.unanswered += 1
        return self.number

    def pong(self, pong: Pong, now: float) -> None:
        """An answer has come."""
        self.unanswered = 0
        if not pong.busy or pong.step != self._step:
            self._step, self._moved_at = pong.step, now
        self._stuck_for = now - self._moved_at

    def verdict(self) -> str | None:
        """Why the process has to be killed; None while it lives."""
        if self._stuck_for > self.step_timeout:
            return f"one step took longer than step_timeout ({self.step_timeout:g} s)"
        if self.unanswered > self.silent_max:
            return f"it did not answer {self.silent_max} pings in a row"
        return None
