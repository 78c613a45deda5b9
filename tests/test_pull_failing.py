"""`oxlo pull` on full disks, from hubs that fail, and in processes that are killed half-way."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from oxlo_local.errors import OxloError, Unavailable
from oxlo_local.pull import Chosen, Event, Progress
from tests import hub as stand_in
from tests.conftest import ROOT, until
from tests.hub import Repository, gguf_bytes
from tests.pulling import CHUNK, LARGER, SMALL, Desk, desk, site

__all__ = ["desk", "site"]


def test_a_full_disk_is_told_with_the_numbers_before_anything_is_fetched(
    desk: Desk, site: stand_in.Hub
) -> None:
    site.repositories["own/tiny-GGUF"] = Repository({"tiny-Q4_K_M.gguf": gguf_bytes(3_000_000)})
    desk.free = lambda path: 1_000_000
    with pytest.raises(
        OxloError, match=r"needs 3 MB in .*cache, where 1 MB are free: 2 MB too little.*HF_HOME"
    ):
        desk.pull("tiny")
    assert not site.downloads()


def test_ctrl_c_keeps_what_has_come_and_says_so(desk: Desk, site: stand_in.Hub) -> None:
    content = gguf_bytes(2 * CHUNK)
    site.repositories["own/tiny-GGUF"] = Repository({"tiny-Q4_K_M.gguf": content})

    def interrupt(event: Event) -> None:
        desk.told.append(event)
        if isinstance(event, Progress) and event.done == 2 * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        desk.pull("tiny", interrupt)
    assert "stopped: 10 MB of 21 MB are kept, the same command goes on" in desk.notes()
    assert desk.store.installed() == {}
    assert [begun.quant for begun in desk.store.unfinished("tiny")] == ["Q4_K_M"]

    desk.told.clear()
    assert desk.pull("tiny").path.read_bytes() == content
    assert site.downloads()[-1].range == f"bytes={CHUNK}-"
    assert next(event.missing for event in desk.told if isinstance(event, Chosen)) == CHUNK


def test_rm_deletes_what_an_interrupted_pull_left(desk: Desk, site: stand_in.Hub, tmp_path: Path) -> None:
    site.repositories["own/tiny-GGUF"] = Repository({"tiny-Q4_K_M.gguf": gguf_bytes(2 * CHUNK)})

    def interrupt(event: Event) -> None:
        if isinstance(event, Progress) and event.done == 2 * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        desk.pull("tiny", interrupt)
    assert desk.store.remove("tiny") == CHUNK
    assert not (tmp_path / "cache/models--own--tiny-GGUF").exists()


def test_rm_deletes_what_was_left_of_every_build_that_was_begun(
    desk: Desk, site: stand_in.Hub, tmp_path: Path
) -> None:
    content = gguf_bytes(2 * CHUNK)
    site.repositories["own/tiny-GGUF"] = Repository({"tiny-Q4_K_M.gguf": content, "tiny-Q8_0.gguf": LARGER})

    def interrupt(event: Event) -> None:
        if isinstance(event, Progress) and event.done == 2 * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        desk.pull("tiny", interrupt)
    desk.pull("tiny:Q8_0")
    assert desk.store.remove("tiny") == CHUNK + 9000
    assert not (tmp_path / "cache/models--own--tiny-GGUF").exists()


def test_a_file_may_be_called_partial(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "tiny.partial.gguf"
    path.write_bytes(SMALL)
    desk.pull(str(path))
    assert desk.store.installed() == {"tiny.partial": path} and desk.store.unfinished("tiny") == []


def test_a_wrong_file_leaves_the_model_not_here(desk: Desk, site: stand_in.Hub) -> None:
    site.wrong["tiny-Q4_K_M.gguf"] = 2
    with pytest.raises(OxloError, match="fetched twice and is wrong"):
        desk.pull("tiny")
    assert desk.store.installed() == {}
    assert desk.pull("tiny").path.read_bytes() == SMALL


def test_a_hub_that_is_away_is_an_error_for_what_is_not_here(desk: Desk, site: stand_in.Hub) -> None:
    site.status = 418
    with pytest.raises(Unavailable, match="answers 418"):
        desk.pull("tiny")


def command(desk: Desk, tmp_path: Path, site: stand_in.Hub, *arguments: str) -> subprocess.Popen[bytes]:
    """A real `oxlo` process over the stand-in."""
    return subprocess.Popen(
        [sys.executable, "-m", "oxlo_local", *arguments],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("OXLO_", "HF_"))},
            "OXLO_HOME": str(desk.settings.home),
            "OXLO_CONFIG": str(desk.settings.config),
            "HF_ENDPOINT": site.url,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_pull_that_was_killed_goes_on_where_it_stopped(
    desk: Desk, site: stand_in.Hub, tmp_path: Path
) -> None:
    content = gguf_bytes(2 * CHUNK + 500_000)
    site.repositories["own/tiny-GGUF"] = Repository({"tiny-Q4_K_M.gguf": content})
    site.stall_at["tiny-Q4_K_M.gguf"] = CHUNK + 400_000
    snapshot = desk.hub.snapshot("own/tiny-GGUF")
    partial = desk.hub.place(snapshot, snapshot.files[0]).partial

    first = command(desk, tmp_path, site, "pull", "tiny", "--json")
    assert site.stalled.wait(30)
    until(lambda: partial.exists() and partial.stat().st_size == CHUNK)
    first.kill()
    first.communicate()
    site.go_on.set()
    assert desk.store.installed() == {}

    second = command(desk, tmp_path, site, "pull", "tiny", "--json")
    out, err = second.communicate(timeout=40)
    assert second.returncode == 0, err.decode()
    events = [msgspec.json.decode(line) for line in out.splitlines()]
    assert events[0]["event"] == "chosen" and events[0]["missing"] == CHUNK + 500_000
    assert events[-1]["event"] == "pulled"
    assert [request.range for request in site.downloads()] == [None, f"bytes={CHUNK}-"]
    assert desk.store.installed()["tiny"].read_bytes() == content


def test_two_pulls_of_one_model_share_the_work(desk: Desk, site: stand_in.Hub, tmp_path: Path) -> None:
    content = gguf_bytes(CHUNK + 1000)
    site.repositories["own/tiny-GGUF"] = Repository({"tiny-Q4_K_M.gguf": content})
    site.stall_at["tiny-Q4_K_M.gguf"] = 1_000_000

    pulls = [command(desk, tmp_path, site, "pull", "tiny", "--quiet") for _ in range(2)]
    assert site.stalled.wait(30)
    lists = "/api/models/own/tiny-GGUF/tree"
    until(lambda: sum(request.path.startswith(lists) for request in site.seen) == 2, 30)
    site.go_on.set()

    for pull in pulls:
        _, err = pull.communicate(timeout=40)
        assert pull.returncode == 0, err.decode()
    assert len(site.downloads()) == 1
    assert desk.store.installed()["tiny"].read_bytes() == content
