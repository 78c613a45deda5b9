"""A folder that holds a speech model: Whisper in CTranslate2's form, as faster-whisper's repositories have it."""

from collections.abc import Iterable
from pathlib import Path

from oxlo_local.errors import BadRequest

NEEDED = ("model.bin", "config.json", "tokenizer.json")
ALONGSIDE = ("vocabulary.json", "vocabulary.txt", "preprocessor_config.json")
_MAGIC = b"WhisperSpec\0"
_HEAD = 64  # bytes in which a model.bin says what it is


def parts(names: Iterable[str]) -> list[str]:
    """Which of a folder's files make up the model, the weights first; none where it holds no such model."""
    known = set(names)
    if not known.issuperset(NEEDED):
        return []
    return [name for name in (*NEEDED, *ALONGSIDE) if name in known]


def files(folder: Path) -> list[Path]:
    """The files of the model in a folder. Raises BadRequest where it holds none."""
    names = parts(path.name for path in folder.iterdir())
    if not names:
        missing = ", ".join(name for name in NEEDED if not (folder / name).is_file())
        raise BadRequest(f"{folder} holds no speech model: it lacks {missing}")
    with (folder / NEEDED[0]).open("rb") as file:
        if _MAGIC not in file.read(_HEAD):
            raise BadRequest(
                f"{folder} holds no speech model: its model.bin is no Whisper in CTranslate2's form"
            )
    return [folder / name for name in names]
