"""Fleets over the echo engine, in real processes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from oxlo_local import config
from oxlo_local.calls import EchoOptions, Event, Message, TextCall
from oxlo_local.workers.supervisor import Fleet, WorkerSpec, WorkerStatus

MakeFleet = Callable[..., Fleet]


def echo(model: str = "echo", **options: Any) -> WorkerSpec:
    """A spec of an echo worker; `options` are those of `EchoOptions`."""
    return WorkerSpec(model, "echo", "", EchoOptions(**options))


def say(id: str, text: str, **fields: Any) -> TextCall:
    """A chat call whose only message is `text`."""
    return TextCall(id, messages=[Message("user", text)], **fields)


async def read(stream: AsyncIterator[Event]) -> list[Event]:
    """All events of a stream."""
    return [event async for event in stream]


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something that can be seen from outside. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what is looked at may change in another process
            await asyncio.sleep(0.005)


def status(fleet: Fleet, model: str = "echo") -> WorkerStatus:
    """The status of one worker."""
    return next(one for one in fleet.status() if one.model == model)


async def ready(fleet: Fleet) -> None:
    """Wait until every model that counts is ready."""
    await until(lambda: not fleet.ready())


@pytest.fixture
async def fleet_of(home: Path) -> AsyncIterator[MakeFleet]:
    """Makes fleets from settings; they are stopped at the end of the test."""
    fleets: list[Fleet] = []

    def make(command: tuple[str, ...] | None = None, silent_pings: int = 100, **settings: object) -> Fleet:
        flags: dict[str, object] = {"home": home, "ping_seconds": 0.05, **settings}
        keywords = {} if command is None else {"command": command}
        fleets.append(Fleet(config.load(flags, {}), silent_pings=silent_pings, **keywords))  # type: ignore[arg-type]
        return fleets[-1]

    yield make
    for fleet in fleets:
        await fleet.stop(1.0)
