"""The hub's files over real HTTP: listed, fetched, resumed, checked, refused with what to do."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oxlo_local.errors import Forbidden, NotFound, ServerError, Unavailable
from oxlo_local.hub import Hub, RemoteFile
from tests import hub as stand_in
from tests.hub import Repository, gguf_bytes, running_hub

CHUNK = 10 * 1024 * 1024  # huggingface_hub writes to the disk in pieces of this size
LARGE = gguf_bytes(CHUNK * 2 + 12_345)


def silent(file: RemoteFile, done: int, *, verifying: bool) -> None:
    pass


@pytest.fixture
def site() -> Iterator[stand_in.Hub]:
    with running_hub() as site:
        yield site


@pytest.fixture
def hub(site: stand_in.Hub, tmp_path: Path) -> Hub:
    return Hub(endpoint=site.url, cache=tmp_path / "cache")


def test_a_repository_is_listed_with_sizes_hashes_and_commit(site: stand_in.Hub, hub: Hub) -> None:
    big, small = gguf_bytes(4000), b"{}"
    site.repositories["a/b"] = Repository({"m.gguf": big, "config.json": small, "sub/n.gguf": big}, "c" * 40)
    site.page_size = 2  # so that the list comes in two pages

    snapshot = hub.snapshot("a/b")

    assert snapshot.revision == "c" * 40
    files = {file.path: file for file in snapshot.files}
    assert set(files) == {"m.gguf", "config.json", "sub/n.gguf"}
    assert files["m.gguf"].sha256 == Repository.sha256(big)
    assert files["m.gguf"].bytes == 4000
    assert files["config.json"].sha256 is None
    assert files["config.json"].git_sha1 == Repository.git_sha1(small)


@pytest.mark.parametrize(
    "path", ["../../../../etc/x-Q4_K_M.gguf", "/etc/x-Q4_K_M.gguf", "a//x.gguf", "./x.gguf", "x\x1b[2J.gguf"]
)
def test_a_name_that_leads_out_of_the_cache_is_refused(site: stand_in.Hub, hub: Hub, path: str) -> None:
    site.repositories["a/b"] = Repository({"fine.gguf": gguf_bytes(4000), path: gguf_bytes(4000)})
    with pytest.raises(ServerError, match="lists a file of a/b that no repository can hold") as refused:
        hub.snapshot("a/b")
    assert refused.value.message.isprintable()


def test_a_hash_that_is_a_path_is_refused_and_nothing_is_touched(
    site: stand_in.Hub, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob is named by its hash: one that is a path would let a hub have any file of the user's removed as rotten."""
    mine = tmp_path / "mine"
    mine.write_text("years of work")
    monkeypatch.setattr(Repository, "sha256", staticmethod(lambda content: str(mine)))
    site.repositories["a/b"] = Repository({"x.gguf": gguf_bytes(4000)})
    with pytest.raises(ServerError, match="no repository can hold"):
        hub.snapshot("a/b")
    assert mine.read_text() == "years of work"


def test_a_commit_that_is_a_path_is_refused(site: stand_in.Hub, hub: Hub) -> None:
    site.repositories["a/b"] = Repository({"x.gguf": gguf_bytes(4000)}, "../../../x")
    with pytest.raises(ServerError, match="does not say which commit"):
        hub.snapshot("a/b")


def test_large_and_small_files_land_in_the_shared_cache(site: stand_in.Hub, hub: Hub) -> None:
    big, small = gguf_bytes(4000), b'{"a": 1}'
    site.repositories["a/b"] = Repository({"sub/m.gguf": big, "config.json": small})
    snapshot = hub.snapshot("a/b")

    paths = {file.path: hub.fetch(snapshot, file, silent) for file in snapshot.files}

    assert paths["sub/m.gguf"].read_bytes() == big
    assert paths["config.json"].read_bytes() == small
    assert paths["sub/m.gguf"] == hub.folder(snapshot) / "sub/m.gguf"
    assert paths["sub/m.gguf"].resolve().name == Repository.sha256(big)
    assert hub.missing_bytes(snapshot, snapshot.files) == 0


