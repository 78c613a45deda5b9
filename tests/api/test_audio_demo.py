"""oxlo-demo-speech over real HTTP, which hears what is said: the stock OpenAI SDK, and every container and codec.

The matrix is printed by `scripts/test -s -k format_matrix`.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.conftest import ROOT, RunningServer, await_ready, launch
from tests.openai_description import judge

pytest.importorskip("faster_whisper", reason="the speech engine is not installed")

from tests.engines.speech.sounds import Codec, written  # needs the engine's packages

MODEL = "oxlo-demo-speech"
RECORDINGS = ROOT / "tests" / "recordings" / "demo_speech"
SAID = json.loads((RECORDINGS / "said.json").read_text("utf-8"))
FILE = RECORDINGS / "en-gb-scotland-klatt3.flac"
WORDS = [word for sentence in SAID[FILE.name] for word, _, _ in sentence]
TIMES = [(start, end) for sentence in SAID[FILE.name] for _, start, end in sentence]
TEXT = "lock the black door please"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server over the embedded speech model."""
    folder = tmp_path_factory.mktemp("demo")
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").touch()
    running = await_ready(launch(home, folder / "serve.log", (MODEL,), {}))
    yield running
    assert running.stop() == 0


# -- the SDK -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(demo: RunningServer) -> OpenAI:
    return OpenAI(base_url=demo.base_url, api_key="none", max_retries=0)


