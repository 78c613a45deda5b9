"""Transcriptions and translations over real HTTP: every format, every way to send them wrong, and what they cost.

What a model of random numbers hears is nonsense; what is asked here is all the rest.
"""

import itertools
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import pytest
from openai import OpenAI

from oxlo_local.keys import well_formed
from tests.cli.conftest import environment
from tests.conftest import RunningServer, StartServer, gone, speech_model, until
from tests.openai_description import judge

sounds = pytest.importorskip("tests.engines.speech.sounds", reason="the speech engine is not installed")

HEAR, TRANSLATE = "/v1/audio/transcriptions", "/v1/audio/translations"
LENGTH = 6.0  # seconds


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What passes for speech, as a WAV file."""
    path = tmp_path_factory.mktemp("sound") / "speech.wav"
    return bytes(sounds.wav(path, sounds.speech(LENGTH)).read_bytes())


def wav(tmp_path: Path, sound: object, **more: object) -> bytes:
    return bytes(sounds.wav(tmp_path / "made.wav", sound, **more).read_bytes())


def send(
    server: RunningServer,
    file: bytes,
    *,
    path: str = HEAR,
    name: str = "a.wav",
    headers: dict[str, str] | None = None,
    **fields: object,
) -> httpx.Response:
    data = {"model": "whisper", **fields}
    return httpx.post(
        server.url + path,
        data={key: value for key, value in data.items() if value is not None},
        files={"file": (name, file)},
        headers=headers,
        timeout=50,
    )


def left(server: RunningServer) -> list[Path]:
    """The files of requests that are over; there should be none."""
    return [path for path in (server.home / "uploads").rglob("*") if path.is_file()]


def last_row(server: RunningServer) -> sqlite3.Row:
    return server.rows()[-1]


# -- what is answered --------------------------------------------------------------------------------------------------

ANSWERS = {
    "json": ("application/json", "CreateTranscriptionResponseJson", "CreateTranslationResponseJson"),
    "verbose_json": (
        "application/json",
        "CreateTranscriptionResponseVerboseJson",
        "CreateTranslationResponseVerboseJson",
    ),
    "text": ("text/plain; charset=utf-8", None, None),
    "srt": ("text/plain; charset=utf-8", None, None),
    "vtt": ("text/vtt; charset=utf-8", None, None),
}


@pytest.mark.parametrize("path", [HEAR, TRANSLATE])
@pytest.mark.parametrize("form", ANSWERS)
def test_every_format(ears: RunningServer, recording: bytes, form: str, path: str) -> None:
    media_type, *schemas = ANSWERS[form]
    schema = schemas[path == TRANSLATE]
    answer = send(ears, recording, path=path, response_format=form)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == media_type
    assert answer.headers["x-oxlo-price-usd"] == "0.0010"
    if schema is not None:
        judge(schema, answer.json())
    cue = r"\d\d:\d\d:\d\d[,.]\d{3} --> \d\d:\d\d:\d\d[,.]\d{3}\n\S.*\n\n"
    if form == "srt":
        assert re.fullmatch(rf"(\d+\n{cue})+", answer.text)
    if form == "vtt":
        assert re.fullmatch(rf"WEBVTT\n\n({cue})+", answer.text)
    assert not left(ears)


def test_words_and_segments_lie_in_the_file(ears: RunningServer, recording: bytes) -> None:
    fields: dict[str, Any] = {
        "response_format": "verbose_json",
        "timestamp_granularities[]": ["word", "segment"],
    }
    body = send(ears, recording, **fields).json()
    judge("CreateTranscriptionResponseVerboseJson", body)
    assert body["duration"] == LENGTH and body["words"] and body["segments"]
    for one in (*body["words"], *body["segments"]):
        assert 0 <= one["start"] <= one["end"] <= LENGTH + 0.05


def test_a_stream_is_events_and_its_deltas_are_its_text(ears: RunningServer, recording: bytes) -> None:
    answer = send(ears, recording, stream="true", temperature="1")
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    told = [json.loads(event.removeprefix("data: ")) for event in events]
    for each in told:
        judge("CreateTranscriptionResponseStreamEvent", each)
    assert "".join(each["delta"] for each in told[:-1]) == told[-1]["text"]


def test_the_sdk_sends_files_and_reads_what_comes(
    ears: RunningServer, recording: bytes, tmp_path: Path
) -> None:
    client = OpenAI(base_url=ears.base_url, api_key="none", max_retries=0)
    path = tmp_path / "a.wav"
    path.write_bytes(recording)
    whole = client.audio.transcriptions.create(model="whisper", file=path, temperature=1)
    assert whole.text and whole.usage is not None and whole.usage.type == "duration"
    with path.open("rb") as file:
        verbose = client.audio.transcriptions.create(
            model="whisper",
            file=file,
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
            chunking_strategy={"type": "server_vad", "threshold": 0.4},
            language="en",
        )
    assert verbose.words and verbose.segments and verbose.language == "english"
    stream = client.audio.transcriptions.create(
        model="whisper", file=("x.mp3", recording), stream=True, include=["logprobs"]
    )
    events = list(stream)
    assert [event.type for event in events[-1:]] == ["transcript.text.done"] and len(events) > 1
    assert events[-1].logprobs  # type: ignore[union-attr]
    text = client.audio.transcriptions.create(model="whisper", file=path, response_format="text")
    assert isinstance(text, str)
    with pytest.warns(DeprecationWarning):  # the SDK's own, of late
        english = client.audio.translations.create(model="whisper", file=path, response_format="verbose_json")
    assert english.language == "english" and english.duration == LENGTH


def test_what_was_said_is_silence(ears: RunningServer, tmp_path: Path) -> None:
    answer = send(ears, wav(tmp_path, sounds.silence(20.0)))
    assert answer.status_code == 200 and answer.json()["text"] == ""
    assert answer.json()["usage"]["seconds"] == 20
    row = last_row(ears)
    assert (row["status"], row["price_micros"], row["audio_seconds"]) == ("settled", 1000, 20)


# -- what it costs -----------------------------------------------------------------------------------------------------


MADE_FOR_X: dict[str, Any] = {"metadata[job]": "x"}


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_file_has_one_flat_price_and_its_row_says_what_it_was(
    ears: RunningServer, recording: bytes, stream: str
) -> None:
    answer = send(ears, recording, language="de", stream=stream, **MADE_FOR_X)
    row = last_row(ears)
    assert row["id"] == answer.headers["x-oxlo-entry"] and row["endpoint"] == HEAR
    assert (row["status"], row["units"], row["price_micros"]) == ("settled", 1, 1000)
    assert (row["audio_seconds"], row["language"], json.loads(row["metadata"])) == (
        LENGTH,
        "de",
        {"job": "x"},
    )
    seconds = (row["total_ms"] - row["queue_ms"]) / 1000
    assert row["real_time_factor"] == pytest.approx(LENGTH / seconds, rel=0.01)
    metrics = httpx.get(f"{ears.url}/metrics").text
    assert re.search(r'oxlo_audio_real_time_factor_count\{model="whisper"\} [1-9]', metrics)


def test_a_file_that_cannot_be_decoded_costs_nothing_and_says_why(ears: RunningServer) -> None:
    answer = send(ears, b"These are words, and no sound.\n" * 100, name="song.mp3")
    error = answer.json()["error"]
    judge("ErrorResponse", answer.json())
    assert (answer.status_code, error["code"], error["param"]) == (400, "undecodable_file", "file")
    row = last_row(ears)
    assert (row["status"], row["reason"], row["error_code"]) == (
        "refunded",
        "undecodable_file",
        "undecodable_file",
    )
    assert not left(ears)


# -- what should not be sent -------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "no model": ({"model": None}, 400, "model"),
    "unknown model": ({"model": "wisper"}, 404, "model"),
    "language": ({"language": "klingon"}, 400, "language"),
    "format": ({"response_format": "docx"}, 400, "response_format"),
    "diarized": ({"response_format": "diarized_json"}, 400, "response_format"),
    "temperature": ({"temperature": "hot"}, 400, "temperature"),
    "granularity": ({"timestamp_granularities[]": ["phoneme"]}, 400, "timestamp_granularities[0]"),
    "stream of srt": ({"stream": "true", "response_format": "srt"}, 400, "response_format"),
    "two models": ({"model": ["whisper", "whisper"]}, 400, "model"),
    "long field": ({"prompt": "x" * 70_000}, 400, "prompt"),
    "logprobs of srt": ({"include[]": ["logprobs"], "response_format": "srt"}, 400, "include"),
}


@pytest.mark.parametrize("path", [HEAR, TRANSLATE])
@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_field_is_named_within_a_second_and_leaves_no_row(
    ears: RunningServer, recording: bytes, name: str, path: str
) -> None:
    fields, status, param = REFUSED[name]
    before = len(ears.rows())
    answer = send(ears, recording, path=path, **fields)
    judge("ErrorResponse", answer.json())
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert answer.elapsed.total_seconds() < 1 and answer.headers["x-should-retry"] == "false"
    assert len(ears.rows()) == before and not left(ears)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "Missing required parameter: 'file'"),
        ([("file", (None, "hello"))], "must be a file"),
        ([("file", ("a.wav", b""))], "empty"),
        ([("file", ("a.wav", b"x")), ("file", ("b.wav", b"y"))], "send one file"),
        ([("audio", ("a.wav", b"x"))], "Missing required parameter: 'file'"),
    ],
)
def test_a_request_has_one_file(ears: RunningServer, files: list[object], words: str) -> None:
    padded = [*files, ("filler", ("", b""))]
    answer = httpx.post(ears.url + HEAR, data={"model": "whisper"}, files=padded)  # type: ignore[arg-type]
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "file" and not left(ears)


def test_files_that_are_none_leave_the_worker_alive(
    ears: RunningServer, recording: bytes, tmp_path: Path
) -> None:
    pid = ears.workers()[0]["pid"]
    broken = {
        "one byte": b"x",
        "a head alone": recording[:44],
        "zeros": bytes(100_000),
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(1000),
        "a zip": b"PK\x03\x04" + bytes(1000),
        "no samples": wav(tmp_path, sounds.silence(0)),
    }
    for name, data in broken.items():
        answer = send(ears, data)
        assert answer.status_code == 400, (name, answer.text)
        assert answer.json()["error"]["param"] == "file" and answer.elapsed.total_seconds() < 1
        assert last_row(ears)["status"] == "refunded"
    assert not left(ears)
    assert ears.workers()[0]["pid"] == pid and ears.workers()[0]["restarts"] == 0


@pytest.mark.parametrize("name", ["../../../../etc/passwd", "a.txt", "", "\\\\host\\x.wav", "a/b.wav"])
def test_the_name_of_a_file_says_nothing(ears: RunningServer, recording: bytes, name: str) -> None:
    answer = httpx.post(
        ears.url + HEAR, data={"model": "whisper"}, files={"file": (name or " ", recording)}, timeout=50
    )
    assert answer.status_code == 200, answer.text


def test_many_channels_and_a_high_rate_are_heard(ears: RunningServer, tmp_path: Path) -> None:
    data = wav(tmp_path, sounds.speech(2.0), rate=192_000, channels=16)
    answer = send(ears, data)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["seconds"] == pytest.approx(2.0 * 16_000 / 192_000, abs=0.01)


def test_other_bodies_are_a_415(ears: RunningServer) -> None:
    for content in (b'{"model": "whisper"}', b"model=whisper"):
        for kind in ("application/json", "application/x-www-form-urlencoded", "audio/wav"):
            answer = httpx.post(ears.url + HEAR, content=content, headers={"content-type": kind})
            assert answer.status_code == 415 and "multipart/form-data" in answer.json()["error"]["message"]


def test_kinds_of_models_and_endpoints_go_together(ears: RunningServer, recording: bytes) -> None:
    body = {"model": "whisper", "messages": [{"role": "user", "content": "x"}]}
    answer = httpx.post(f"{ears.url}/v1/chat/completions", json=body)
    assert answer.status_code == 400 and HEAR in answer.json()["error"]["message"]
    assert send(ears, recording, model="oxlo-demo").status_code == 400


def test_unknown_fields_and_files_are_named(ears: RunningServer, recording: bytes) -> None:
    files = {"file": ("a.wav", recording), "cover": ("c.png", b"x" * 1000)}
    answer = httpx.post(ears.url + HEAR, data={"model": "whisper", "mood": "x"}, files=files, timeout=50)
    warnings = answer.headers["x-oxlo-warnings"]
    assert answer.status_code == 200 and '"mood"' in warnings and '"cover"' in warnings


# -- who may ask -------------------------------------------------------------------------------------------------------


def test_a_web_page_may_not_send_a_form(ears: RunningServer, recording: bytes) -> None:
    """A form is what a page may send anywhere without asking; its Origin is what tells it apart."""
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9"):
        answer = send(ears, recording, headers={"origin": origin})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
    answer = send(ears, recording, headers={"host": "evil.example"})
    assert answer.status_code == 403 and not left(ears)


def test_a_key_may_be_for_audio_alone(start_server: StartServer, recording: bytes, tmp_path: Path) -> None:
    home = tmp_path / "keys"
    home.mkdir()
    server = start_server(speech_model(home), home=home)
    keys = {}
    for name, endpoints in (("ear", "audio"), ("mouth", "chat")):
        made = subprocess.run(
            [sys.executable, "-m", "oxlo_local", "keys", "create", name, "--endpoints", endpoints, "--json"],
            env=environment(home),
            capture_output=True,
            check=True,
        )
        keys[name] = next(word for word in re.findall(r"\w+", made.stdout.decode()) if well_formed(word))
    for path, fields in itertools.product((HEAR, TRANSLATE), ({}, {"stream": "true"})):
        refused = send(server, recording, path=path, headers={"x-api-key": keys["mouth"]}, **fields)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
    assert send(server, recording, headers={"x-api-key": keys["ear"]}).status_code == 200
    assert send(server, recording).status_code == 401
    assert [row["status"] for row in server.rows()] == ["settled"] and not left(server)


# -- once, and until the end -------------------------------------------------------------------------------------------


def test_the_same_form_is_answered_once_whatever_its_boundary(ears: RunningServer, recording: bytes) -> None:
    before, headers = len(ears.rows()), {"idempotency-key": "form"}
    first, again = (send(ears, recording, headers=headers, temperature="1") for _ in range(2))
    assert first.request.headers["content-type"] != again.request.headers["content-type"]
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["x-oxlo-replayed"] == "true" and len(ears.rows()) == before + 1
    other = send(ears, recording[:-100], headers=headers, temperature="1")
    assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_conflict")
    assert not left(ears)


def test_a_form_over_the_limit_is_a_413(start_server: StartServer, recording: bytes, tmp_path: Path) -> None:
    home = tmp_path / "narrow"
    home.mkdir()
    server = start_server(speech_model(home), home=home, OXLO_MAX_UPLOAD_BYTES="100000")
    answer = send(server, recording)
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "file")
    assert "100000" in answer.json()["error"]["message"] and not server.rows() and not left(server)


@pytest.mark.parametrize(("lie", "words"), [(1000, "announces"), (-10, "invalid_request_error")])
def test_a_length_that_is_a_lie_is_told_within_a_second(
    ears: RunningServer, recording: bytes, lie: int, words: str
) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    body = head + recording[:5000] + b"\r\n--b--\r\n"
    where = urlsplit(ears.url)
    with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=1) as link:
        kind = "content-type: multipart/form-data; boundary=b"
        lines = (
            f"POST {HEAR} HTTP/1.1",
            "host: localhost",
            kind,
            f"content-length: {len(body) + lie}",
            "",
            "",
        )
        link.sendall("\r\n".join(lines).encode() + body)
        answer = b""
        while words.encode() not in answer and (more := link.recv(65536)):
            answer += more
    assert answer.startswith(b"HTTP/1.1 400 ") and words.encode() in answer
    until(lambda: not left(ears))


def slowly(server: RunningServer, recording: bytes) -> Iterator[bytes]:
    """A form whose end does not come: the file is on the disk by then."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    yield head + recording
    until(lambda: left(server))
    yield b"more"


