"""libmtmd through its one door: what an image is cut into, what rows it has, and a hand on the brake."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from oxlo_local.calls import TextOptions
from oxlo_local.engines.text.eye import Eye, Stopped
from oxlo_local.engines.text.llama import Llama
from oxlo_local.engines.text.pixels import Pixels
from oxlo_local.engines.text.runs import Run
from oxlo_local.engines.weights import LoadError
from oxlo_local.random_eye import EyeKind, EyeShape, write_eye
from oxlo_local.random_model import Architecture
from tests.vision import Files, blank_memory, sighted_files

__all__ = ["sighted_files"]
MakeEye = Callable[..., Eye]


def noise(width: int, height: int, seed: int = 0) -> Pixels:
    return Pixels(width, height, np.random.default_rng(seed).bytes(width * height * 3))


@pytest.fixture
def make_eye(
    model_path: Callable[[Architecture], Path], tmp_path: Path, sighted_files: Files
) -> Iterator[MakeEye]:
    """`make_eye("gemma3")`: an encoder, and a text model that lives as long."""
    models: list[Llama] = []

    def make(kind: EyeKind, shape: EyeShape | None = None) -> Eye:
        file = tmp_path / f"{kind}.gguf"
        write_eye(file, kind, shape or EyeShape())
        options = TextOptions(ctx=256, parallel=1, threads=1, gpu_layers=0, mmproj=str(file))
        with blank_memory():
            llama = Llama(model_path("qwen2vl" if kind == "qwen2vl" else "llama"), options, lambda _: None)
        assert llama.eye is not None
        models.append(llama)
        return llama.eye

    yield make
    for model in models:
        model.close()


def go_on() -> tuple[bool, bool]:
    return True, False


@pytest.mark.parametrize(
    ("kind", "size", "count", "advance", "whole"),
    [
        ("pixtral", (64, 48), 8 * 6 + 5, 8 * 6 + 5, False),
        ("gemma3", (64, 48), 64, 64, True),
        ("gemma3", (500, 20), 64, 64, True),
        ("qwen2vl", (64, 48), 4 * 3, 4, False),
    ],
)
def test_an_image_becomes_markers_and_a_run_of_rows(
    make_eye: MakeEye, kind: EyeKind, size: tuple[int, int], count: int, advance: int, whole: bool
) -> None:
    eye = make_eye(kind)
    chunks = eye.cut(noise(*size))
    (run,) = [part for part in chunks.parts if isinstance(part, Run)]
    assert (run.count, run.advance, eye.whole) == (count, advance, whole)
    assert eye.most == (64 if whole else 0)
    assert (run.offsets is not None) == eye.mrope == (kind == "qwen2vl")
    rows = eye.encode(chunks.handles[0], run, go_on)
    assert rows.shape == (count, 64) and rows.dtype == np.float32 and np.isfinite(rows).all()
    again = eye.cut(noise(*size))
    assert (eye.encode(again.handles[0], run, go_on) == rows).all()
    other = eye.cut(noise(*size, seed=1))
    assert not np.allclose(eye.encode(other.handles[0], run, go_on), rows)


def test_rows_of_m_rope_lie_in_two_dimensions(make_eye: MakeEye) -> None:
    eye = make_eye("qwen2vl")
    (run,) = [part for part in eye.cut(noise(64, 48)).parts if isinstance(part, Run)]
    assert run.offsets is not None and run.slopes is not None
    time, height, width, rest = run.offsets
    assert time.tolist() == [0] * 12 and rest.tolist() == [0] * 12
    assert height.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert width.tolist() == [0, 1, 2, 3] * 3
    assert run.slopes[:, 0].tolist() == [1, 1, 1, 0]


def test_slices_change_nothing_and_an_encoding_can_be_given_up(make_eye: MakeEye) -> None:
    eye = make_eye("pixtral", EyeShape(layers=6))
    chunks = eye.cut(noise(128, 128))
    (run,) = [part for part in chunks.parts if isinstance(part, Run)]
    calls: dict[bool, int] = {}

    def counted(often: bool) -> tuple[bool, bool]:
        calls[often] = calls.get(often, 0) + 1
        return True, often

    whole = eye.encode(chunks.handles[0], run, go_on)
    assert (eye.encode(chunks.handles[0], run, lambda: counted(True)) == whole).all()
    assert (eye.encode(chunks.handles[0], run, lambda: counted(False)) == whole).all()
    assert calls[True] > 100 and calls[True] > 5 * calls[False] > 0
    with pytest.raises(Stopped):
        eye.encode(chunks.handles[0], run, lambda: (False, False))
    assert (eye.encode(chunks.handles[0], run, go_on) == whole).all(), "it works again afterwards"


def test_the_slimmest_images_that_are_let_through_can_be_cut(make_eye: MakeEye) -> None:
    for kind in ("pixtral", "gemma3", "qwen2vl"):
        eye = make_eye(kind)
        for size in ((1, 1), (100, 1), (1, 100), (2048, 21), (21, 2048)):
            chunks = eye.cut(noise(*size))
            (run,) = [part for part in chunks.parts if isinstance(part, Run)]
            with blank_memory():
                assert np.isfinite(eye.encode(chunks.handles[0], run, go_on)).all()


def test_an_encoder_of_another_model_is_refused_in_libmtmds_words(
    model_path: Callable[[Architecture], Path], tmp_path: Path
) -> None:
    write_eye(tmp_path / "wide.gguf", "pixtral", EyeShape(text_d=128))
    options = TextOptions(ctx=256, parallel=1, threads=1, mmproj=str(tmp_path / "wide.gguf"))
    with pytest.raises(LoadError, match="mismatch between text model"):
        Llama(model_path("llama"), options, lambda _: None)
    options = TextOptions(ctx=256, parallel=1, threads=1, mmproj=str(model_path("llama")))
    with pytest.raises(LoadError, match="cannot load the image encoder"):
        Llama(model_path("llama"), options, lambda _: None)
