"""The echo engine keeps the contract of an engine; its faults that end the process are tested in tests/workers/."""

import pytest

from oxlo_local.calls import (
    Done,
    EchoOptions,
    Event,
    Failed,
    Finished,
    Load,
    Message,
    Started,
    Text,
    TextCall,
    Usage,
)
from oxlo_local.engines.echo import EchoEngine


def engine(**options: int | float | str) -> EchoEngine:
    return EchoEngine(Load("echo", "echo", "", EchoOptions(**options)), lambda fraction: None)  # type: ignore[arg-type]


def say(id: str, text: str, n: int = 1, max_tokens: int | None = None) -> TextCall:
    return TextCall(id, messages=[Message("user", text)], n=n, max_tokens=max_tokens)


def run(one: EchoEngine) -> list[Event]:
    events = []
    while one.busy():
        events += one.step()
    return events


def test_it_says_the_words_back_in_every_choice() -> None:
    one = engine()
    one.submit(say("a", "hello there", n=2))
    events = run(one)
    assert isinstance(events[0], Started) and events[0].prompt_tokens == 2
    for choice in (0, 1):
        texts = [event.text for event in events if isinstance(event, Text) and event.choice == choice]
        assert "".join(texts) == "hello there "
    ends = events[-3:]
    assert ends[:2] == [Finished("a", 0, "stop"), Finished("a", 1, "stop")]
    assert isinstance(ends[2], Done) and ends[2].usage.completion_tokens == 4


def test_max_tokens_repeats_or_cuts() -> None:
    one = engine()
    one.submit(say("a", "x y", max_tokens=3))
    events = run(one)
    assert [event.text for event in events if isinstance(event, Text)] == ["x ", "y ", "x "]
    assert Finished("a", 0, "length") in events


def test_no_more_than_parallel_run_at_once() -> None:
    one = engine(parallel=2)
    for id in "abc":
        one.submit(say(id, "w w w"))
    started = [event.id for event in one.step() if isinstance(event, Started)]
    assert started == ["a", "b"] and (one.gauges().running, one.gauges().waiting) == (2, 1)
    events = run(one)
    assert [event.id for event in events if isinstance(event, Done)] == ["a", "b", "c"]
    assert one.gauges().generated_tokens == 9


def test_cancel_ends_waiting_and_running_calls_and_ignores_others() -> None:
    one = engine(parallel=1)
    one.submit(say("a", "w", max_tokens=100))
    one.submit(say("b", "w"))
    one.step()
    for id in ("a", "b", "nobody"):
        one.cancel(id)
    assert one.step() == [
        Failed("a", "cancelled", "the call was cancelled", usage=Usage(1, 1)),
        Failed("b", "cancelled", "the call was cancelled", usage=Usage(1, 0)),
    ]
    assert not one.busy()


def test_a_prompt_beyond_the_context_fails_alone() -> None:
    one = engine(ctx=2)
    one.submit(say("a", "one two three"))
    one.submit(say("b", "fine"))
    events = run(one)
    assert isinstance(events[0], Failed) and events[0].code == "context_length_exceeded"
    assert "3 tokens" in events[0].message and "2" in events[0].message
    assert isinstance(events[-1], Done) and events[-1].id == "b"


def test_a_load_error_is_raised_in_its_own_words() -> None:
    with pytest.raises(RuntimeError, match="bad tensor"):
        engine(load_error="bad tensor")
