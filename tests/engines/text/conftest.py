"""Real engines on models made on the spot: one of each kind of memory that libllama has."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from oxlo_local.calls import Call, Done, Event, Failed, Load, Text, TextOptions, TokenLogprob
from oxlo_local.engines.text.engine import TextEngine
from oxlo_local.random_model import Architecture, write

MakeEngine = Callable[..., TextEngine]


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Architecture], Path]:
    folder = tmp_path_factory.mktemp("models")

    def path(architecture: Architecture) -> Path:
        file = folder / f"{architecture}.gguf"
        if not file.exists():
            write(file, architecture)
        return file

    return path


@pytest.fixture
def make_engine(model_path: Callable[[Architecture], Path]) -> Iterator[MakeEngine]:
    """`make_engine("mamba", parallel=4, ctx=512)`: an engine, closed after the test."""
    engines: list[TextEngine] = []

    def make(architecture: Architecture | Path = "llama", **options: object) -> TextEngine:
        path = architecture if isinstance(architecture, Path) else model_path(architecture)
        # f32 throughout and no flash attention: what still differs between two runs is a bug or the order of a sum.
        plain = TextOptions(
            ctx=1024,
            parallel=4,
            batch=128,
            chunk=32,
            threads=1,
            kv_type="f32",
            flash_attention=False,
            together=2,
        )
        engine = TextEngine(Load("text", path.stem, str(path), replace(plain, **options)), lambda _: None)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


class Answers:
    """What came up for some calls: text and logprobs by (call, choice), the terminal event by call."""

    def __init__(self) -> None:
        self.texts: dict[tuple[str, int], str] = {}
        self.logprobs: dict[tuple[str, int], list[TokenLogprob]] = {}
        self.ends: dict[str, Done | Failed] = {}
        self.steps: list[list[Event]] = []

    def take(self, events: list[Event]) -> None:
        self.steps.append(events)
        for event in events:
            assert event.id not in self.ends, "nothing follows a terminal event"
            if isinstance(event, Text):
                key = (event.id, event.choice)
                self.texts[key] = self.texts.get(key, "") + event.text
                self.logprobs.setdefault(key, []).extend(event.logprobs)
            elif isinstance(event, Done | Failed):
                self.ends[event.id] = event

    def done(self, id: str) -> Done:
        end = self.ends[id]
        assert isinstance(end, Done), end
        return end

    def failed(self, id: str) -> Failed:
        end = self.ends[id]
        assert isinstance(end, Failed), end
        return end


def drive(
    engine: TextEngine, calls: Sequence[Call], *, each_step: Callable[[int, Answers], None] | None = None
) -> Answers:
    """Submit the calls and step until the engine has nothing left to do."""
    answers = Answers()
    for call in calls:
        engine.submit(call)
    while engine.busy():
        answers.take(engine.step())
        if each_step:
            each_step(len(answers.steps), answers)
        assert len(answers.steps) < 20_000, "the engine never finishes"
    return answers
