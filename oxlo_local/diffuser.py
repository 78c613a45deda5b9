"""What holds an image model: a folder in diffusers' form or one .safetensors file; its files and their sizes.

A folder has a model_index.json, and a folder for each part. Weights come in one number format or several (`.fp16.` in
their names); one is enough. Pickled weights are never taken: unpickling runs whatever code they hold.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from oxlo_local.errors import BadRequest

INDEX = "model_index.json"
WEIGHTS = ".safetensors"
PICKLED = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})
VARIANTS = (".fp16", ".bf16")
CONFIGURATION = frozenset({".json", ".txt", ".model", ".jinja"})
LEFT_OUT = frozenset({"safety_checker", "feature_extractor", "image_encoder"})  # they do not draw
_LONGEST_HEADER = 100_000_000


def is_path(name: str) -> bool:
    """Whether the name of low-rank weights is that of a file, and not of a model in the catalogue."""
    return name.endswith(WEIGHTS) or os.sep in name or "/" in name


def parts(names: Iterable[str]) -> list[str]:
    """Which of a repository's files make up the pipeline, the index first; none where it is no pipeline.

    Of parts that there are in several number formats the small one is taken.
    """
    known = {name: PurePosixPath(name) for name in names}
    if INDEX not in known:
        return []
    within = {
        name: path
        for name, path in known.items()
        if len(path.parts) == 2 and path.parts[0] not in LEFT_OUT and not path.name.startswith("flax")
    }
    small = {path.parts[0] for path in within.values() if path.suffix == WEIGHTS and variant(path.name)}
    found = [INDEX]
    for name, path in sorted(within.items()):
        if path.suffix == WEIGHTS and bool(variant(path.name)) == (path.parts[0] in small):
            found.append(name)
        elif path.suffix in CONFIGURATION:
            found.append(name)
    return found


def variant(name: str) -> str:
    """`fp16` for the name of a file in that number format; empty for the plain ones."""
    return next((form[1:] for form in VARIANTS if form in name), "")


def files(path: Path) -> list[Path]:
    """The files of the model at `path`, the one that says what it is first. Raises BadRequest where it holds none."""
    if not path.is_dir():
        if path.suffix in PICKLED:
            raise BadRequest(
                f"{path.name} is pickled, and unpickling runs whatever code it holds: oxlo takes .safetensors alone"
            )
        numbers(path)
        return [path]
    inside = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    code = [name for name in inside if name.endswith(".py")]
    if code:
        raise BadRequest(f"{path} brings code of its own ({code[0]}), which oxlo does not run")
    found = parts(inside)
    if not found:
        raise BadRequest(f"{path} holds no diffusers pipeline: it lacks {INDEX}")
    weighed = {PurePosixPath(name).parts[0] for name in found if name.endswith(WEIGHTS)}
    for name in sorted(inside):
        inner = PurePosixPath(name)
        if len(inner.parts) == 2 and inner.suffix in PICKLED and inner.parts[0] not in weighed | LEFT_OUT:
            raise BadRequest(
                f"{name} is pickled, and unpickling runs whatever code it holds: oxlo takes .safetensors alone"
            )
    if not weighed:
        raise BadRequest(f"{path} holds no weights in .safetensors")
    return [path / name for name in found]


def sizes(path: Path) -> dict[str, int]:
    """How many numbers each part has, without reading them; a single file is one part. Raises BadRequest."""
    if not path.is_dir():
        return {path.stem: numbers(path)}
    found: dict[str, int] = {}
    for file in files(path):
        if file.suffix == WEIGHTS:
            found[file.parent.name] = found.get(file.parent.name, 0) + numbers(file)
    return found


def numbers(file: Path) -> int:
    """How many numbers a .safetensors file holds, by its header. Raises BadRequest for another file."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(_LONGEST_HEADER, file.stat().st_size):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        return sum(_count(tensor) for tensor in tensors)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise BadRequest(f"{file} is no .safetensors file: {error}") from error


def _count(tensor: Mapping[str, list[int]]) -> int:
    return math.prod(tensor["shape"])
