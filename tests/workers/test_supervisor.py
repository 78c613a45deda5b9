"""The supervisor over real processes: every way a worker can end, and what its calls hear of it."""

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oxlo_local.calls import Done, Event, Failed, Finished, ImageCall, ModelFacts, Started, Text
from oxlo_local.errors import ModelNotLoaded, QueueFull, ShuttingDown
from oxlo_local.workers.child import NICE
from oxlo_local.workers.supervisor import slots_of, warm_up_call
from tests.conftest import gone
from tests.workers.conftest import MakeFleet, echo, read, ready, say, status, until


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def ends(events: list[Event]) -> list[Done | Failed]:
    return [event for event in events if isinstance(event, (Done, Failed))]


async def test_a_call_goes_down_and_its_events_come_up_in_order(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    await fleet.start([echo()])
    events = await read(fleet.submit("echo", say("a", "one two three")))
    assert text_of(events) == "one two three "
    assert [type(event) for event in events] == [Started, Text, Text, Text, Finished, Done]
    assert status(fleet).state == "ready"
    facts = fleet.facts("echo")
    assert facts is not None and facts.architecture == "echo"


async def test_an_id_belongs_to_one_open_call_and_is_free_after_its_end(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    await fleet.start([echo(step_seconds=0.01)])
    first = fleet.submit("echo", say("a", "once"))
    with pytest.raises(ValueError, match="already here"):
        fleet.submit("echo", say("a", "twice"))
    assert text_of(await read(first)) == "once "
    assert (status(fleet).waiting, status(fleet).running) == (0, 0)
    assert text_of(await read(fleet.submit("echo", say("a", "again")))) == "again "


async def test_a_call_for_a_loading_model_waits_and_is_answered(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    await fleet.start([echo(load_seconds=0.3)])
    assert fleet.ready() == ["echo: starting (0% loaded)"]
    stream = fleet.submit("echo", say("a", "patience"))
    await until(lambda: "(50% loaded)" in "".join(fleet.ready()))
    assert text_of(await read(stream)) == "patience "
    assert fleet.ready() == []


async def test_what_is_announced_is_loading_and_its_calls_wait_until_it_is_begun(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    await fleet.start([echo()])
    fleet.announce([replace(echo("demo"), counts_for_ready=False)])
    stream = fleet.submit("demo", say("a", "patience"))
    await ready(fleet)  # for which nobody waits
    announced = status(fleet, "demo")
    assert (announced.state, announced.pid, announced.waiting) == ("starting", None, 1)
    fleet.begin("demo")
    assert text_of(await read(stream)) == "patience "
    first, demo = status(fleet), status(fleet, "demo")
    assert first.pid and demo.pid
    assert os.getpriority(os.PRIO_PROCESS, demo.pid) >= NICE > os.getpriority(os.PRIO_PROCESS, first.pid)


async def test_a_drain_does_not_wait_for_what_was_never_begun(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    fleet.announce([replace(echo("demo"), counts_for_ready=False)])
    stream = fleet.submit("demo", say("a", "patience"))
    await asyncio.wait_for(fleet.drain(60), 5)
    (failed,) = await read(stream)
    assert isinstance(failed, Failed) and failed.code == "shutting_down"
    fleet.begin("demo")
    assert status(fleet, "demo").state == "stopped" and status(fleet, "demo").pid is None


async def test_pongs_carry_memory_and_gauges(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    await fleet.start([echo()])
    await read(fleet.submit("echo", say("a", "x y")))
    await until(lambda: status(fleet).gauges.generated_tokens >= 2)
    assert status(fleet).rss_bytes > 1_000_000
    assert status(fleet).pid is not None


@pytest.mark.parametrize("fault", ["crash", "exit"])
async def test_a_crash_ends_its_calls_and_the_worker_comes_back(fleet_of: MakeFleet, fault: str) -> None:
    fleet = fleet_of()
    await fleet.start([echo(step_seconds=0.01)])
    await ready(fleet)
    first = status(fleet).pid
    bystander = fleet.submit("echo", say("b", "on and on", max_tokens=100_000))
    victim = fleet.submit("echo", say("a", f"!{fault}=3 word", max_tokens=100))
    for events in await asyncio.gather(read(victim), read(bystander)):
        (end,) = ends(events)
        assert isinstance(end, Failed) and end.code == "worker_lost"
    assert fleet.ready() == ["echo: backing off"]
    assert text_of(await read(fleet.submit("echo", say("c", "again")))) == "again "
    assert status(fleet).restarts == 1
    assert status(fleet).pid != first


async def test_a_crash_is_explained_by_signal_and_by_the_last_words(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    await fleet.start([echo()])
    await read(fleet.submit("echo", say("a", "!exit=0")))
    assert "exited with status 1" in status(fleet).last_error
    assert "asked to leave the step loop" in status(fleet).last_error
    await ready(fleet)
    assert status(fleet).last_error == ""
    await read(fleet.submit("echo", say("b", "!crash=0")))
    assert "killed by SIGABRT" in status(fleet).last_error


async def test_calls_beyond_the_worker_s_window_survive_its_death(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    await fleet.start([echo(parallel=1, step_seconds=0.01)])
    await ready(fleet)
    streams = [fleet.submit("echo", say(f"s{i}", "hello there", max_tokens=20)) for i in range(5)]
    assert isinstance(await anext(streams[0]), Started)
    pid = status(fleet).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    results = [ends(await read(stream))[0] for stream in streams]
    assert [isinstance(result, Failed) for result in results] == [True, True, False, False, False]


async def test_a_failed_call_leaves_the_others_alone(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    await fleet.start([echo()])
    bad, good = fleet.submit("echo", say("a", "!fail=1 x")), fleet.submit("echo", say("b", "all well"))
    (end,) = ends(await read(bad))
    assert isinstance(end, Failed) and end.code == "server_error"
    assert text_of(await read(good)) == "all well "
    assert status(fleet).restarts == 0


async def test_a_hung_step_is_killed_by_step_timeout_although_pings_are_answered(fleet_of: MakeFleet) -> None:
    fleet = fleet_of(step_timeout=0.4)
    await fleet.start([echo()])
    (end,) = ends(await read(fleet.submit("echo", say("a", "!hang=1 x"))))
    assert isinstance(end, Failed) and end.code == "worker_lost"
    assert "step_timeout" in status(fleet).last_error
    await ready(fleet)


async def test_a_long_call_of_short_steps_outlives_step_timeout(fleet_of: MakeFleet) -> None:
    fleet = fleet_of(step_timeout=1.0)
    await fleet.start([echo(step_seconds=0.02)])
    (end,) = ends(await read(fleet.submit("echo", say("a", "x", max_tokens=70))))
    assert isinstance(end, Done)


async def test_a_frozen_process_is_killed_by_its_silence(fleet_of: MakeFleet) -> None:
    fleet = fleet_of(silent_pings=40)
    await fleet.start([echo(step_seconds=0.01)])
    stream = fleet.submit("echo", say("a", "x", max_tokens=100_000))
    assert isinstance(await anext(stream), Started)
    pid = status(fleet).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    (end,) = ends(await read(stream))
    assert isinstance(end, Failed) and end.code == "worker_lost"
    assert "did not answer" in status(fleet).last_error
    await ready(fleet)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"load_error": "tensor 'blk.0' is out of bounds"}, "tensor 'blk.0' is out of bounds"),
        ({"load_exit": 7}, "exited with status 7"),
    ],
)
async def test_a_failed_start_is_final_and_told_in_the_engine_s_words(
    fleet_of: MakeFleet, options: dict[str, Any], words: str
) -> None:
    fleet = fleet_of()
    await fleet.start([echo(load_seconds=0.1, **options)])
    stream = fleet.submit("echo", say("a", "x"))
    (end,) = ends(await read(stream))
    assert isinstance(end, Failed) and end.code == "model_not_loaded"
    assert status(fleet).state == "failed" and words in status(fleet).last_error
    assert status(fleet).restarts == 0
    with pytest.raises(ModelNotLoaded):
        fleet.submit("echo", say("b", "x"))


async def test_an_unknown_engine_and_a_missing_program_are_failed_starts(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    spec = echo()
    await fleet.start([type(spec)("odd", "abacus", "", spec.options)])
    await until(lambda: status(fleet, "odd").state == "failed")
    assert "no engine is called 'abacus'" in status(fleet, "odd").last_error
    fleet = fleet_of(command=("/nowhere/python",))
    await fleet.start([echo()])
    await until(lambda: status(fleet).state == "failed")
    assert "/nowhere/python" in status(fleet).last_error


async def test_noise_on_the_pipe_ends_the_process(fleet_of: MakeFleet) -> None:
    noise = "import os\nwhile True: os.write(1, b'Hello, I am no frame at all')"
    fleet = fleet_of(command=(sys.executable, "-c", noise))
    await fleet.start([echo()])
    await until(lambda: status(fleet).state == "failed")
    assert "noise instead of messages" in status(fleet).last_error


async def test_native_prints_on_stdout_do_not_reach_the_pipe(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    await fleet.start([echo()])
    assert text_of(await read(fleet.submit("echo", say("a", "!print=1 fine")))) == "!print=1 fine "
    assert status(fleet).restarts == 0


async def test_events_of_nobody_s_call_and_after_the_end_are_dropped(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    await fleet.start([echo()])
    events = await read(fleet.submit("echo", say("a", "!stray=0 x")))
    assert len(ends(events)) == 1 and "late" not in text_of(events) and "stray " not in text_of(events)
    assert text_of(await read(fleet.submit("echo", say("b", "next")))) == "next "


async def test_a_cancelled_call_leaves_the_worker(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    await fleet.start([echo(parallel=1, step_seconds=0.005)])
    await ready(fleet)
    running = fleet.submit("echo", say("a", "x", max_tokens=1_000_000))
    assert isinstance(await anext(running), Started)
    others = [fleet.submit("echo", say(f"w{i}", "x")) for i in range(4)]
    others[3].cancel()  # waits in the parent
    others[0].cancel()  # waits in the worker
    running.cancel()
    assert await read(running) == []
    assert [text_of(await read(other)) for other in others[1:3]] == ["x ", "x "]
    await until(lambda: (status(fleet).running, status(fleet).waiting) == (0, 0))


async def test_request_timeout_ends_the_call_and_frees_its_slot(fleet_of: MakeFleet) -> None:
    fleet = fleet_of(request_timeout=0.5)
    await fleet.start([echo(parallel=1, step_seconds=0.005)])
    await ready(fleet)
    streams = [fleet.submit("echo", say(f"a{i}", "x", max_tokens=1_000_000)) for i in range(4)]
    for stream in streams:
        (end,) = ends(await read(stream))
        assert isinstance(end, Failed) and end.code == "timeout"
    await until(lambda: (status(fleet).running, status(fleet).waiting) == (0, 0))


async def test_the_queue_is_bounded_and_tells_when_to_come_back(fleet_of: MakeFleet) -> None:
    fleet = fleet_of(queue_max=2)
    await fleet.start([echo(parallel=2, step_seconds=0.005)])
    await ready(fleet)
    streams = [fleet.submit("echo", say(f"a{i}", "x", max_tokens=1_000_000)) for i in range(4)]
    with pytest.raises(QueueFull) as refused:
        fleet.submit("echo", say("one-too-many", "x"))
    assert refused.value.retry_after is not None and refused.value.retry_after >= 1
    streams[0].cancel()
    await until(lambda: status(fleet).waiting + status(fleet).running == 3)
    fleet.submit("echo", say("welcome", "x"))


async def test_drain_lets_the_running_end_and_refuses_the_new(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    await fleet.start([echo(step_seconds=0.01, parallel=1)])
    await ready(fleet)
    streams = [fleet.submit("echo", say(f"a{i}", "x", max_tokens=10)) for i in range(4)]
    drained = asyncio.create_task(fleet.drain(20.0))
    await until(lambda: status(fleet).state == "draining")
    with pytest.raises(ShuttingDown):
        fleet.submit("echo", say("late", "x"))
    for stream in streams:
        assert isinstance(ends(await read(stream))[0], Done)
    await drained


async def test_what_does_not_end_within_the_drain_ends_with_shutting_down(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    await fleet.start([echo(step_seconds=0.01)])
    stream = fleet.submit("echo", say("a", "x", max_tokens=1_000_000))
    assert isinstance(await anext(stream), Started)
    await fleet.drain(0.05)
    await fleet.stop()
    (end,) = ends(await read(stream))
    assert isinstance(end, Failed) and end.code == "shutting_down"
    assert status(fleet).state == "stopped" and status(fleet).pid is None


async def test_what_waits_when_the_drain_is_over_is_never_sent(fleet_of: MakeFleet) -> None:
    fleet = fleet_of()
    await fleet.start([echo(step_seconds=0.01, parallel=1)])
    await ready(fleet)
    pid = status(fleet).pid
    streams = [fleet.submit("echo", say(f"a{i}", "x", max_tokens=1_000_000)) for i in range(4)]
    await fleet.drain(0.05)
    await until(lambda: (status(fleet).running, status(fleet).waiting) == (0, 0))
    assert (status(fleet).state, status(fleet).pid, status(fleet).last_error) == ("draining", pid, "")
    assert [
        end.code for stream in streams for end in ends(await read(stream)) if isinstance(end, Failed)
    ] == ["shutting_down"] * 4


async def test_a_place_that_is_not_used_goes_back(fleet_of: MakeFleet) -> None:
    fleet = fleet_of(queue_max=1)
    await fleet.start([echo(load_seconds=0.2)])
    with fleet.admit("echo"):
        with pytest.raises(QueueFull):
            fleet.admit("echo")
    stream = fleet.submit("echo", say("a", "x"))
    assert text_of(await read(stream)) == "x "


async def test_two_models_and_two_fleets_do_not_meet(fleet_of: MakeFleet) -> None:
    fleets = [fleet_of(), fleet_of()]
    for fleet in fleets:
        await fleet.start([echo("a"), echo("b")])
    streams = [
        fleet.submit(model, say("same-id" + model, f"for {model}")) for fleet in fleets for model in "ab"
    ]
    assert [text_of(await read(stream)) for stream in streams] == ["for a ", "for b "] * 2
    assert len({one.pid for fleet in fleets for one in fleet.status()}) == 4


async def test_a_child_leaves_when_its_parent_is_killed(home: Path) -> None:
    """The grandchild's stdin and its parent-death signal are the only tie: nobody is left to kill it."""
    script = (
        "import asyncio, sys\n"
        "from oxlo_local import config\n"
        "from oxlo_local.calls import EchoOptions\n"
        "from oxlo_local.workers.supervisor import Fleet, WorkerSpec\n"
        "async def main():\n"
        "    fleet = Fleet(config.load({'home': sys.argv[1]}, {}))\n"
        "    await fleet.start([WorkerSpec('echo', 'echo', '', EchoOptions(load_seconds=5))])\n"
        "    while not any(one.loaded for one in fleet.status()):\n"
        "        await asyncio.sleep(0.01)\n"
        "    print(fleet.status()[0].pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(home), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    await parent.wait()
    await until(lambda: gone(child))


def test_an_image_call_is_one_however_many_it_draws_and_a_model_is_warmed_by_a_single_step() -> None:
    facts = ModelFacts(architecture="x", context_length=77, parallel=4, chat=False, kind="image")
    call = warm_up_call("w", facts)
    assert isinstance(call, ImageCall) and (call.n, call.steps, call.width) == (1, 1, None)
    assert slots_of(ImageCall("i", "x", seed=0, n=4)) == slots_of(call) == 1
