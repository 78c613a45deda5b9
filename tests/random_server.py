"""A real server over a small model of random weights: it talks nonsense, at once and until its context is full."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oxlo_local import random_model
from tests.conftest import RunningServer, await_ready, launch


@contextmanager
def random_server(folder: Path) -> Iterator[RunningServer]:
    """A running server with its home in `folder`."""
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").touch()
    model = write_model(folder)
    arguments = (str(model), "--parallel", "4", "--threads", "1")
    server = await_ready(launch(home, folder / "serve.log", arguments, {}))
    try:
        yield server
    finally:
        server.stop()


def write_model(folder: Path) -> Path:
    """A model file with a chat template: it ends an answer once in 8,192 tokens, and slowly enough to interrupt it."""
    path = folder / "nonsense.gguf"
    random_model.write(
        path, shape=random_model.Shape(d=192, layers=8, heads=6, kv_heads=2, ff=512, vocab=8192)
    )
    return path
