"""Everything that should not be sent to be transcribed, in one table: what it is answered, how soon, and what is left.

`scripts/test -s -k bad_input` prints it.
"""

import signal
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest

from tests.conftest import RunningServer, StartServer, gone, speech_model, until
from tests.openai_description import judge

sounds = pytest.importorskip("tests.engines.speech.sounds", reason="the speech engine is not installed")

HEAR = "/v1/audio/transcriptions"
FORM = {"model": "whisper", "language": "en"}
QUIET_SECONDS = 3 * 3600
MEMORY = 300_000_000  # bytes more than before that a worker may take


@dataclass(frozen=True)
class Bad:
    """What is sent, and what it should be answered: the status, and a word of the message, or of the text."""

    files: list[tuple[str, tuple[str, bytes]]]
    status: int
    words: str = ""
    within: float = 1.0  # seconds
    fields: dict[str, Any] = field(default_factory=lambda: dict(FORM))


def one(data: bytes, status: int, words: str = "", *, name: str = "a.wav", within: float = 1.0) -> Bad:
    return Bad([("file", (name, data))], status, words, within)


# -- what is sent ------------------------------------------------------------------------------------------------------


def wav(folder: Path, sound: object, **more: Any) -> bytes:
    return bytes(sounds.wav(folder / "made.wav", sound, **more).read_bytes())


def coded(folder: Path, container: str, codec: str) -> bytes:
    """Three seconds of speech in that form."""
    source = sounds.wav(folder / "source.wav", sounds.speech(3.0))
    path = sounds.written(folder / "coded", source, sounds.Codec(container, codec, 48_000))
    return b"" if path is None else path.read_bytes()


