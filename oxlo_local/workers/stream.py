"""The events of one call on the parent's side: bounded, in order, with exactly one terminal event.

The pipe never waits for a reader: when a client reads more slowly than the model writes, its unread pieces of text are
joined (per choice), so that a slow reader slows only itself and costs no more than the text it has yet to read. Of what
says how far a file has been heard, or images have been drawn, only the last is kept for it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from oxlo_local.calls import (
    CallArguments,
    CallBegun,
    CallBroken,
    Denoised,
    Done,
    Drawn,
    Event,
    Failed,
    Finished,
    Heard,
    Language,
    Output,
    Preview,
    Reasoning,
    Started,
    Text,
)

Piece = Text | Reasoning | CallArguments

UNREAD_MAX = 4096  # events; more than this are joined


@dataclass(frozen=True)
class Progress:
    """How far a file has been transcribed, in seconds; `of` is its length where known, `call` the entry's id."""

    call: str
    seconds: float
    of: float | None


@dataclass(frozen=True)
class Drawing:
    """How far the images of a call are: so many are complete, the next one is at `step` of `of`."""

    call: str
    images: int
    step: int
    of: int


class Stream:
    """An async iterator of `Event`s that ends after the terminal one; also what is known about the call by then.

    Times are those of the clock that `push` is given, None until the thing has happened. Output counts when it
    reaches the parent, not when somebody reads it.
    """

    def __init__(self, id: str, cancel: Callable[[], None]) -> None:
        self.id = id
        self.started_at: float | None = None
        self.first_output_at: float | None = None
        self.terminal: Done | Failed | None = None
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.heard: Heard | None = None
        self.denoised: Denoised | None = None
        self.images = 0  # that are complete
        self.size: tuple[int, int] | None = None  # of the last of them
        self._cancel = cancel
        self._unread: deque[Event] = deque()
        self._bound = UNREAD_MAX
        self._over = False
        self._abandoned = False
        self._reader: asyncio.Future[None] | None = None

    def push(self, event: Event, now: float) -> None:
        """Take the call's next event. What follows the terminal one is dropped, and what comes when nobody waits any
        more: how the call stood when its reader left is how it stands.
        """
        if self.terminal is not None or self._abandoned:
            return
        if isinstance(event, Started):
            self.started_at = now
            self.prompt_tokens = event.prompt_tokens
            self.cached_tokens = event.cached_tokens
        elif isinstance(event, Done | Failed):
            self.terminal = event
        elif isinstance(event, Language | Heard | Denoised | Preview):
            self._note(event)
        elif self.first_output_at is None:
            self.first_output_at = now
        if isinstance(event, Output):
            self.completion_tokens += event.tokens
        elif isinstance(event, Drawn):
            self.images += 1
            self.size = event.width, event.height
        self._unread.append(event)
        if len(self._unread) > self._bound:
            self._unread = joined(self._unread)
            # Not to join anew for every event when the pieces cannot be joined further (many choices).
            self._bound = max(UNREAD_MAX, 2 * len(self._unread))
        self._wake()

    def _note(self, event: Language | Heard | Denoised | Preview) -> None:
        """What says how far the call is; none of it is output."""
        if isinstance(event, Language):
            self.heard = Heard(event.id, 0.0, event.seconds)
        elif isinstance(event, Heard):
            self.heard = event
        elif isinstance(event, Denoised):
            self.denoised = event

    def _wake(self) -> None:
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    @property
    def file(self) -> Progress | None:
        """How far its file is; None where it has none."""
        return None if self.heard is None else Progress(self.id, self.heard.seconds, self.heard.of)

    @property
    def drawing(self) -> Drawing | None:
        """How far its images are; None where it draws none."""
        step = self.denoised
        return None if step is None else Drawing(self.id, self.images, step.step, step.of)

    def cancel(self) -> None:
        """Nobody reads on: the worker is told, and what it still sends is not kept. Safe to call at any time."""
        self._abandoned = True
        self._unread.clear()
        self._wake()
        if self.terminal is None:
            self._cancel()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Event:
        """The next event. One reader at a time; a reader that is cancelled while waiting loses nothing."""
        while not self._unread:
            if self._over or self._abandoned:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        event = self._unread.popleft()
        if isinstance(event, Done | Failed):
            self._over = True
        return event


def joined(events: deque[Event]) -> deque[Event]:
    """The same events with each choice's neighbouring pieces of one kind made one; order within a choice is kept.

    Of several `Heard` or `Denoised` only the last is left.
    """
    result: deque[Event] = deque()
    pieces: dict[int, list[Piece]] = {}

    def flush(choice: int) -> None:
        run = pieces.pop(choice, None)
        if run:
            result.append(one_of(run))

    progress = [event for event in events if isinstance(event, Heard | Denoised)][-1:]
    for event in (event for event in events if not isinstance(event, Heard | Denoised) or event in progress):
        if isinstance(event, Text | Reasoning | CallArguments):
            run = pieces.get(event.choice)
            if run and not continues(run[0], event):
                flush(event.choice)
            pieces.setdefault(event.choice, []).append(event)
            continue
        if isinstance(event, CallBegun | CallBroken | Finished):
            flush(event.choice)
        elif isinstance(event, Done | Failed):
            for choice in list(pieces):
                flush(choice)
        result.append(event)
    for choice in list(pieces):
        flush(choice)
    return result


def continues(first: Piece, event: Piece) -> bool:
    """Whether `event` goes on with the text that `first` began."""
    if isinstance(first, CallArguments) and isinstance(event, CallArguments):
        return first.index == event.index
    return type(first) is type(event)


def one_of(run: list[Piece]) -> Event:
    """Pieces of one text as one piece."""
    whole = "".join(piece.text for piece in run)
    tokens = sum(piece.tokens for piece in run)
    first = run[0]
    if not isinstance(first, Text):
        return replace(first, text=whole, tokens=tokens)
    logprobs = [one for piece in run if isinstance(piece, Text) for one in piece.logprobs]
    return replace(first, text=whole, tokens=tokens, logprobs=logprobs)
