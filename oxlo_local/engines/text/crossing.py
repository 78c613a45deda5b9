"""Two threads, one set of cores: the steps of the engine and the slices of an image encoder take turns.

ggml's threads spin where they wait for each other, so two graphs at once are slower than one after the other, and by
far. Encoding an image may take seconds and a step must not wait for it: so the encoder stops between slices of its
graph while a step wants the cores, and after each step it gets one slice, as long as the step before it was. The next
tokens of others come half as fast while an image is encoded, and never stop; with nothing to step, the encoder runs on.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SHORTEST = 0.02  # seconds of a slice: shorter ones would only cost


class Crossing:
    """Who may use the cores. `step` is for the engine's thread, the rest for the encoder's."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._wanted = self._stepping = False
        self._encoding = self._slicing = False
        self._owed = False  # a slice, since the last step
        self._share = SHORTEST

    @contextmanager
    def step(self) -> Iterator[None]:
        """Hold the cores for one step."""
        with self._turn:
            self._wanted = True
            self._turn.wait_for(lambda: not (self._slicing or self._owed))
            self._stepping = True
        begun = time.monotonic()
        try:
            yield
        finally:
            with self._turn:
                self._share = max(SHORTEST, time.monotonic() - begun)
                self._wanted = self._stepping = False
                self._owed = self._encoding
                self._turn.notify_all()

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Hold the cores for slices; `between` is called after each."""
        with self._turn:
            self._encoding = True
            self._take_slice()
        try:
            yield
        finally:
            with self._turn:
                self._encoding = self._slicing = self._owed = False
                self._turn.notify_all()

    def between(self) -> float:
        """Let a step by, if one is waiting; seconds that the next slice may take."""
        with self._turn:
            self._slicing = self._owed = False
            self._turn.notify_all()
            self._take_slice()
            return self._share

    def _take_slice(self) -> None:
        self._turn.wait_for(lambda: not self._stepping and (self._owed or not self._wanted))
        self._slicing = True