def test_the_token_stays_with_the_hub(site: stand_in.Hub, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    site.tokens.add("hf_secret")
    site.repositories["a/b"] = Repository({"m.gguf": gguf_bytes(4000)}, gated=True)
    snapshot = hub.snapshot("a/b")

    hub.fetch(snapshot, snapshot.files[0], silent)

    assert site.downloads()
    assert all(request.token is None for request in site.downloads())
    assert any(request.token == "Bearer hf_secret" for request in site.seen)


def test_a_cut_connection_is_taken_up_where_it_broke(site: stand_in.Hub, hub: Hub) -> None:
    site.repositories["a/b"] = Repository({"m.gguf": LARGE})
    site.cut_at["m.gguf"] = [CHUNK + 777]
    snapshot = hub.snapshot("a/b")

    path = hub.fetch(snapshot, snapshot.files[0], silent)

    assert path.read_bytes() == LARGE
    assert [request.range for request in site.downloads()] == [None, f"bytes={CHUNK}-"]


def test_what_an_interrupted_attempt_left_is_not_fetched_again(site: stand_in.Hub, hub: Hub) -> None:
    site.repositories["a/b"] = Repository({"m.gguf": LARGE})
    snapshot = hub.snapshot("a/b")
    (file,) = snapshot.files

    def stop_after_the_first_piece(file: RemoteFile, done: int, *, verifying: bool) -> None:
        if done > CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.fetch(snapshot, file, stop_after_the_first_piece)

    assert hub.place(snapshot, file).partial.stat().st_size == CHUNK
    assert hub.missing_bytes(snapshot, (file,)) == len(LARGE) - CHUNK
    seen: list[int] = []
    path = hub.fetch(
        snapshot, file, lambda file, done, *, verifying: None if verifying else seen.append(done)
    )
    assert path.read_bytes() == LARGE
    assert [request.range for request in site.downloads()] == [None, f"bytes={CHUNK}-"]
    assert seen[0] > CHUNK, "progress counts what was there before"
    assert not hub.place(snapshot, file).partial.exists()


def test_who_waits_for_another_pull_sees_how_far_it_is(site: stand_in.Hub, hub: Hub, tmp_path: Path) -> None:
    site.repositories["a/b"] = Repository({"m.gguf": LARGE})
    site.stall_at["m.gguf"] = CHUNK + 1
    snapshot = hub.snapshot("a/b")
    (file,) = snapshot.files
    seen: list[int] = []

    def follow(file: RemoteFile, done: int, *, verifying: bool) -> None:
        seen.append(done)
        if done == CHUNK:
            site.go_on.set()

    with ThreadPoolExecutor() as threads:
        first = threads.submit(hub.fetch, snapshot, file, silent)
        assert site.stalled.wait(30)
        second = Hub(endpoint=site.url, cache=tmp_path / "cache")
        assert second.fetch(snapshot, file, follow).read_bytes() == LARGE
        assert first.result() == hub.place(snapshot, file).path
    assert CHUNK in seen and len(site.downloads()) == 1


def test_a_wrong_file_is_fetched_once_more(site: stand_in.Hub, hub: Hub) -> None:
    content = gguf_bytes(4000)
    site.repositories["a/b"] = Repository({"m.gguf": content})
    site.wrong["m.gguf"] = 1
    snapshot = hub.snapshot("a/b")

    path = hub.fetch(snapshot, snapshot.files[0], silent)

    assert path.read_bytes() == content
    assert len(site.downloads()) == 2


def test_a_file_that_is_wrong_twice_is_an_error_and_leaves_nothing(site: stand_in.Hub, hub: Hub) -> None:
    site.repositories["a/b"] = Repository({"m.gguf": gguf_bytes(4000)})
    site.wrong["m.gguf"] = 2
    snapshot = hub.snapshot("a/b")

    with pytest.raises(ServerError, match=r"fetched twice and is wrong: its hash is [0-9a-f]{64}"):
        hub.fetch(snapshot, snapshot.files[0], silent)

    place = hub.place(snapshot, snapshot.files[0])
    assert not place.blob.exists() and not place.partial.exists() and not place.path.exists()


def test_a_rotten_file_in_the_cache_is_replaced(site: stand_in.Hub, hub: Hub) -> None:
    content = gguf_bytes(4000)
    site.repositories["a/b"] = Repository({"m.gguf": content})
    snapshot = hub.snapshot("a/b")
    blob = hub.place(snapshot, snapshot.files[0]).blob
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"rotten")

    assert hub.fetch(snapshot, snapshot.files[0], silent).read_bytes() == content


def test_a_gated_repository_is_explained(
    site: stand_in.Hub, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    site.repositories["a/b"] = Repository({"m.gguf": gguf_bytes(4000)}, gated=True)
    snapshot = hub.snapshot("a/b")

    with pytest.raises(Forbidden) as without:
        hub.fetch(snapshot, snapshot.files[0], silent)
    assert f"Accept it at {site.url}/a/b" in without.value.message
    assert "HF_TOKEN=" in without.value.message

    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(Forbidden, match="the token given .* has no access"):
        hub.fetch(snapshot, snapshot.files[0], silent)


@pytest.mark.parametrize(
    ("repo", "revision", "words"),
    [
        ("a/missing", None, "has no repository a/missing, or it is private"),
        ("a/b", "f" * 40, "has no revision f"),
        ("a//b", None, "is no repository name"),
    ],
)
def test_what_does_not_exist_is_named(
    site: stand_in.Hub, hub: Hub, repo: str, revision: str | None, words: str
) -> None:
    site.repositories["a/b"] = Repository({})
    with pytest.raises(NotFound, match=words):
        hub.snapshot(repo, revision)


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        Hub(endpoint="http://127.0.0.1:9", cache=tmp_path).snapshot("a/b")


def test_a_hub_out_of_order_is_named(site: stand_in.Hub, hub: Hub) -> None:
    site.status = 418
    with pytest.raises(Unavailable, match="answers 418"):
        hub.snapshot("a/b")


def test_a_file_too_large_for_http_is_left_to_the_library(
    site: stand_in.Hub, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above 50 GB the library uses Xet; of a hub without it, it says that the file is too large."""
    monkeypatch.setattr("huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE", 3000)
    site.repositories["a/b"] = Repository({"m.gguf": gguf_bytes(4000)})
    snapshot = hub.snapshot("a/b")
    with pytest.raises(Unavailable, match="too large to be downloaded using the regular"):
        hub.fetch(snapshot, snapshot.files[0], silent)
    assert not site.downloads()
