"""Which folders hold a speech model, and which of their files make it up."""

from pathlib import Path

import pytest

from oxlo_local import ct2, random_whisper
from oxlo_local.errors import BadRequest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "my-whisper"
    random_whisper.write(made, random_whisper.Shape(multilingual=False))
    (made / "README.md").write_text("# mine")
    return made


def test_the_files_of_a_model(folder: Path) -> None:
    assert [file.name for file in ct2.files(folder)] == [
        "model.bin", "config.json", "tokenizer.json", "vocabulary.json", "preprocessor_config.json",
    ]  # fmt: skip


def test_folders_that_hold_none(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"GGUF" * 100)
    with pytest.raises(BadRequest, match="its model.bin is no Whisper"):
        ct2.files(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadRequest, match=r"it lacks tokenizer\.json"):
        ct2.files(folder)


def test_the_parts_of_a_repository() -> None:
    names = ["README.md", "config.json", "model.bin", "vocabulary.txt", "tokenizer.json", ".gitattributes"]
    assert ct2.parts(names) == ["model.bin", "config.json", "tokenizer.json", "vocabulary.txt"]
    assert ct2.parts(names[:3]) == []