def test_what_is_half_sent_goes_with_its_server_also_after_kill_9(
    start_server: StartServer, recording: bytes, tmp_path: Path
) -> None:
    home = tmp_path / "killed"
    home.mkdir()
    server = start_server(speech_model(home), home=home)

    def body() -> Iterator[bytes]:
        yield from slowly(server, recording)
        server.process.send_signal(signal.SIGKILL)
        until(lambda: gone(server.pid))
        yield b"x"

    with pytest.raises(httpx.HTTPError):
        kind = {"content-type": "multipart/form-data; boundary=b"}
        httpx.post(server.url + HEAR, content=body(), headers=kind, timeout=50)
    server.process.wait()
    assert len(left(server)) == 1
    again = start_server("whisper", home=home)
    assert not left(again) and again.rows() == []


def test_a_client_that_leaves_takes_its_file_along(ears: RunningServer, recording: bytes) -> None:
    def body() -> Iterator[bytes]:
        yield from slowly(ears, recording)
        raise KeyboardInterrupt

    before = len(ears.rows())
    with pytest.raises(KeyboardInterrupt):
        kind = {"content-type": "multipart/form-data; boundary=b"}
        httpx.post(ears.url + HEAR, content=body(), headers=kind, timeout=50)
    until(lambda: not left(ears))
    assert len(ears.rows()) == before


def test_how_far_a_long_file_is_can_be_seen(ears: RunningServer, tmp_path: Path) -> None:
    data = wav(tmp_path, sounds.speech(400.0))
    seen: list[dict[str, Any]] = []
    with httpx.stream(
        "POST",
        ears.url + HEAR,
        data={"model": "whisper", "stream": "true", "response_format": "verbose_json"},
        files={"file": ("long.wav", data)},
        timeout=50,
    ) as answer:
        for line in answer.iter_lines():
            if '"segment"' in line and not seen:
                seen += cast("list[dict[str, Any]]", ears.workers()[0]["files"])
                break
    assert [each["of"] for each in seen] == [400.0] and seen[0]["call"] == answer.headers["x-oxlo-entry"]
    until(lambda: not left(ears))
    until(lambda: last_row(ears)["status"] == "settled")
    assert last_row(ears)["error_code"] == "cancelled" and last_row(ears)["audio_seconds"] == 400
