"""What an engine would bring up: events for renderers, and how a renderer is fed."""

from collections.abc import Sequence

from oxlo_local.calls import Done, Event, Finished, Started, Text, TokenLogprob, TopLogprob, Usage
from oxlo_local.protocol.parts import Head, Renderer

HEAD = Head(id="x-1", created=1_700_000_000, model="some model", fingerprint="fp_0123456789")
USAGE = Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=2)
DONE = Done("c", USAGE)
NEVER = float("-inf")


def token(text: str, logprob: float | None = -0.5, data: bytes | None = None) -> TokenLogprob:
    """A token with itself and one that could not come as candidates."""
    raw = list(text.encode() if data is None else data)
    top = [] if logprob is None else [TopLogprob(text, raw, logprob), TopLogprob("no", [110, 111], NEVER)]
    return TokenLogprob(text, raw, logprob, top)


def spoken(*texts: str, choice: int = 0, logprobs: bool = False) -> list[Event]:
    """A choice said piece by piece, then finished."""
    said = [Text("c", choice, text, 1, [token(text)] if logprobs else []) for text in texts]
    return [*said, Finished("c", choice, "stop")]


def rendered(renderer: Renderer, events: Sequence[Event]) -> bytes:
    """All that the renderer makes of a call's events."""
    return b"".join(renderer.add(event) for event in [Started("c", 7, 2), *events])
