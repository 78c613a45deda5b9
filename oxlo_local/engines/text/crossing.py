"""Two threads, one set of cores: the steps of the engine and the slices of an image encoder take turns.

Encoding an image may take seconds, and nobody's next token waits for it. Where there are cores enough for both, both
run, the encoder with lower priority. Where there are not, two graphs at once would be slower than one after the other,
and by far: ggml's threads spin while they wait for each other. So the encoder stops between two nodes of its graph when
a step wants the cores, and after each step it gets one slice, as long as the step before it was and a node longer. The
next tokens of others come at half to a third of their rate while an image is encoded, and never stop; with nothing to
step, the encoder runs on. (Figures: docs/engine.md.)
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SHORTEST = 0.02  # seconds of a slice: shorter ones would only cost
LATELY = 0.5  # seconds for which a step says that there will be another


class Crossing:
    """Who may use the cores. `step` is for the engine's thread, the rest for the encoder's."""

    def __init__(self, *, turns: bool) -> None:
        """`turns` False: there are cores for both."""
        self._turns = turns
        self._turn = threading.Condition()
        self._wanted = self._stepping = False
        self._encoding = self._slicing = False
        self._owed = False  # a slice, since the last step
        self._share = SHORTEST
        self._begun = self._stepped = 0.0  # of the slice, and the end of the last step

    @contextmanager
    def step(self) -> Iterator[None]:
        """Hold the cores for one step."""
        if not self._turns:
            yield
            return
        with self._turn:
            self._wanted = True
            self._turn.wait_for(lambda: not (self._slicing or self._owed))
            self._stepping = True
        begun = time.monotonic()
        try:
            yield
        finally:
            with self._turn:
                self._stepped = time.monotonic()
                self._share = max(SHORTEST, self._stepped - begun)
                self._wanted = self._stepping = False
                self._owed = self._encoding
                self._turn.notify_all()

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Hold the cores for slices; `between` is called where one may end."""
        with self._turn:
            self._encoding = True
            self._take_slice()
        try:
            yield
        finally:
            with self._turn:
                self._encoding = self._slicing = self._owed = False
                self._turn.notify_all()

    def between(self) -> bool:
        """Let a step by, if one is waiting and the slice has had its time; whether to be asked again soon."""
        with self._turn:
            now = time.monotonic()
            if self._wanted and now - self._begun >= self._share:
                self._slicing = self._owed = False
                self._turn.notify_all()
                self._take_slice()
            return self._turns and (self._wanted or now - self._stepped < LATELY)

    def _take_slice(self) -> None:
        self._turn.wait_for(lambda: not self._stepping and (self._owed or not self._wanted))
        self._slicing, self._begun = True, time.monotonic()
