"""A small pipeline of random numbers, and engines that draw with it."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from oxlo_local import random_diffuser
from oxlo_local.calls import Drawn, Event, ImageCall, ImageOptions, Load
from oxlo_local.engines.image.engine import ImageEngine

SIZES = [(64, 64), (96, 64), (64, 96)]
OPTIONS = ImageOptions(device="cpu", threads=1, steps=3, guidance=4.0, sizes=SIZES, batch=4)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion that draws 64 pixels."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    random_diffuser.write(folder)
    return folder


def opened(folder: Path, options: ImageOptions = OPTIONS) -> ImageEngine:
    return ImageEngine(Load("image", "tiny", str(folder), options), lambda fraction: None)


@pytest.fixture(scope="session")
def shared_engine(tiny_folder: Path) -> Iterator[ImageEngine]:
    made = opened(tiny_folder)
    yield made
    made.close()


@pytest.fixture
def engine(shared_engine: ImageEngine) -> ImageEngine:
    """An engine on which nothing runs."""
    assert not shared_engine.busy()
    return shared_engine


def drawn(events: Sequence[Event]) -> list[Drawn]:
    return [event for event in events if isinstance(event, Drawn)]


def pixels(events: Sequence[Event]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(one.data)).convert("RGB") for one in drawn(events)]


def asking(id: str = "c", **more: Any) -> ImageCall:
    return ImageCall(**{"id": id, "prompt": "a red circle", "seed": 7, **more})
