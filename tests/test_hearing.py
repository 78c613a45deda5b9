"""Sending a file to a server and hearing what it makes of it."""

import io
from pathlib import Path

import pytest

from oxlo_local.client import Address, Client
from oxlo_local.errors import BadRequest, ModelNotFound, ServerError
from oxlo_local.hearing import TRANSCRIPTIONS_PATH, Heard, _transcript_of, transcribe
from tests.conftest import RunningServer

sounds = pytest.importorskip("tests.engines.speech.sounds", reason="the speech engine is not installed")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return Path(sounds.wav(tmp_path / "a.wav", sounds.speech(4.0)))


def test_a_transcript_with_words_and_how_far_it_is(ears: RunningServer, recording: Path) -> None:
    heard: list[Heard] = []
    fields = {"model": ["whisper"], "timestamp_granularities[]": ["segment", "word"], "language": ["en"]}
    with Client(Address(ears.url)) as client, io.FileIO(recording) as file:
        found = transcribe(client, TRANSCRIPTIONS_PATH, file, "a.wav", fields, heard.append)
    assert (found.task, found.language, found.duration) == ("transcribe", "english", 4.0)
    assert found.segments and found.words
    assert heard[0] == Heard(0.0, 4.0) and [each.seconds for each in heard] == sorted(
        each.seconds for each in heard
    )


def test_a_refusal_is_raised(ears: RunningServer, recording: Path, tmp_path: Path) -> None:
    with Client(Address(ears.url)) as client, io.FileIO(recording) as file, pytest.raises(ModelNotFound):
        transcribe(client, TRANSCRIPTIONS_PATH, file, "a", {"model": ["nobody"]}, lambda _: None)
    noise = tmp_path / "noise"
    noise.write_bytes(b"noise" * 100)
    with (
        Client(Address(ears.url)) as client,
        io.FileIO(noise) as file,
        pytest.raises(BadRequest, match="decoded"),
    ):
        transcribe(client, TRANSCRIPTIONS_PATH, file, "a", {"model": ["whisper"]}, lambda _: None)


def test_events_of_a_stream() -> None:
    heard: list[Heard] = []
    assert _transcript_of(b'{"type":"transcript.text.delta","delta":"x"}', heard.append) is None and not heard
    with pytest.raises(ServerError, match="lost"):
        _transcript_of(b'{"error":{"message":"lost","code":"worker_lost"}}', heard.append)
    for noise in (b"[DONE]", b'{"type":"transcript.text.done"}'):
        with pytest.raises(ServerError, match="no part of a transcript"):
            _transcript_of(noise, heard.append)
