"""A loop that calls back, turned into one that is stepped: a thread of its own stands still between two steps.

A diffusers pipeline is a function that computes all steps and calls back after each. It runs on this thread, and the
callback waits there until it is let go on, or ends the loop by raising. One thread serves all loops, one after another,
because the threads that torch computes with belong to the thread that asked for them.
"""

import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

P = TypeVar("P")  # what is said at a pause
R = TypeVar("R")  # what comes out in the end

Work = Callable[[Callable[[P], None]], R]


class _LetGo(BaseException):
    """Nobody wants what the loop computes any more. No Exception, so that nothing on the way catches it."""


class _Broken:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class Paused(Generic[P]):
    """It stands still, and said this."""

    def __init__(self, said: P) -> None:
        self.said = said


class Ended(Generic[R]):
    """It has come to its end, with this."""

    def __init__(self, result: R) -> None:
        self.result = result


class Loop(Generic[P, R]):
    """Runs one piece of work at a time. Its methods are for one other thread, which waits while this one works."""

    def __init__(self, first: Callable[[], object] = lambda: None) -> None:
        """`first` is called on the thread before all else."""
        self._go: SimpleQueue[Work[P, R] | bool | None] = SimpleQueue()
        self._came: SimpleQueue[Paused[P] | Ended[R] | _Broken] = SimpleQueue()
        self._next: Work[P, R] | bool | None = None
        threading.Thread(target=self._run, args=(first,), name="loop", daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether work has begun that has neither come to its end nor been let go."""
        return self._next is not None

    def begin(self, work: Work[P, R]) -> None:
        """Take the next piece of work: a function that is given what to call at each pause. `step` computes it."""
        assert self._next is None
        self._next = work

    def step(self) -> Paused[P] | Ended[R]:
        """Compute up to the next pause, or to the end. Raises what the work raises, which ends it."""
        assert self._next is not None
        self._go.put(self._next)
        came = self._came.get()
        self._next = True if isinstance(came, Paused) else None
        if isinstance(came, _Broken):
            raise came.error
        return came

    def let_go(self) -> None:
        """End the work where it stands."""
        if self._next is True:
            self._go.put(False)
            self._came.get()
        self._next = None

    def close(self) -> None:
        """End the thread."""
        self.let_go()
        self._go.put(None)

    def _run(self, first: Callable[[], object]) -> None:
        first()
        while (work := self._go.get()) is not None:
            assert not isinstance(work, bool)
            try:
                self._came.put(Ended(work(self._pause)))
            except BaseException as error:
                # The frames of what was broken off hold tensors, which must not outlive it.
                traceback.clear_frames(error.__traceback__)
                self._came.put(_Broken(error))
            del work

    def _pause(self, said: P) -> None:
        self._came.put(Paused(said))
        if not self._go.get():
            raise _LetGo
