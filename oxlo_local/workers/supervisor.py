"""Performs what the router decides: starts, warms, pings, drains, kills and restarts the processes of the models.

The life of a process is one task: spawn, send `Load`, read frames until the pipe closes, learn how it ended, tell the
router. The states and their legal moves stand in `router.MOVES`. Whatever ends a process (a crash, a kill from outside,
a hung step, a frozen process, noise on the pipe) takes the same way out, so there is one place where calls are lost.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from oxlo_local.calls import (
    Call,
    Cancel,
    Done,
    EchoOptions,
    EmbedCall,
    EmbeddingOptions,
    Events,
    Failed,
    Gauges,
    ImageCall,
    ImageOptions,
    Load,
    LoadFailed,
    Loading,
    Message,
    ModelFacts,
    Ready,
    RerankCall,
    Sampling,
    SpeechCall,
    SpeechOptions,
    Started,
    Submit,
    TextCall,
    TextOptions,
    Up,
)
from oxlo_local.config import Settings
from oxlo_local.workers.child import WORKER_COMMAND, Child
from oxlo_local.workers.pipe import Garbled
from oxlo_local.workers.router import MIDDLE_RANK, Action, Fail, Lane, Pulse, Router, Send, Spawn, State
from oxlo_local.workers.stream import Drawing, Progress, Stream

SILENT_PINGS = 15  # unanswered ones that make a process count as frozen
STOP_SECONDS = 5.0  # to free the model before it is killed
WARM_UP_TOKENS = 4
WARM_UP_PROMPT = 32  # words
WARM_UP_PROMPT_ON_GPU = 512  # which takes other kernels for long prompts, and reads them in no time
SILENCE = Path(__file__).parent.parent / "embedded" / "silence.wav"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSpec:
    """A model to run: which engine on which file, and whether readiness waits for it.

    A process for which it does not wait lets the others go first.
    """

    model_id: str
    engine: str
    path: str
    options: TextOptions | EmbeddingOptions | SpeechOptions | ImageOptions | EchoOptions
    counts_for_ready: bool = True


@dataclass(frozen=True)
class WorkerStatus:
    """A worker as of its last pong. `rss_bytes` is 0 and `facts` None while there is no process that told them."""

    model: str
    state: State
    pid: int | None
    facts: ModelFacts | None
    gauges: Gauges
    rss_bytes: int
    restarts: int
    last_error: str
    loaded: float  # 0 to 1
    waiting: int
    running: int
    files: tuple[Progress, ...] = ()
    drawings: tuple[Drawing, ...] = ()


@dataclass
class Home:
    """What the fleet keeps of a model across its processes."""

    spec: WorkerSpec
    child: Child | None = None
    facts: ModelFacts | None = None
    life: asyncio.Task[None] | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Place:
    """A place in the queue, taken before the ledger's row is written. Leaving the `with` unused gives it back."""

    def __init__(self, fleet: "Fleet", model: str) -> None:
        self._fleet = fleet
        self._model = model
        self._taken = False

    def submit(self, call: Call, rank: int = MIDDLE_RANK) -> Stream:
        """Send the call on its way, before waiting ones of a higher rank. Once only; what goes wrong from here on is
        the stream's terminal event.
        """
        assert not self._taken
        stream = self._fleet.dispatch(self._model, call, rank)
        self._taken = True
        return stream

    def __enter__(self) -> "Place":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._taken:
            self._fleet.leave(self._model)


