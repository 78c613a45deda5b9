"""Which image encoder belongs to a model: a GGUF file of its own, usually called mmproj-something, beside the model's.

Nothing in an encoder says whose it is, and a wrong one keeps a model from starting. So one that nobody named is taken
only where it is called like the model, or where it is alone with it and says that it is as wide.
"""

import re
from pathlib import Path

from oxlo_local import gguf
from oxlo_local.errors import BadRequest, UnsupportedValue

# Encoders whose rows depend on where in the conversation the image stands, which pseudo-tokens cannot say.
REFUSED = frozenset({"hunyuanvl", "deepseek4v"})
PREFERRED = ("f16", "bf16", "q8_0", "f32")
_NOISE = re.compile(
    r"mmproj|model|[-_. ](?:f16|bf16|f32|i?q\d\w*|fp16|fp32|ud|gguf)(?=[-_. ]|$)", re.IGNORECASE
)


def checked(path: Path) -> Path:
    """An encoder that was named. Raises BadRequest where it is none; libmtmd finds out whether it is the model's."""
    path = path.expanduser().absolute()
    header = gguf.read_header(path)
    kind = projector(header)
    if header.architecture != "clip" or kind is None:
        raise BadRequest(f"{path} is no image encoder (an mmproj file)", param="mmproj")
    if kind in REFUSED:
        raise UnsupportedValue(f"{path}: encoders of the type {kind} are not supported yet", param="mmproj")
    return path


def beside(model: Path, named: str | None = None) -> Path | None:
    """The encoder that lies beside a model's file and is its own; `named` is what the catalogue calls it."""
    folders = [model.parent]
    if (
        model.parent.parent.parent.name == "snapshots"
    ):  # a repository of the hub, in which it has a folder of its own
        folders.append(model.parent.parent)
    folder = [path for each in folders for path in sorted(each.glob("*.gguf")) if path.is_file()]
    encoders = sorted(
        (path for path in folder if called_encoder(path.name)), key=lambda path: rank(path.name)
    )
    called = [path for path in encoders if path.name == Path(named or "").name or stem(path) == stem(model)]
    others = {stem(path) for path in folder if not called_encoder(path.name)}
    alone = [path for path in encoders if len(others) == 1 and _width(path) == _width(model)]
    return next((path for path in [*called, *alone] if _sees(path)), None)


def projector(header: gguf.Header) -> str | None:
    """The type of an encoder that sees, None for one that hears only."""
    if not header.values.get("clip.has_vision_encoder"):
        return None
    kind = header.values.get("clip.projector_type") or header.values.get("clip.vision.projector_type")
    return str(kind) if kind else None


def stem(path: Path) -> str:
    """A file's name without what says that it is an encoder, how it is quantised, or which part it is."""
    name = gguf.SPLIT.sub("", path.name).lower().removesuffix(".gguf")
    return re.sub(r"[^a-z0-9]+", "", _NOISE.sub("", name))


def called_encoder(name: str) -> bool:
    """Whether a file's name is that of an encoder."""
    return "mmproj" in name.lower() and name.lower().endswith(".gguf")


def rank(name: str) -> tuple[int, str]:
    """Encoders by their names, the one to take first."""
    name = name.lower()
    found = (place for place, quant in enumerate(PREFERRED) if re.search(rf"(?<![a-z]){quant}", name))
    return next(found, len(PREFERRED)), name


def _sees(path: Path) -> bool:
    try:
        checked(path)
    except BadRequest:
        return False
    return True


def _width(path: Path) -> int:
    """Of a text model's embeddings, or of the rows that an encoder makes, as far as it says; 0 = not said."""
    try:
        header = gguf.read_header(path)
    except BadRequest:
        return 0
    return header.number("vision.projection_dim" if header.architecture == "clip" else "embedding_length", 0)
