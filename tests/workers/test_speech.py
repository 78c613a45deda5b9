"""The speech engine in a real worker process: it is warmed, hears, and survives every bad file."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from oxlo_local import random_whisper
from oxlo_local.calls import Done, Event, Failed, Language, Segment, SpeechCall, SpeechOptions
from oxlo_local.workers.supervisor import Fleet, WorkerSpec
from tests.engines.speech.sounds import silence, speech, wav
from tests.workers.conftest import MakeFleet, read, ready, status, until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models") / "whisper"
    random_whisper.write(made, random_whisper.Shape())
    return made


async def listening(fleet_of: MakeFleet, folder: Path) -> Fleet:
    fleet = fleet_of()
    options = SpeechOptions(device="cpu", threads=1, beam=1, longest=3600.0)
    await fleet.start([WorkerSpec("whisper", "speech", str(folder), options)])
    await ready(fleet)
    return fleet


def call(path: Path, id: str = "a") -> SpeechCall:
    return SpeechCall(id, str(path), temperatures=(0.0,))


async def test_it_is_warmed_and_hears(fleet_of: MakeFleet, folder: Path, tmp_path: Path) -> None:
    fleet = await listening(fleet_of, folder)
    facts = fleet.facts("whisper")
    assert facts is not None and facts.kind == "speech" and facts.compute_type
    assert status(fleet, "whisper").gauges.steps > 0 or status(fleet, "whisper").state == "ready"
    events = await read(fleet.submit("whisper", call(wav(tmp_path / "talk.wav", speech(12)))))
    assert any(isinstance(event, Language) for event in events)
    assert any(isinstance(event, Segment) for event in events)
    assert isinstance(events[-1], Done) and events[-1].usage.audio_seconds == 12.0


async def test_bad_files_fail_alone_and_leave_the_worker_alive(
    fleet_of: MakeFleet, folder: Path, tmp_path: Path
) -> None:
    fleet = await listening(fleet_of, folder)
    pid = status(fleet, "whisper").pid
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.mp3").write_text("Dear all, please find enclosed\n" * 500)
    (tmp_path / "noise.flac").write_bytes(b"fLaC" + np.random.default_rng(0).bytes(100_000))
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    bad = [tmp_path / name for name in ("empty.wav", "text.mp3", "noise.flac", "list.m3u8")]
    bad.append(wav(tmp_path / "cut.wav", speech(1), declared=10_000_000))
    bad.append(wav(tmp_path / "none.wav", silence(0)))
    bad.append(wav(tmp_path / "odd.wav", speech(1), rate=1_000_000_000))
    good = wav(tmp_path / "good.wav", speech(6))
    streams = [fleet.submit("whisper", call(path, str(path))) for path in (*bad, good)]
    answers: list[list[Event]] = await asyncio.gather(*map(read, streams))
    for path, events in zip(bad, answers, strict=False):
        failed = events[-1]
        assert isinstance(failed, Failed) and failed.code == "undecodable_file", path
        assert (
            failed.message.startswith("the file cannot be decoded: ") and str(tmp_path) not in failed.message
        )
    assert isinstance(answers[-1][-1], Done)
    assert status(fleet, "whisper").pid == pid and status(fleet, "whisper").restarts == 0


async def test_a_file_that_nobody_waits_for_is_let_go(
    fleet_of: MakeFleet, folder: Path, tmp_path: Path
) -> None:
    fleet = await listening(fleet_of, folder)
    path = wav(tmp_path / "long.wav", np.tile(speech(60), 10))
    stream = fleet.submit("whisper", call(path))
    async for event in stream:
        if isinstance(event, Segment):
            break
    stream.cancel()
    after = await read(fleet.submit("whisper", call(wav(tmp_path / "clip.wav", speech(3)), "b")))
    assert isinstance(after[-1], Done)
    # Of all that was to be heard only the clip, and the silence that warmed it, came to an end.
    await until(lambda: status(fleet, "whisper").gauges.audio_seconds >= 3.0)
    gauges = status(fleet, "whisper").gauges
    assert gauges.running == 0 and gauges.audio_seconds == pytest.approx(3.25)
