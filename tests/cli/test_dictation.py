"""What `oxlo transcribe` decides before it sends anything, and what it writes in the end."""

import json
import os
from pathlib import Path

import pytest
import typer

from oxlo_local.cli.dictation import STDIN, Asked, Told, opened, places_of, rendered, sources_of
from oxlo_local.errors import Unavailable
from oxlo_local.hearing import SegmentItem, Transcript, WordItem


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.wav", "b.mp3", "b.wav", "[c].wav"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.wav"], ["a.wav"]),
        (["b.*", "a.wav", "b.wav"], ["b.mp3", "b.wav", "a.wav"]),
        (["[c].wav", "-"], ["[c].wav", "-"]),
        (["a*", "bel*", "a.wav"], None),
        (["nothing.wav"], None),
        (["*.flac"], None),
        (["below"], None),
    ],
)
def test_files_and_patterns(names: list[str], found: list[str] | None) -> None:
    if found is not None:
        assert sources_of(names) == found
        return
    with pytest.raises(typer.BadParameter, match=r"folder|does not exist"):
        sources_of(names)


def test_where_transcripts_go(folder: Path) -> None:
    assert places_of(["a.wav", "-"], None, "srt") == {"a.wav": None, "-": None}
    assert places_of(["a.wav"], Path("x.srt"), "srt") == {"a.wav": Path("x.srt")}
    assert places_of(["a.wav"], Path("below"), "srt") == {"a.wav": Path("below/a.srt")}
    assert places_of([STDIN], Path("new"), "vtt") == {"-": Path("new/stdin.vtt")} and Path("new").is_dir()
    places = places_of(["b.mp3", "b.wav", "a.wav"], Path("out"), "text")
    assert [str(place) for place in places.values()] == ["out/b.mp3.txt", "out/b.wav.txt", "out/a.txt"]
    with pytest.raises(typer.BadParameter, match="one name"):
        places_of(["a.wav", "below/a.wav"], Path("out"), "json")
    with pytest.raises(typer.BadParameter, match="cannot be made a folder"):
        places_of(["a.wav", "b.wav"], Path("a.wav"), "json")


TRANSCRIPT = Transcript(
    "transcribe",
    "english",
    4.0,
    "One two.",
    [SegmentItem(0, 0, 0.5, 2.0, " One two.", [1, 2], 0.0, -0.1, 1.0, 0.0)],
    [WordItem("One", 0.5, 1.0), WordItem("two.", 1.0, 2.0)],
)


def test_every_format() -> None:
    assert rendered(TRANSCRIPT, "text", words=False) == "One two.\n"
    assert rendered(TRANSCRIPT, "srt", words=False) == "1\n00:00:00,500 --> 00:00:02,000\nOne two.\n\n"
    assert rendered(TRANSCRIPT, "vtt", words=True).count("-->") == 2
    assert json.loads(rendered(TRANSCRIPT, "json", words=False)) == {
        "text": "One two.",
        "language": "english",
    }
    assert json.loads(rendered(TRANSCRIPT, "verbose_json", words=True))["words"][1]["word"] == "two."


def test_what_the_server_is_asked() -> None:
    plain, full = Asked("m", "text"), Asked("m", "srt", "de", True, True, "Oxlo")
    assert plain.fields() == {"model": ["m"], "timestamp_granularities[]": ["segment"]}
    assert full.fields() == {
        "model": ["m"],
        "language": ["de"],
        "prompt": ["Oxlo"],
        "timestamp_granularities[]": ["segment", "word"],
    }
    assert "transcriptions" in plain.path and "translations" in full.path


def test_a_file_says_how_much_of_it_is_sent(folder: Path) -> None:
    (folder / "long").write_bytes(b"x" * 100)
    told: list[float] = []
    with Told(str(folder / "long"), told.append) as file:
        assert file.read(30) + file.read(70) == b"x" * 100
        assert file.read() == b""
    assert told == [0.3, 1.0, 1.0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_is_said(folder: Path) -> None:
    (folder / "a.wav").chmod(0)
    with pytest.raises(Unavailable, match="Permission"), opened(str(folder / "a.wav"), lambda _: None):
        pass
