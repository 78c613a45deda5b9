"""Small Whisper models of random numbers, and engines that run them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from oxlo_local import random_whisper
from oxlo_local.calls import Event, Load, Segment, SpeechCall, SpeechOptions
from oxlo_local.engines.speech.engine import SpeechEngine
from tests.engines import driving


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multilingual model that hears 8 seconds at once and writes up to 64 tokens."""
    folder = tmp_path_factory.mktemp("models") / "whisper"
    random_whisper.write(folder, random_whisper.Shape())
    return folder


@pytest.fixture(scope="session")
def english_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that knows English alone."""
    folder = tmp_path_factory.mktemp("models") / "whisper.en"
    random_whisper.write(folder, random_whisper.Shape(multilingual=False))
    return folder


def opened(folder: Path, options: SpeechOptions | None = None) -> SpeechEngine:
    options = options or SpeechOptions(device="cpu", threads=1, beam=1)
    return SpeechEngine(Load("speech", "whisper", str(folder), options), lambda fraction: None)


@pytest.fixture(scope="session")
def shared_engine(whisper_folder: Path) -> Iterator[SpeechEngine]:
    made = opened(whisper_folder)
    yield made
    made.close()


@pytest.fixture
def engine(shared_engine: SpeechEngine) -> SpeechEngine:
    """An engine on which nothing runs."""
    assert not shared_engine.busy()
    return shared_engine


def run(engine: SpeechEngine, *calls: SpeechCall) -> dict[str, list[Event]]:
    """Everything that comes up for calls that are submitted at once, by id; their files are read ahead."""
    return driving.run(engine, *calls, once_submitted=lambda: read_ahead(engine))


def read_ahead(engine: SpeechEngine) -> None:
    """Let every file be read as far as there is room, so that batches are as full as on a slower model."""
    engine._admit()
    engine._read()
    while any(hearing.reading is not None for hearing in engine._hearings.values()):
        engine._rest(1.0)
        engine._read()


def segments(events: Sequence[Event]) -> list[Segment]:
    return [event for event in events if isinstance(event, Segment)]
