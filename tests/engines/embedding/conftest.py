"""Real embedding engines on models made on the spot."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from oxlo_local.calls import Call, Done, EmbeddingOptions, Event, Failed, Load, Score, Vector
from oxlo_local.engines.embedding.engine import EmbeddingEngine
from oxlo_local.random_model import Pooling, Shape, write

BERT = Shape(d=64, layers=2, heads=4, kv_heads=4, ff=128, context=256)
MakeEngine = Callable[..., EmbeddingEngine]
BertPath = Callable[[Pooling | None], Path]


@pytest.fixture(scope="session")
def bert_path(tmp_path_factory: pytest.TempPathFactory) -> BertPath:
    folder = tmp_path_factory.mktemp("encoders")

    def path(pooling: Pooling | None = "mean") -> Path:
        file = folder / f"bert-{pooling}.gguf"
        if not file.exists():
            write(file, "bert", BERT, pooling=pooling)
        return file

    return path


@pytest.fixture
def make_engine(bert_path: BertPath) -> Iterator[MakeEngine]:
    """`make_engine("cls", batch=64)`: an engine, closed after the test."""
    engines: list[EmbeddingEngine] = []

    def make(model: Pooling | Path | None = "mean", **options: object) -> EmbeddingEngine:
        path = model if isinstance(model, Path) else bert_path(model)
        given = {"threads": 1, "flash_attention": False, **options}
        load = Load("embedding", path.stem, str(path), EmbeddingOptions(**given))  # type: ignore[arg-type]
        engine = EmbeddingEngine(load, lambda _: None)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


class Answers:
    """What came up for some calls: vectors and scores by (call, index), the terminal event by call."""

    def __init__(self) -> None:
        self.vectors: dict[tuple[str, int], NDArray[np.float32]] = {}
        self.scores: dict[tuple[str, int], float] = {}
        self.ends: dict[str, Done | Failed] = {}
        self.steps: list[list[Event]] = []

    def take(self, events: list[Event]) -> None:
        self.steps.append(events)
        for event in events:
            assert event.id not in self.ends, "nothing follows a terminal event"
            if isinstance(event, Vector):
                self.vectors[event.id, event.index] = np.frombuffer(event.data, "<f4")
            elif isinstance(event, Score):
                self.scores[event.id, event.index] = event.relevance
            elif isinstance(event, Done | Failed):
                self.ends[event.id] = event

    def failed(self, id: str) -> Failed:
        end = self.ends[id]
        assert isinstance(end, Failed), end
        return end

    def step_of(self, id: str) -> int:
        """The step in which the call ended."""
        return next(at for at, events in enumerate(self.steps) for event in events if event == self.ends[id])


def drive(engine: EmbeddingEngine, calls: Sequence[Call]) -> Answers:
    """Submit the calls and step until the engine has nothing left to do."""
    answers = Answers()
    for call in calls:
        engine.submit(call)
    while engine.busy():
        answers.take(engine.step())
        assert len(answers.steps) < 20_000, "the engine never finishes"
    return answers