def test_a_file_a_stream_and_words_with_their_times(client: OpenAI) -> None:
    assert " ".join(WORDS) == TEXT
    hear = client.audio.transcriptions.create
    assert hear(model=MODEL, file=FILE).text == TEXT
    with FILE.open("rb") as file:
        *deltas, done = hear(model=MODEL, file=file, stream=True)
    assert done.type == "transcript.text.done" and done.text == TEXT
    assert "".join(one.delta for one in deltas if one.type == "transcript.text.delta") == TEXT
    told = hear(
        model=MODEL,
        file=FILE,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert told.text == TEXT and told.language == "english" and told.words and told.segments
    assert [word.word for word in told.words] == WORDS
    for word, (start, end) in zip(told.words, TIMES, strict=True):
        assert word.start == pytest.approx(start, abs=0.15) and word.end == pytest.approx(end, abs=0.15)
    assert "".join(one.text for one in told.segments).strip() == TEXT
    assert told.segments[0].start == pytest.approx(TIMES[0][0], abs=0.15)
    assert told.usage and told.usage.seconds == pytest.approx(told.duration, abs=0.01)


def test_subtitles_and_text(client: OpenAI) -> None:
    hear = client.audio.transcriptions.create
    assert hear(model=MODEL, file=FILE, response_format="text") == f"{TEXT}\n"
    srt = hear(model=MODEL, file=FILE, response_format="srt")
    assert srt.startswith("1\n00:00:00,") and f"\n{TEXT}\n\n" in srt
    vtt = hear(model=MODEL, file=FILE, response_format="vtt", timestamp_granularities=["word"])
    assert vtt.startswith("WEBVTT\n\n") and vtt.count(" --> ") == len(WORDS)
    chances = hear(model=MODEL, file=FILE, include=["logprobs"]).logprobs
    assert chances and "".join(one.token or "" for one in chances).strip() == TEXT


def test_what_this_model_cannot_do_is_refused_in_one_error(client: OpenAI) -> None:
    deprecated = pytest.warns(DeprecationWarning)  # the SDK's own, of late
    with deprecated, pytest.raises(openai.BadRequestError, match="translates nothing") as caught:
        client.audio.translations.create(model=MODEL, file=FILE)
    assert (caught.value.param, caught.value.code) == ("model", "unsupported_value")
    with pytest.raises(openai.BadRequestError, match="does not know the language 'de'") as caught:
        client.audio.transcriptions.create(model=MODEL, file=FILE, language="de")
    assert (caught.value.param, caught.value.code) == ("language", "unsupported_value")
    with pytest.raises(openai.BadRequestError, match="cannot be decoded") as caught:
        client.audio.transcriptions.create(model=MODEL, file=("song.mp3", b"Dear all, please find enclosed"))
    assert (caught.value.param, caught.value.code) == ("file", "undecodable_file")


def test_probabilities_come_with_a_warning_that_the_search_is_another(client: OpenAI) -> None:
    create = client.audio.transcriptions.with_raw_response.create
    assert "x-oxlo-warnings" not in create(model=MODEL, file=FILE).headers
    warned = create(model=MODEL, file=FILE, include=["logprobs"])
    assert "greedily" in warned.headers["x-oxlo-warnings"]


def test_many_at_once_asynchronously_hear_what_each_is_of(demo: RunningServer) -> None:
    names = {name: [word for sentence in said for word, _, _ in sentence] for name, said in SAID.items()}

    async def hear_all() -> tuple[dict[str, str], str, str]:
        async with AsyncOpenAI(base_url=demo.base_url, api_key="none", max_retries=0) as client:
            hear = client.audio.transcriptions.create
            found = await asyncio.gather(*(hear(model=MODEL, file=RECORDINGS / name) for name in names))
            stream = await hear(model=MODEL, file=FILE, stream=True, response_format="json")
            events = [event async for event in stream]
            told = await hear(
                model=MODEL, file=FILE, response_format="verbose_json", timestamp_granularities=["word"]
            )
            texts = {name: one.text for name, one in zip(names, found, strict=True)}
            words = " ".join(word.word for word in told.words or ())
            assert events[-1].type == "transcript.text.done"
            return texts, events[-1].text, words

    texts, streamed, words = asyncio.run(hear_all())
    assert streamed == words == TEXT
    right = sum(text.split() == names[name] for name, text in texts.items())
    assert right >= 0.8 * len(names), texts


# -- every container and codec -----------------------------------------------------------------------------------------


def show(line: str) -> None:
    """A line of the matrix, for those who ask pytest not to keep it."""
    sys.stdout.write(f"{line}\n")


HIGH, LOW = 48_000, 8_000
CODECS = (
    Codec("wav", "pcm_s16le"),
    Codec("wav", "pcm_s24le", 44_100),
    Codec("wav", "pcm_f32le", 96_000),
    Codec("wav", "pcm_u8"),
    Codec("wav", "pcm_mulaw"),
    Codec("wav", "pcm_alaw"),
    Codec("wav", "adpcm_ima_wav"),
    Codec("wav", "adpcm_ms"),
    Codec("w64", "pcm_s16le"),
    Codec("aiff", "pcm_s16be"),
    Codec("au", "pcm_s16be"),
    Codec("caf", "pcm_s16le"),
    Codec("caf", "alac"),
    Codec("voc", "pcm_s16le"),
    Codec("flac", "flac", 44_100),
    Codec("ogg", "flac"),
    Codec("ogg", "vorbis", HIGH, channels=2),
    Codec("ogg", "libopus", HIGH),
    Codec("opus", "libopus", HIGH),
    Codec("mp3", "libmp3lame", 44_100),
    Codec("mp3", "libmp3lame", 16_000, channels=2),
    Codec("mp2", "mp2", 44_100),
    Codec("adts", "aac", 44_100),
    Codec("ipod", "aac", 44_100),  # .m4a
    Codec("ipod", "alac", 44_100),
    Codec("mp4", "aac", HIGH),
    Codec("mp4", "aac", HIGH, film="mpeg4"),
    Codec("mp4", "aac", HIGH, film="libx264"),
    Codec("mov", "pcm_s16le", HIGH, film="mjpeg"),
    Codec("3gp", "libopencore_amrnb", LOW, bits=12_200),
    Codec("amr", "libopencore_amrnb", LOW, bits=12_200),
    Codec("webm", "libopus", HIGH),
    Codec("webm", "vorbis", HIGH, channels=2),
    Codec("webm", "libopus", HIGH, film="libvpx"),
    Codec("matroska", "libopus", HIGH),  # .mka
    Codec("matroska", "flac", HIGH, film="mpeg4"),
    Codec("matroska", "pcm_s16le", HIGH),
    Codec("avi", "libmp3lame", 44_100, film="mpeg4"),
    Codec("mpegts", "aac", HIGH, film="mpeg4"),
    Codec("mpegts", "mp2", HIGH),
    Codec("asf", "wmav2", 44_100, bits=64_000),  # .wma
    Codec("flv", "libmp3lame", 44_100),
    Codec("ac3", "ac3", HIGH),
    Codec("eac3", "eac3", HIGH),
    Codec("tta", "tta", 44_100),
    Codec("wv", "wavpack", 44_100),
    Codec("wav", "g722"),
    Codec("nut", "pcm_s16le"),
)


def test_format_matrix(demo: RunningServer, tmp_path: Path) -> None:
    """Whatever FFmpeg writes here is heard alike; what this build cannot write is said, and it is little."""
    faults, missing = [], []
    for codec in CODECS:
        path = written(tmp_path / "file", FILE, codec)
        if path is None:
            missing.append(codec)
            show(f"{codec!s:<42} cannot be written here")
            continue
        answer = send(demo, path)
        text = answer.json().get("text") if answer.status_code == 200 else answer.text
        seconds = f"{answer.elapsed.total_seconds():5.2f} s"
        show(f"{codec!s:<42} {path.stat().st_size / 1000:7.1f} kB {answer.status_code} {seconds}  {text}")
        if text != TEXT:
            faults.append((str(codec), text))
    assert not faults
    assert len(missing) < 0.2 * len(CODECS), missing


def test_every_response_format_says_it(demo: RunningServer) -> None:
    fields: dict[str, dict[str, Any]] = {
        "json": {},
        "text": {},
        "srt": {},
        "vtt": {},
        "verbose_json": {"timestamp_granularities[]": ["word", "segment"]},
    }
    for name, more in fields.items():
        answer = send(demo, FILE, response_format=name, **more)
        show(f"-- {name}\n{answer.text.rstrip()}")
        assert answer.status_code == 200 and TEXT in answer.text
        assert answer.headers["x-oxlo-price-usd"] == "0.0001"
    answer = send(demo, FILE, stream="true")
    show(f"-- stream\n{answer.text.rstrip()}")
    *events, last, _ = answer.text.split("\n\n")
    assert last == "data: [DONE]" and json.loads(events[-1].removeprefix("data: "))["text"] == TEXT
    answer = send(demo, FILE, response_format="diarized_json")
    judge("ErrorResponse", answer.json())
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")


def send(server: RunningServer, path: Path, **fields: Any) -> httpx.Response:
    return httpx.post(
        f"{server.base_url}/audio/transcriptions",
        data={"model": MODEL, **fields},
        files={"file": ("file", path.read_bytes())},
        timeout=50,
    )
