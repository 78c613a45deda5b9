"""A file that the commands write is there whole or not at all."""

from pathlib import Path

import pytest

from oxlo_local.cli.whole import write_whole


def test_what_was_there_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "a.png"
    place.write_bytes(b"before")
    write_whole(place, b"after")
    assert place.read_bytes() == b"after" and list(tmp_path.iterdir()) == [place]


def test_a_failure_leaves_no_draft(tmp_path: Path) -> None:
    place = tmp_path / "a.png"
    place.mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(place, b"after")
    assert list(tmp_path.iterdir()) == [place]


def test_an_interrupt_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a.png", b"after")
    assert list(tmp_path.iterdir()) == []
