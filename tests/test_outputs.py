"""Outputs: had by whoever knows the name, and by nobody after their time."""

from pathlib import Path

import pytest

from oxlo_local.errors import NotFound, Unavailable
from oxlo_local.outputs import NAME, SCAN_SECONDS, Outputs
from tests.conftest import Clock

HOUR = 3600.0


@pytest.fixture
def outputs(tmp_path: Path, clock: Clock) -> Outputs:
    return Outputs(tmp_path / "outputs", 2, clock)


def test_a_file_is_had_by_its_name_until_it_expires(outputs: Outputs, clock: Clock, tmp_path: Path) -> None:
    name = outputs.keep(b"png", "png")
    assert NAME.fullmatch(name) and outputs.keep(b"png", "png") != name
    assert outputs.read(name) == (b"png", 2 * HOUR)
    (first, second) = (tmp_path / "outputs").iterdir()
    assert first.stat().st_mode & 0o777 == second.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "outputs").stat().st_mode & 0o777 == 0o700
    clock.advance(HOUR)
    assert outputs.read(name)[1] == HOUR
    clock.advance(HOUR)
    with pytest.raises(NotFound):
        outputs.read(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../ledger.db", "a.png", "0" * 32, "0" * 32 + ".png\n", "٠" * 32 + ".png"]
)
def test_no_other_file_is_had(outputs: Outputs, tmp_path: Path, name: str) -> None:
    outputs.keep(b"x", "png")
    (tmp_path / "ledger.db").write_bytes(b"secret")
    with pytest.raises(NotFound):
        outputs.read(name)


def test_what_has_expired_is_removed_by_whichever_process_comes_next(
    outputs: Outputs, clock: Clock, tmp_path: Path
) -> None:
    outputs.keep(b"old", "jpeg")
    clock.advance(HOUR)
    young = outputs.keep(b"young", "webp")
    clock.advance(HOUR)
    Outputs(tmp_path / "outputs", 2, clock).sweep()
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == [young]


def test_the_folder_is_walked_through_now_and_then(outputs: Outputs, clock: Clock, tmp_path: Path) -> None:
    outputs.sweep()
    outputs.keep(b"x", "png")
    clock.now += 2 * HOUR
    outputs.sweep()
    assert not list((tmp_path / "outputs").iterdir())
    name = outputs.keep(b"x", "png")
    (tmp_path / "outputs" / name).touch()
    clock.advance(SCAN_SECONDS / 2)
    outputs.sweep()
    assert len(list((tmp_path / "outputs").iterdir())) == 1


def test_what_nobody_was_told_of_goes_at_once(outputs: Outputs, tmp_path: Path) -> None:
    outputs.drop([outputs.keep(b"x", "png"), "never.png"])
    assert not list((tmp_path / "outputs").iterdir())


def test_a_disk_that_takes_nothing_is_a_503(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("no folder")
    with pytest.raises(Unavailable, match="data folder"):
        Outputs(tmp_path / "outputs", 1).keep(b"x", "png")
