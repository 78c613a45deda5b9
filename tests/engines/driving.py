"""Engines driven to the end: everything that comes up for some calls, and how each ended."""

from collections.abc import Callable, Sequence

from oxlo_local.calls import Call, Done, Event, Failed
from oxlo_local.engines import Engine


def run(
    engine: Engine, *calls: Call, once_submitted: Callable[[], None] | None = None
) -> dict[str, list[Event]]:
    """Everything that comes up for calls that are submitted at once, by id."""
    for call in calls:
        engine.submit(call)
    if once_submitted:
        once_submitted()
    found: dict[str, list[Event]] = {call.id: [] for call in calls}
    while engine.busy():
        for event in engine.step():
            found[event.id].append(event)
    return found


def end(events: Sequence[Event]) -> Done | Failed:
    """The one terminal event, which is the last."""
    terminal = [event for event in events if isinstance(event, Done | Failed)]
    assert len(terminal) == 1 and events[-1] is terminal[0]
    return terminal[0]
