"""The child process by itself, spoken to over its pipes as the parent would."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxlo_local.calls import (
    Call,
    Cancel,
    Done,
    Down,
    EchoOptions,
    Event,
    Events,
    Failed,
    Load,
    LoadFailed,
    Loading,
    Ping,
    Pong,
    Ready,
    Stop,
    Submit,
    Text,
    TextOptions,
    Up,
    decode_up,
)
from oxlo_local.engines.echo import EchoEngine
from oxlo_local.workers.main import Pipe, Worker, load_engine, resident_bytes
from oxlo_local.workers.pipe import Frames, pack
from tests.conftest import gone, until
from tests.workers.conftest import say

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "oxlo_local.workers.main")
LOAD = Load("echo", "echo", "", EchoOptions())


class Spoken:
    """A worker process, message by message."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(COMMAND, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe)
        self._frames = Frames()
        self._bodies: list[bytearray] = []

    def send(self, *messages: Down) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(map(pack, messages)))
        self.process.stdin.flush()

    def hear(self) -> Up | None:
        """The next message; None at the end."""
        assert self.process.stdout is not None
        while not self._bodies:
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                return None
            self._bodies = self._frames.feed(data)
        return decode_up.decode(self._bodies.pop(0))

    def hear_a(self, kind: type[Up]) -> Up:
        """The next message of this kind."""
        while True:
            message = self.hear()
            assert message is not None, self.words()
            if isinstance(message, kind):
                return message

    def words(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def close(self) -> None:
        for file in (self.process.stdin, self.process.stdout, self.process.stderr):
            if file is not None:
                try:
                    file.close()
                except BrokenPipeError:
                    pass
        self.process.kill()
        self.process.wait()


@pytest.fixture
def worker() -> Iterator[Spoken]:
    spoken = Spoken()
    yield spoken
    spoken.close()


def test_it_speaks_first_then_loads_then_answers_and_stops(worker: Spoken) -> None:
    assert worker.hear() == Loading(0.0)
    worker.send(LOAD)
    ready = worker.hear_a(Ready)
    assert isinstance(ready, Ready) and ready.facts.architecture == "echo"
    worker.send(Submit(say("a", "one two")))
    events: list[Event] = []
    while not any(isinstance(event, Done) for event in events):
        message = worker.hear_a(Events)
        assert isinstance(message, Events)
        events += message.events
    worker.send(Stop())
    assert worker.process.wait(10) == 0


def test_pings_are_answered_in_mid_load_and_in_mid_step(worker: Spoken) -> None:
    worker.send(Load("echo", "echo", "", EchoOptions(load_seconds=1.0)), Ping(1))
    pong = worker.hear_a(Pong)
    assert isinstance(pong, Pong) and (pong.number, pong.busy, pong.step) == (1, False, 0)
    assert pong.rss_bytes > 1_000_000
    worker.hear_a(Ready)
    worker.send(Submit(say("a", "!hang=1 x")))
    worker.hear_a(Events)
    for number in (2, 3):
        worker.send(Ping(number))
        pong = worker.hear_a(Pong)
        assert isinstance(pong, Pong) and pong.number == number
    assert pong.busy and pong.step >= 1


class Hung(EchoEngine):
    """Taking a call does not return until it is let go on."""

    begun, go_on = threading.Event(), threading.Event()

    def submit(self, call: Call) -> None:
        self.begun.set()
        self.go_on.wait(20)


def test_a_call_that_hangs_while_it_is_taken_shows_in_the_pongs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oxlo_local.workers.main.load_engine", Hung)
    _, said = os.pipe()
    worker = Worker(Pipe(0, said))
    for command in (LOAD, Submit(say("a", "x")), Stop()):
        worker.commands.put(command)
    running = threading.Thread(target=worker.run)
    running.start()
    try:
        assert Hung.begun.wait(20)
        first, second = worker.pong(1), worker.pong(2)
        assert first.busy and second.busy and first.step == second.step
    finally:
        Hung.go_on.set()
        running.join(20)


def test_an_event_that_no_frame_can_hold_fails_its_own_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oxlo_local.workers.pipe.MAX_FRAME", 300)
    heard, said = os.pipe()
    texts = {"a": "fits", "b": "x" * 1000, "c": "fits too"}
    Worker(Pipe(0, said)).tell([Text(id, 0, text, 1) for id, text in texts.items()], 0.0)
    os.close(said)
    messages = [decode_up.decode(body) for body in Frames().feed(os.read(heard, 65536))]
    os.close(heard)
    events = [event for message in messages if isinstance(message, Events) for event in message.events]
    assert [(type(event), event.id) for event in events] == [(Text, "a"), (Failed, "b"), (Text, "c")]


def test_the_end_of_stdin_ends_it_in_the_middle_of_a_step(worker: Spoken) -> None:
    worker.send(LOAD, Submit(say("a", "!hang=1 x")))
    worker.hear_a(Events)
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(10) == 0


def test_cancel_of_a_running_call_ends_it_and_of_an_unknown_one_nothing(worker: Spoken) -> None:
    worker.send(Load("echo", "echo", "", EchoOptions(step_seconds=0.01)), Cancel("nobody"))
    worker.hear_a(Ready)
    worker.send(Submit(say("a", "x", max_tokens=1_000_000)))
    worker.hear_a(Events)
    worker.send(Cancel("a"))
    while True:
        message = worker.hear_a(Events)
        assert isinstance(message, Events)
        if isinstance(message.events[0], Failed):
            break
    assert message.events[0].code == "cancelled" and len(message.events) == 1


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (Load("echo", "echo", "", EchoOptions(load_error="out of memory")), "out of memory"),
        (
            Load("abacus", "m", "", TextOptions()),
            "no engine is called 'abacus'; there are echo, embedding, image, speech, text",
        ),
        (Load("text", "m", "/nowhere/model.gguf", TextOptions()), "/nowhere/model.gguf"),
    ],
)
def test_a_failed_load_is_told_and_exits_1(worker: Spoken, load: Load, words: str) -> None:
    worker.send(load)
    message = worker.hear_a(LoadFailed)
    assert isinstance(message, LoadFailed) and words in message.message
    assert worker.process.wait(20) == 1