class Fleet:
    """All workers of a server. One event loop calls everything here."""

    def __init__(
        self,
        settings: Settings,
        *,
        changed: Callable[[], None] = lambda: None,
        command: Sequence[str] = WORKER_COMMAND,
        silent_pings: int = SILENT_PINGS,
    ) -> None:
        """`changed` is called after every change of a state or of a load's progress."""
        self._settings = settings
        self._changed = changed
        self._command = command
        self._silent_pings = silent_pings
        self._router = Router(settings.queue_max)
        self._homes: dict[str, Home] = {}
        self._streams: dict[str, Stream] = {}
        self._calls: dict[str, Call] = {}  # not sent yet
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        self._idle = asyncio.Event()
        self._stopping = False

    # -- for the rooms above ------------------------------------------------------------------------------------------

    async def start(self, specs: Sequence[WorkerSpec]) -> None:
        """Start a process for each; returns at once, `status` and `ready` tell how they are doing."""
        self.announce(specs)
        for spec in specs:
            self.begin(spec.model_id)

    def announce(self, specs: Sequence[WorkerSpec]) -> None:
        """Count them as loading, and let calls for them wait; `begin` starts their processes when the time has come."""
        for spec in specs:
            self._homes[spec.model_id] = Home(spec)
            self._router.add(spec.model_id, spec.counts_for_ready)

    def begin(self, model_id: str) -> None:
        """Start the process of an announced model, unless the server is on its way out."""
        if not self._router.draining:
            self._spawn(Spawn(model_id, 0.0))

    def admit(self, model_id: str) -> Place:
        """Hold a place in the queue. Raises ShuttingDown, ModelNotLoaded or QueueFull."""
        self._router.admit(model_id)
        return Place(self, model_id)

    def submit(self, model_id: str, call: Call) -> Stream:
        """`admit` and `Place.submit` in one."""
        with self.admit(model_id) as place:
            return place.submit(call)

    def facts(self, model_id: str) -> ModelFacts | None:
        """What the model turned out to be, once it has been loaded."""
        home = self._homes.get(model_id)
        return home.facts if home is not None else None

    def status(self) -> list[WorkerStatus]:
        """Every worker, in the order of their start."""
        return [self._status_of(home, self._router.lanes[model]) for model, home in self._homes.items()]

    def ready(self) -> list[str]:
        """What is still missing, a line each; empty = ready."""
        return [
            f"{one.model}: {one.state.replace('_', ' ')}"
            + (f" ({one.loaded:.0%} loaded)" if one.state == "starting" else "")
            for one in self.status()
            if self._homes[one.model].spec.counts_for_ready and one.state not in ("ready", "draining")
        ]

    async def drain(self, seconds: float) -> None:
        """Admit nobody, give those admitted up to `seconds` to end, then end them with shutting_down."""
        self._router.drain()
        for model, home in self._homes.items():
            if home.life is None:  # announced, and never begun
                self._perform(self._router.lost(model, "the server is shutting down", time.monotonic()))
        self._changed()
        self._idle.clear()
        if not self._router.idle():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)
        for id in list(self._streams):
            self._give_up(id, "shutting_down", "the server is shutting down")

    async def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End every process: `seconds` to free the models, then the kill. Every open call ends with shutting_down."""
        self._stopping = True
        self._perform(self._router.stop())
        for id in list(self._streams):
            self._end(id, Failed(id, "shutting_down", "the server is shutting down"))
        lives = [home.life for home in self._homes.values() if home.life is not None]
        for home in self._homes.values():
            if home.child is not None:
                home.child.stop()
            elif home.life is not None:
                home.life.cancel()
        if lives and seconds > 0:
            await asyncio.wait(lives, timeout=seconds)
        self.kill()
        if lives:
            await asyncio.wait(lives)

    def kill(self) -> None:
        """SIGKILL to every process, now."""
        for home in self._homes.values():
            if home.child is not None:
                home.child.kill("the server stopped")

    # -- for Place ----------------------------------------------------------------------------------------------------

    def dispatch(self, model: str, call: Call, rank: int) -> Stream:
        """Queue a call whose place is held."""
        if call.id in self._streams or call.id in self._calls:
            raise ValueError(f"a call with the id {call.id!r} is already here")
        stream = self._open(call.id)
        self._calls[call.id] = call
        if self._settings.request_timeout > 0:
            loop = asyncio.get_running_loop()
            self._expiries[call.id] = loop.call_later(self._settings.request_timeout, self._expire, call.id)
        self._perform(self._router.submit(model, call.id, slots_of(call), rank))
        return stream

    def leave(self, model: str) -> None:
        """Give back a place that was not used."""
        self._router.leave(model)
        self._rest()

    # -- calls --------------------------------------------------------------------------------------------------------

    def _open(self, id: str) -> Stream:
        stream = self._streams[id] = Stream(id, lambda: self._cancel(id))
        return stream

    def _end(self, id: str, event: Done | Failed) -> None:
        """The one place where a call gets its terminal event."""
        self._calls.pop(id, None)
        expiry = self._expiries.pop(id, None)
        if expiry is not None:
            expiry.cancel()
        stream = self._streams.pop(id, None)
        if stream is not None:
            stream.push(event, time.monotonic())

    def _cancel(self, id: str) -> None:
        """Nobody waits for the call any more. A worker that has it answers with the terminal event."""
        if self._router.withdraw(id):
            self._end(id, Failed(id, "cancelled", "the call was cancelled"))
            self._rest()
        else:
            self._tell_cancel(id)

    def _expire(self, id: str) -> None:
        seconds = self._settings.request_timeout
        self._give_up(id, "timeout", f"the request took longer than request_timeout ({seconds:g} s)")
        self._rest()

    def _give_up(self, id: str, code: str, message: str) -> None:
        """End a call that has had its time, wherever it is; a worker that has it drops it."""
        if not self._router.withdraw(id):
            self._tell_cancel(id)
        self._end(id, Failed(id, code, message))

    def _tell_cancel(self, id: str) -> None:
        model = self._router.holder(id)
        child = self._homes[model].child if model is not None else None
        if child is not None:
            child.send(Cancel(id))

    def _rest(self) -> None:
        if self._router.draining and self._router.idle():
            self._idle.set()

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, Fail):
                self._end(action.id, Failed(action.id, action.code, action.message))
            elif not self._stopping:
                self._spawn(action)
        self._rest()

    def _send(self, action: Send) -> None:
        call = self._calls.pop(action.id, None)
        child = self._homes[action.model].child
        if child is None or call is None:
            raise RuntimeError(f"call {action.id} cannot be sent to model {action.model!r}")
        try:
            child.send(Submit(call))
        except Garbled as error:
            self._end(action.id, Failed(action.id, "request_too_large", str(error)))
            self._perform(self._router.ended(action.id, time.monotonic()))

    # -- processes ----------------------------------------------------------------------------------------------------

    def _spawn(self, action: Spawn) -> None:
        home = self._homes[action.model]
        home.life = asyncio.create_task(self._live(home, action.after), name=f"worker {action.model}")

    async def _live(self, home: Home, after: float) -> None:
        """One process of a model, from its start to its end, however that comes about."""
        model = home.spec.model_id
        if after > 0:
            await asyncio.sleep(after)
            self._router.restarting(model)
        try:
            why = await self._from_spawn_to_end(home)
        except OSError as error:
            why = f"its process cannot be started: {error}"
        except Exception as error:
            logger.exception("model %s: its supervision failed", model)
            why = f"its supervision failed: {error}"
        for task in home.tasks:
            task.cancel()
        if home.child is not None:
            home.child.kill(why)
            await home.child.ended()
            home.child = None
        self._lost(home, why)

    async def _from_spawn_to_end(self, home: Home) -> str:
        """Returns how the process ended. Raises OSError when there was none."""
        spec = home.spec
        pulse = Pulse(self._settings.step_timeout, self._silent_pings)
        child = home.child = await Child.spawn(self._command, pulse)
        if not spec.counts_for_ready:
            child.give_way()
        if self._stopping:
            child.kill("the server stopped")
        logger.info("model %s: process %d started", spec.model_id, child.pid)
        child.send(Load(spec.engine, spec.model_id, spec.path, spec.options))
        home.tasks = [asyncio.create_task(child.ping(self._settings.ping_seconds))]
        self._changed()
        await child.read(lambda message: self._take(home, child, message))
        why = await child.ended()
        home.child = None
        return why

    def _lost(self, home: Home, why: str) -> None:
        model = home.spec.model_id
        if not self._stopping:
            logger.warning("model %s: %s", model, why)
        actions = self._router.lost(model, why, time.monotonic())
        self._perform(actions)
        lane = self._router.lanes[model]
        if lane.state == "failed":
            logger.error("model %s: given up: %s", model, why.splitlines()[0])
        self._changed()

    def _take(self, home: Home, child: Child, message: Up) -> None:
        """One message from a worker."""
        if isinstance(message, Events):
            self._take_events(message)
        elif isinstance(message, Loading):
            child.loaded = message.fraction
            self._changed()
        elif isinstance(message, LoadFailed):
            child.explain(message.message)
        elif isinstance(message, Ready):
            child.facts = home.facts = message.facts
            child.loaded = 1.0
            self._router.warming(home.spec.model_id, message.facts.parallel)
            home.tasks.append(asyncio.create_task(self._warm_up(home, child, message)))
            self._changed()

    def _take_events(self, message: Events) -> None:
        now = time.monotonic()
        streams = self._streams
        for event in message.events:
            if isinstance(event, (Done, Failed)):
                self._end(event.id, event)
                self._perform(self._router.ended(event.id, now))
                continue
            at = now
            if isinstance(event, Started):
                at -= message.seconds  # a call leaves the queue at the beginning of its first step
                self._router.started(event.id, at)
            stream = streams.get(event.id)
            if stream is not None:  # else nobody waits for it any more, or nobody ever did
                stream.push(event, at)

    async def _warm_up(self, home: Home, child: Child, ready: Ready) -> None:
        """Have a real call answered through the pipe, then let the others in."""
        model = home.spec.model_id
        began = time.monotonic()
        call = warm_up_call(f"warm-up-{child.pid}", ready.facts)
        stream = self._open(call.id)
        try:
            child.send(Submit(call))
            async for _ in stream:
                pass
        finally:
            self._streams.pop(call.id, None)
        if isinstance(stream.terminal, Done):
            logger.info("model %s: ready, warm-up took %.2f s", model, time.monotonic() - began)
            self._perform(self._router.ready(model, time.monotonic()))
            self._changed()
        elif isinstance(stream.terminal, Failed):
            child.kill(f"its warm-up failed: {stream.terminal.message}")

    def _status_of(self, home: Home, lane: Lane) -> WorkerStatus:
        child = home.child
        streams = [self._streams[id] for id in lane.running if id in self._streams]
        return WorkerStatus(
            model=lane.model,
            state=lane.state,
            pid=child.pid if child is not None else None,
            facts=home.facts,
            gauges=child.gauges if child is not None else Gauges(),
            rss_bytes=child.rss_bytes if child is not None else 0,
            restarts=lane.restarts,
            last_error=lane.error,
            loaded=child.loaded if child is not None else 0.0,
            waiting=lane.calls() - len(lane.running),
            running=len(lane.running),
            files=tuple(each.file for each in streams if each.file is not None),
            drawings=tuple(each.drawing for each in streams if each.drawing is not None),
        )


def slots_of(call: Call) -> int:
    """How many sequences the call needs; questions about tokens need none."""
    if isinstance(call, TextCall):
        return call.n * max(1, len(call.prompts or ()))
    return 1 if isinstance(call, EmbedCall | RerankCall | SpeechCall | ImageCall) else 0


def warm_up_call(id: str, facts: ModelFacts) -> Call:
    """A real call that touches what requests will touch: a prompt in one piece, then single tokens."""
    quarter = max(1, facts.context_length // 4)
    prompt = "Hello " * min(WARM_UP_PROMPT if facts.device == "cpu" else WARM_UP_PROMPT_ON_GPU, quarter)
    if facts.kind == "embedding":
        return EmbedCall(id, [prompt])
    if facts.kind == "rerank":
        return RerankCall(id, "Hello", [prompt])
    if facts.kind == "speech":
        return SpeechCall(id, str(SILENCE), vad=None, temperatures=(0.0,))
    if facts.kind == "image":
        return ImageCall(id, "Hello", seed=0, steps=1)
    greedy, tokens = Sampling(temperature=0.0), min(WARM_UP_TOKENS, quarter)
    if facts.chat:
        return TextCall(id, messages=[Message("user", prompt)], sampling=greedy, max_tokens=tokens)
    return TextCall(id, prompts=[prompt], sampling=greedy, max_tokens=tokens)