def hush(folder: Path, seconds: int) -> bytes:
    """So much silence in little more than nothing: FLAC writes a constant once a block."""
    minute = np.zeros((1, 60 * sounds.RATE), np.int16)
    path = folder / "hush.flac"
    with sounds.av.open(str(path), "w", format="flac") as out:
        stream = out.add_stream("flac", rate=sounds.RATE, layout="mono")
        for _ in range(seconds // 60):
            frame = sounds.av.AudioFrame.from_ndarray(minute, format="s16", layout="mono")
            frame.sample_rate = sounds.RATE
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path.read_bytes()


def element(name: str, content: bytes) -> bytes:
    """An element of EBML, which Matroska is made of, with its length in eight bytes."""
    return bytes.fromhex(name) + bytes([1]) + len(content).to_bytes(7, "big") + content


def bomb(blocks: int, block_bytes: int) -> bytes:
    """A Matroska file whose blocks of silence are compressed with zlib, a thousandth of what they become."""
    audio = element("b5", np.array(16_000, ">f8").tobytes()) + element("9f", b"\1") + element("6264", b"\x10")
    packing = element("6d80", element("6240", element("5034", element("4254", b"\0"))))
    track = element("d7", b"\1") + element("73c5", b"\1") + element("83", b"\2")
    track += element("86", b"A_PCM/INT/LIT") + element("e1", audio) + packing
    packed = zlib.compress(bytes(block_bytes), 9)
    seconds = block_bytes // 32_000
    clusters = b"".join(
        element("1f43b675", element("e7", (1000 * seconds * number).to_bytes(4, "big")))
        + element("1f43b675", element("e7", (1000 * seconds * number).to_bytes(4, "big")) + block(packed))
        for number in range(blocks)
    )
    head = element("1a45dfa3", element("4282", b"matroska"))
    info = element("1549a966", element("2ad7b1", (1_000_000).to_bytes(4, "big")))
    return head + element("18538067", info + element("1654ae6b", element("ae", track)) + clusters)


def block(data: bytes) -> bytes:
    """Data of the first track, at the time of its cluster."""
    return element("a3", b"\x81\0\0\x80" + data)


def cases(folder: Path) -> Iterator[tuple[str, Bad]]:
    """What is sent, by name. The bodies are large: each is made when its turn has come."""
    speech = sounds.speech(3.0)
    good = wav(folder, speech)
    yield "empty", one(b"", 400, "is empty")
    yield "one byte", one(b"x", 400, "cannot be decoded")
    yield "a head without samples (zero-length)", one(wav(folder, sounds.silence(0)), 400, "holds no sound")
    yield "truncated WAV", one(good[: len(good) // 2], 400, "is cut off")
    for container, codec in (("flac", "flac"), ("mp3", "libmp3lame"), ("mp4", "aac")):
        whole = coded(folder, container, codec)
        if whole:
            words = "cannot be decoded" if container == "mp4" else "is cut off"
            yield f"truncated {container}", one(whole[: len(whole) // 2], 400, words)
    yield "silent", one(wav(folder, sounds.silence(3.0)), 200, '"text":""')
    yield "3 hours of silence", one(hush(folder, QUIET_SECONDS), 200, '"text":""', name="a.flac", within=120)
    yield "wrong extension (WAV as .mp3)", one(good, 200, '"text":"', name="a.mp3", within=20)
    yield "text named .mp3", one(b"Dear all, please find enclosed\n" * 300, 400, "no sound", name="a.mp3")
    yield (
        "16 channels at 192 kHz",
        one(wav(folder, sounds.speech(24.0), rate=192_000, channels=16), 200, within=20),
    )
    yield "a zip archive", one(b"PK\3\4" + bytes(100_000), 400, "no sound")
    yield (
        "zip bomb: 4 blocks of 10 kB that become 9.6 MB each",
        one(bomb(4, 9_600_000), 200, '"text":""', name="a.mkv", within=60),
    )
    yield (
        "zip bomb: one block of 1 MB that becomes 1 GB",
        one(bomb(1, 1_000_000_000), 400, "holds no sound", name="a.mkv"),
    )
    for name in (
        "../../../../etc/passwd",
        "/etc/passwd",
        "..\\..\\x.wav",
        "a/b.wav",
        "con.wav\u202e",
    ):
        yield f"named {name[:24]!r}", one(good, 200, '"text":"', name=name, within=20)
    yield "named with 5,000 letters", one(good, 400, "header size", name="a" * 5000)
    two = [("file", ("a.wav", good)), ("file", ("b.wav", good))]
    yield "two parts called file", Bad(two, 400, "file")
    yield "no file", Bad([("other", ("a.wav", good))], 400, "Missing required parameter: 'file'")
    yield "no model", Bad([("file", ("a.wav", good))], 400, "model", fields={})
    yield "unknown model", Bad([("file", ("a.wav", good))], 404, "wisper", fields={"model": "wisper"})
    yield (
        "unknown language",
        Bad([("file", ("a.wav", good))], 400, "language", fields={**FORM, "language": "xx"}),
    )


# -- what is answered --------------------------------------------------------------------------------------------------


def show(line: str) -> None:
    """A line of the table, for those who ask pytest not to keep it."""
    sys.stdout.write(f"{line}\n")


def left(server: RunningServer) -> list[Path]:
    """The files of requests that are over; there should be none."""
    return [path for path in (server.home / "uploads").rglob("*") if path.is_file()]


def faults_of(server: RunningServer, bad: Bad, answer: httpx.Response, rows: int) -> Iterator[str]:
    """What is wrong with an answer, and with what is left of its request."""
    if answer.status_code != bad.status or bad.words not in answer.text:
        yield f"answered {answer.status_code}: {answer.text[:200]}"
    if answer.elapsed.total_seconds() > bad.within:
        yield f"took {answer.elapsed.total_seconds():.2f} s"
    if left(server):
        yield f"left {len(left(server))} files"
    if bad.status >= 400:
        judge("ErrorResponse", answer.json())
        if any(row["status"] != "refunded" for row in server.rows()[rows:]):
            yield "was charged"


@pytest.mark.timeout(240)
def test_bad_input_table(ears: RunningServer, tmp_path: Path) -> None:
    worker = psutil.Process(int(str(ears.workers()[0]["pid"])))
    before = worker.memory_info().rss
    faults: dict[str, list[str]] = {}
    for name, bad in cases(tmp_path):
        rows = len(ears.rows())
        most, answer = watched(worker, lambda bad=bad: post(ears, bad))  # type: ignore[misc]
        found = list(faults_of(ears, bad, answer, rows))
        if most - before > MEMORY:
            found.append(f"took {(most - before) / 1e6:.0f} MB")
        error = answer.json().get("error", {}) if answer.status_code != 200 else {}
        told = error.get("message") or answer.text
        show(f"{name:<54} {answer.status_code} {answer.elapsed.total_seconds():6.3f} s  {told[:110]}")
        if found:
            faults[name] = found
    assert not faults
    assert ears.workers()[0]["pid"] == worker.pid and ears.workers()[0]["restarts"] == 0


def post(server: RunningServer, bad: Bad) -> httpx.Response:
    return httpx.post(server.url + HEAR, data=bad.fields, files=bad.files, timeout=100)


def watched(process: psutil.Process, work: Callable[[], httpx.Response]) -> tuple[int, httpx.Response]:
    """The most memory that a process has while something is done, bytes, and what came of that."""
    most = process.memory_info().rss
    with ThreadPoolExecutor(1) as pool:
        doing = pool.submit(work)
        while not doing.done():
            most = max(most, process.memory_info().rss)
            time.sleep(0.01)
    return most, doing.result()


def test_bad_input_that_announces_more_than_two_gigabytes_is_not_waited_for(ears: RunningServer) -> None:
    where = urlsplit(ears.url)
    with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=1) as link:
        kind = "content-type: multipart/form-data; boundary=b"
        length = f"content-length: {2 * 1024**3 + 1}"
        link.sendall("\r\n".join((f"POST {HEAR} HTTP/1.1", "host: localhost", kind, length, "", "")).encode())
        answer = link.recv(65536)
        if b"max_upload_bytes" not in answer:  # head and body may come apart
            answer += link.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"max_upload_bytes" in answer and not left(ears)


def test_files_that_are_being_heard_when_all_is_killed_are_swept_and_refunded(
    start_server: StartServer, tmp_path: Path
) -> None:
    home = tmp_path / "killed"
    home.mkdir()
    server = start_server(speech_model(home), home=home)
    long = wav(tmp_path, np.tile(sounds.speech(60.0), 30))

    def hear(_: int) -> None:
        with pytest.raises(httpx.HTTPError):
            post(server, one(long, 200))

    with ThreadPoolExecutor(3) as pool:
        hearing = pool.map(hear, range(3))
        until(lambda: len(server.workers()[0].get("files", [])) == 3)  # type: ignore[arg-type]
        worker = int(str(server.workers()[0]["pid"]))
        server.process.send_signal(signal.SIGKILL)
        list(hearing)
    server.process.wait()
    until(lambda: gone(worker))
    assert len(left(server)) == 3 and [row["status"] for row in server.rows()] == ["open"] * 3
    again = start_server("whisper", home=home)
    assert not left(again)
    assert [(row["status"], row["reason"]) for row in again.rows()] == [("refunded", "crashed")] * 3
