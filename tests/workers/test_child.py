"""A process as the parent sees it: its words, its end, and the reasons for it. The children are small scripts."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from oxlo_local.calls import EchoOptions, Load, Loading, Ready, Up
from oxlo_local.workers.child import LAST_LINES, LINE_MAX, WORKER_COMMAND, Child, signal_name
from oxlo_local.workers.router import Pulse

Spawn = Callable[..., Awaitable[Child]]


@pytest.fixture
async def spawn() -> AsyncIterator[Spawn]:
    """Spawns a script, or the real worker without one."""
    children: list[Child] = []

    async def start(script: str | None = None) -> Child:
        command = WORKER_COMMAND if script is None else (sys.executable, "-c", script)
        children.append(await Child.spawn(command, Pulse(step_timeout=60, silent_max=3)))
        return children[-1]

    yield start
    for child in children:
        child.kill("the test is over")
        await child.read(lambda message: None)
        await child.ended()


async def test_its_end_is_told_with_its_last_lines(spawn: Spawn) -> None:
    script = (
        "import sys\n"
        "for i in range(100): print('line', i, file=sys.stderr)\n"
        "print('x' * 2000, file=sys.stderr)\n"
        "print('no newline', end='', file=sys.stderr)\n"
        "sys.exit(3)"
    )
    words = (await (await spawn(script)).ended()).splitlines()
    assert words[0] == "exited with status 3"
    assert words[-1] == "  no newline" and words[-2] == "  " + "x" * LINE_MAX
    assert len(words) == 1 + LAST_LINES and words[1] == f"  line {100 - LAST_LINES + 2}"


async def test_a_signal_has_a_name_and_our_own_kill_a_reason(spawn: Spawn) -> None:
    child = await spawn("import os; os.kill(os.getpid(), 11)")
    assert (await child.ended()).splitlines()[0] == "killed by SIGSEGV"
    child = await spawn("import time; time.sleep(60)")
    child.kill("killed, because it slept")
    child.kill("a later reason")
    assert await child.ended() == "killed, because it slept"


async def test_a_grandchild_that_holds_stderr_does_not_hold_the_parent(spawn: Spawn) -> None:
    script = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3)'], stdout=subprocess.DEVNULL)\n"
        "sys.stderr.write('bye\\n'); sys.stderr.flush(); import os; os._exit(1)"
    )
    async with asyncio.timeout(2.5):
        assert await (await spawn(script)).ended() == "exited with status 1\n  bye"


async def test_a_process_that_closes_its_pipe_and_stays_is_killed(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oxlo_local.workers.child.END_SECONDS", 0.2)
    child = await spawn("import os, time; os.close(1); time.sleep(60)")
    await child.read(lambda message: None)
    assert await child.ended() == "it closed its pipe and did not leave"


async def test_it_is_spoken_to_and_heard(spawn: Spawn) -> None:
    child = await spawn()
    child.send(Load("echo", "echo", "", EchoOptions()))
    heard: list[Up] = []
    ready = asyncio.Event()

    def take(message: Up) -> None:
        heard.append(message)
        if isinstance(message, Ready):
            child.facts = message.facts
            ready.set()

    reading = asyncio.create_task(child.read(take))
    await asyncio.wait_for(ready.wait(), 20)
    assert heard[0] == Loading(0.0)
    child.stop()
    await reading
    assert await child.ended() == "exited with status 0"  # of its own accord
    child.send(Load("echo", "echo", "", EchoOptions()))  # to nobody: not an error


async def test_a_process_that_is_still_loading_is_not_asked_but_killed(spawn: Spawn) -> None:
    child = await spawn()
    child.send(Load("echo", "echo", "", EchoOptions(load_seconds=60)))
    spoken = asyncio.Event()
    reading = asyncio.create_task(child.read(lambda message: spoken.set()))
    await asyncio.wait_for(spoken.wait(), 20)
    child.stop()
    await asyncio.wait_for(reading, 5)
    assert await child.ended() == "the server stopped"


async def test_silence_after_the_first_words_kills(spawn: Spawn) -> None:
    frame = "import os, sys, time; from oxlo_local.calls import Loading; from oxlo_local.workers.pipe import pack\n"
    child = await spawn(frame + "os.write(1, pack(Loading(0.0))); time.sleep(60)")
    spoken = asyncio.Event()
    reading = asyncio.create_task(child.read(lambda message: spoken.set()))
    await asyncio.wait_for(spoken.wait(), 20)
    await asyncio.wait_for(child.ping(0.01), 10)
    await reading
    assert "did not answer 3 pings" in await child.ended()


async def test_a_process_that_never_spoke_is_given_its_time_to_start(spawn: Spawn) -> None:
    child = await spawn("import time; time.sleep(60)")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(child.ping(0.01), 0.5)
    assert child.pulse.number == 0


def test_signals_without_a_name_are_told_by_number() -> None:
    assert signal_name(signal.SIGKILL) == "SIGKILL"
    assert signal_name(99) == "signal 99"