def test_noise_on_stdin_ends_it_with_words(worker: Spoken) -> None:
    assert worker.hear() == Loading(0.0)
    assert worker.process.stdin is not None
    worker.process.stdin.write(b"\xff" * 64)
    worker.process.stdin.flush()
    assert worker.process.wait(10) == 1
    assert "the pipe from the parent is unusable" in worker.words()


def test_the_signals_of_a_terminal_or_a_service_are_ignored(worker: Spoken) -> None:
    worker.send(LOAD)
    worker.hear_a(Ready)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        worker.process.send_signal(number)
    worker.send(Ping(7))
    pong = worker.hear_a(Pong)
    assert isinstance(pong, Pong) and pong.number == 7


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_it_dies_with_its_parent_even_if_its_stdin_stays_open() -> None:
    """The test holds the pipe's other end, so that only the kernel's signal can end the grandchild."""
    read_end, write_end = os.pipe()
    script = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({COMMAND!r}, stdin={read_end}, stdout=subprocess.PIPE)\n"
        "child.stdout.read(1)\n"  # it has spoken: it is past its first lines
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, pass_fds=[read_end], stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child)
        parent.kill()
        parent.wait()
        until(lambda: gone(child))
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()
        os.close(read_end)
        os.close(write_end)


def test_resident_memory_is_that_of_this_process() -> None:
    assert resident_bytes() > 5_000_000 or sys.platform != "linux"


def test_an_unknown_engine_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="there are echo, embedding, image, speech, text"):
        load_engine(Load("abacus", "m", "", TextOptions()), lambda fraction: None)
