"""Where `oxlo image` puts files, and what it refuses before it asks anybody."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from oxlo_local.cli.easel import Place, Wish, check, place_of, read
from oxlo_local.drawing import Image


def image(index: int = 0, seed: int = 7, form: str = "png") -> Image:
    return Image(index, b"x", seed, "64x64", form)  # type: ignore[arg-type]


def test_unasked_a_file_is_named_after_its_seed_and_replaces_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = place_of(None, 2, None)
    assert place.path_of(image()) == Path("oxlo-7.png")
    Path("oxlo-7.png").touch()
    assert place.path_of(image()) == Path("oxlo-7-2.png")
    assert place.path_of(image(1, 8, "jpeg")) == Path("oxlo-8.jpg")


def test_a_file_or_one_beside_it_for_each(tmp_path: Path) -> None:
    assert place_of(tmp_path / "a.PNG", 1, None).path_of(image()) == tmp_path / "a.PNG"
    several = place_of(tmp_path / "a.jpeg", 3, None)
    assert several.form == "jpeg" and several.path_of(image(2)) == tmp_path / "a-3.jpeg"
    assert place_of(tmp_path / "a.dat", 1, "webp") == Place("webp", file=tmp_path / "a.dat")


def test_a_folder_is_made(tmp_path: Path) -> None:
    place = place_of(tmp_path / "new" / "folder", 1, "webp")
    assert place == Place("webp", folder=tmp_path / "new" / "folder") and (tmp_path / "new/folder").is_dir()


def test_standard_output_is_no_file() -> None:
    assert place_of(Path("-"), 1, None).path_of(image()) is None


@pytest.mark.parametrize(
    ("output", "count", "form", "words"),
    [
        ("-", 2, None, "one image"),
        ("a.gif", 1, None, "no format"),
        ("a.png", 1, "jpeg", "no name for jpeg"),
        ("missing/a.png", 1, None, "no folder"),
        ("file/below", 1, None, "cannot be made"),
    ],
)
def test_what_cannot_be_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, count: int, form: str | None, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(typer.BadParameter, match=words):
        place_of(Path(output), count, form)  # type: ignore[arg-type]


def test_a_file_to_start_from(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert read(tmp_path / "a") == b"x" and read(None) is None
    with pytest.raises(typer.BadParameter, match="cannot be read"):
        read(tmp_path / "b")


def test_options_that_do_not_go_together() -> None:
    file = Path("a.png")
    wish = Wish("x", 1, None, None, None, 5.0, None, 0.5, True)
    check(wish, file, file, None, as_json=True)
    for changed, source, output, words in (
        (replace(wish, prompt=" "), file, None, "empty"),
        (replace(wish, strength=None), None, None, "--from"),
        (wish, None, None, "--from"),
        (wish, file, Path("-"), "both want"),
        (replace(wish, guidance=math.nan), file, None, "numbers"),
        (replace(wish, strength=math.nan), file, None, "numbers"),
    ):
        with pytest.raises(typer.BadParameter, match=words):
            check(changed, source, file, output, as_json=True)
