"""Models with eyes, and images for them, for the tests of every room that an image passes through."""

import base64
import ctypes
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oxlo_local.random_eye import EyeKind, write_eye
from oxlo_local.random_model import Architecture, write

KINDS: list[EyeKind] = ["pixtral", "gemma3", "qwen2vl"]
TEXT_MODEL: dict[EyeKind, Architecture] = {"pixtral": "llama", "gemma3": "gemma2", "qwen2vl": "qwen2vl"}
M_PERTURB = -6  # of mallopt: memory comes filled with the complement of a byte

Files = Callable[[EyeKind], tuple[Path, Path]]


@contextmanager
def blank_memory() -> Iterator[None]:
    """Have the heap give out zeroes.

    libmtmd's pixtral graph multiplies memory by 0 that nobody has written. What real encoders need comes from the
    system, which zeroes it; these are so small that the heap gives them what others have left, NaN among it.
    """
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_PERTURB, 0xFF)
    try:
        yield
    finally:
        mallopt(M_PERTURB, 0)


@pytest.fixture(scope="session")
def sighted_files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """`sighted_files("qwen2vl")`: a text model and its encoder."""
    folder = tmp_path_factory.mktemp("sighted")

    def files(kind: EyeKind) -> tuple[Path, Path]:
        model, eye = folder / kind / f"{kind}.gguf", folder / kind / f"mmproj-{kind}.gguf"
        if not eye.exists():
            model.parent.mkdir()
            write(model, TEXT_MODEL[kind])
            write_eye(eye, kind)
        return model, eye

    return files


def png(seed: int, width: int = 72, height: int = 56) -> str:
    """A data: URI of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
