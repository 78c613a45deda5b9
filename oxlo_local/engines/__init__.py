"""Engines run only inside worker processes; a table of strings, so that the parent never imports one."""

from collections.abc import Callable
from typing import Protocol

from oxlo_local.calls import Call, Event, Gauges, Load, ModelFacts

Progress = Callable[[float], None]

ENGINES = {
    "text": "oxlo_local.engines.text.engine:TextEngine",
    "embedding": "oxlo_local.engines.embedding.engine:EmbeddingEngine",
    "speech": "oxlo_local.engines.speech.engine:SpeechEngine",
    "image": "oxlo_local.engines.image.engine:ImageEngine",
    "echo": "oxlo_local.engines.echo:EchoEngine",
}


class Engine(Protocol):
    """Three verbs: submit, cancel, step. One thread calls them all.

    Constructed as `Engine(load, progress)`, which loads the model and raises with the engine's own words on failure;
    `progress` takes the fraction loaded, 0 to 1.
    """

    facts: ModelFacts

    def __init__(self, load: Load, progress: Progress) -> None: ...

    def submit(self, call: Call) -> None:
        """Take a call. Never raises for a bad one: its failure comes up as `Failed` from `step`."""

    def cancel(self, id: str) -> None:
        """Drop a call; its `Failed(code="cancelled")` comes up with the next step. Unknown ids are ignored."""

    def step(self) -> list[Event]:
        """Do one unit of work (a decode, a segment, a denoising step) and return what came of it."""

    def busy(self) -> bool:
        """Whether `step` has something to do."""

    def gauges(self) -> Gauges:
        """Counters as of the last step. Cheap, and safe to call from another thread."""

    def close(self) -> None:
        """Free the model."""
