"""A stream is bounded, keeps the order within a choice, and has one terminal event."""

import asyncio

from oxlo_local.calls import (
    Denoised,
    Done,
    Drawn,
    Event,
    Failed,
    Finished,
    Heard,
    Language,
    Preview,
    Segment,
    Started,
    Text,
    TokenLogprob,
    Usage,
)
from oxlo_local.workers.stream import UNREAD_MAX, Drawing, Progress, Stream


def new() -> tuple[Stream, list[str]]:
    cancelled: list[str] = []
    return Stream("a", lambda: cancelled.append("a")), cancelled


async def read(stream: Stream) -> list[Event]:
    return [event async for event in stream]


async def test_unread_text_is_joined_not_lost() -> None:
    stream, _ = new()
    stream.push(Started("a", 5, 2), 0.0)
    words = [f"w{i} " for i in range(3 * UNREAD_MAX)]
    for index, word in enumerate(words):
        logprob = TokenLogprob(word, list(word.encode()), -1.0, [])
        stream.push(Text("a", index % 2, word, 1, [logprob]), 1.0)
    stream.push(Finished("a", 0, "stop"), 2.0)
    stream.push(Finished("a", 1, "length"), 2.0)
    stream.push(Done("a", Usage(5, len(words))), 2.0)
    events = await read(stream)
    assert len(events) <= UNREAD_MAX
    texts = [event for event in events if isinstance(event, Text)]
    for choice in (0, 1):
        assert "".join(text.text for text in texts if text.choice == choice) == "".join(words[choice::2])
    assert sum(text.tokens for text in texts) == sum(len(text.logprobs) for text in texts) == len(words)
    assert isinstance(events[0], Started) and isinstance(events[-1], Done)
    assert stream.completion_tokens == len(words)


async def test_text_stays_before_the_end_of_its_choice() -> None:
    stream, _ = new()
    for _ in range(UNREAD_MAX):
        stream.push(Text("a", 1, "x", 1), 0.0)
    stream.push(Text("a", 0, "last", 1), 0.0)
    stream.push(Finished("a", 0, "stop"), 0.0)
    for _ in range(UNREAD_MAX):
        stream.push(Text("a", 1, "x", 1), 0.0)
    stream.push(Failed("a", "worker_lost", "gone"), 0.0)
    seen: list[Event] = await read(stream)
    kinds = [(type(event), getattr(event, "choice", None)) for event in seen]
    assert kinds.index((Text, 0)) < kinds.index((Finished, 0))
    assert (
        sum(event.tokens for event in seen if isinstance(event, Text) and event.choice == 1) == 2 * UNREAD_MAX
    )
    assert isinstance(seen[-1], Failed)


async def test_nothing_follows_the_terminal_event() -> None:
    stream, _ = new()
    stream.push(Done("a", Usage()), 0.0)
    stream.push(Text("a", 0, "late", 1), 0.0)
    stream.push(Failed("a", "server_error", "late"), 0.0)
    assert await read(stream) == [Done("a", Usage())]
    assert await read(stream) == []
    assert isinstance(stream.terminal, Done) and stream.first_output_at is None


async def test_a_reader_that_is_cancelled_while_waiting_loses_nothing() -> None:
    stream, _ = new()
    reader = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.wait([reader])
    stream.push(Text("a", 0, "kept", 1), 3.0)
    assert await anext(stream) == Text("a", 0, "kept", 1)
    assert stream.first_output_at == 3.0


async def test_cancel_tells_once_and_wakes_the_reader() -> None:
    stream, cancelled = new()
    reader = asyncio.create_task(read(stream))
    await asyncio.sleep(0)
    stream.cancel()
    assert await reader == [] and cancelled == ["a"]
    stream.push(Text("a", 0, "unread", 1), 1.0)
    stream.push(Failed("a", "cancelled", ""), 1.0)
    stream.push(Done("a", Usage()), 1.0)
    assert (stream.first_output_at, stream.completion_tokens, stream.terminal) == (None, 0, None)


async def test_what_says_how_far_a_file_is_heard_is_no_output() -> None:
    stream, _ = new()
    stream.push(Language("a", "en", 0.9, 60.0), 1.0)
    assert stream.heard == Heard("a", 0.0, 60.0)
    stream.push(Heard("a", 12.5, 60.0), 2.0)
    assert stream.heard == Heard("a", 12.5, 60.0) and stream.first_output_at is None
    assert stream.file == Progress("a", 12.5, 60.0) and stream.drawing is None
    stream.push(segment(0), 3.0)
    assert stream.first_output_at == 3.0


async def test_a_slow_reader_is_told_how_far_a_file_is_now_and_every_segment() -> None:
    stream, _ = new()
    for number in range(UNREAD_MAX):
        stream.push(segment(number), 0.0)
        stream.push(Heard("a", number, None), 0.0)
    stream.push(Done("a", Usage()), 0.0)
    events = await read(stream)
    assert [event for event in events if isinstance(event, Segment)] == [
        segment(n) for n in range(UNREAD_MAX)
    ]
    assert (
        sum(isinstance(event, Heard) for event in events) < UNREAD_MAX
        and Heard("a", UNREAD_MAX - 1, None) in events
    )


async def test_an_image_is_output_when_it_is_complete() -> None:
    stream, _ = new()
    stream.push(Denoised("a", 0, 1, 4), 1.0)
    stream.push(Preview("a", 0, 0, b"p"), 2.0)
    assert (stream.first_output_at, stream.denoised, stream.images) == (None, Denoised("a", 0, 1, 4), 0)
    stream.push(Drawn("a", 0, b"x", 64, 32, 7), 3.0)
    stream.push(Drawn("a", 1, b"y", 64, 32, 8), 4.0)
    assert (stream.first_output_at, stream.images, stream.size) == (3.0, 2, (64, 32))
    assert stream.drawing == Drawing("a", 2, 1, 4) and stream.file is None


async def test_a_slow_reader_is_told_only_the_last_step_and_every_image() -> None:
    stream, _ = new()
    for number in range(UNREAD_MAX + 1):
        stream.push(Denoised("a", 0, number, UNREAD_MAX), 0.0)
    stream.push(Drawn("a", 0, b"x", 64, 64, 7), 1.0)
    stream.push(Done("a", Usage(images=1)), 1.0)
    events = await read(stream)
    assert [type(event) for event in events] == [Denoised, Drawn, Done]
    assert events[0] == Denoised("a", 0, UNREAD_MAX, UNREAD_MAX)


def segment(index: int) -> Segment:
    return Segment("a", index, index, index + 1.0, " x", [1], 0.0, 0.0, 1.0, 0.0)
