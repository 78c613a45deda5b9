"""Manifests, and what `rm` deletes: our own files, and nothing that anybody else needs."""

import os
import stat
from pathlib import Path

import pytest

from oxlo_local.config import load
from oxlo_local.errors import ModelNotFound, OxloError
from oxlo_local.store import Manifest, Store, StoredFile

REVISION, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def store(home: Path) -> Store:
    (home / "config.toml").touch()
    return Store(load({"home": str(home), "config": str(home / "config.toml")}, environ={}))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository in the hub's cache, as huggingface_hub lays it out, with another program's file in it."""
    folder = tmp_path / "cache/models--own--it"
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(OTHER)
    put(folder, OTHER, "theirs.gguf", "theirs", b"theirs")
    return folder


def put(folder: Path, revision: str, name: str, blob: str, content: bytes) -> StoredFile:
    """Put a file into the cache and describe it as a pull would."""
    target, link = folder / "blobs" / blob, folder / "snapshots" / revision / name
    link.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(target, link.parent))
    partial = target.with_name(blob + ".oxlo.incomplete")
    return StoredFile(name, link, len(content), blob, ours=True, blob=target, partial=partial)


def manifest(model_id: str, *files: StoredFile) -> Manifest:
    return Manifest(
        model_id, "hub", files[0].path, list(files), "2026-11-22T00:00:00+00:00", "own/it", REVISION, "Q8_0"
    )


def test_a_manifest_comes_back_as_it_was(store: Store, repository: Path, home: Path) -> None:
    written = manifest("you/it:odd name", put(repository, REVISION, "sub/m.gguf", "m", b"12345"))
    store.finish(written)
    assert store.manifest("you/it:odd name") == written
    assert store.installed() == {"you/it:odd name": written.path}
    (file,) = (home / "manifests").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert written.bytes == 5


def test_a_model_whose_file_is_gone_is_not_here(store: Store, repository: Path) -> None:
    file = put(repository, REVISION, "m.gguf", "m", b"12345")
    store.finish(manifest("it", file))
    assert file.blob is not None
    file.blob.unlink()
    assert store.installed() == {}
    assert store.manifest("it") is not None, "rm can still clear it away"


def test_a_broken_manifest_is_named(store: Store, home: Path) -> None:
    (home / "manifests").mkdir(exist_ok=True)
    (home / "manifests/it.json").write_text('{"id": 5}')
    with pytest.raises(OxloError, match=r"cannot read the manifest .*it\.json: .*; remove it and pull again"):
        store.installed()


def test_rm_deletes_the_file_and_leaves_the_others(store: Store, repository: Path) -> None:
    file = put(repository, REVISION, "sub/m.gguf", "m", b"12345")
    store.finish(manifest("it", file))

    assert store.remove("it") == 5

    assert not (repository / "snapshots" / REVISION).exists()
    assert not (repository / "blobs/m").exists()
    assert (repository / "snapshots" / OTHER / "theirs.gguf").read_bytes() == b"theirs"
    assert store.manifests() == []


def test_rm_of_the_last_model_removes_the_repository(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "cache/models--own--alone"
    (folder / "blobs").mkdir(parents=True)
    store.finish(manifest("it", put(folder, REVISION, "m.gguf", "m", b"12345")))
    store.remove("it")
    assert not folder.exists()
    assert folder.parent.exists()


def test_rm_keeps_bytes_that_another_snapshot_shows(store: Store, repository: Path) -> None:
    file = put(repository, REVISION, "m.gguf", "m", b"12345")
    put(repository, OTHER, "same.gguf", "m", b"12345")
    store.finish(manifest("it", file))
    assert store.remove("it") == 0
    assert not file.path.is_symlink()
    assert (repository / "snapshots" / OTHER / "same.gguf").read_bytes() == b"12345"


def test_rm_keeps_bytes_that_another_model_needs_until_it_goes_too(store: Store, repository: Path) -> None:
    file = put(repository, REVISION, "m.gguf", "m", b"12345")
    store.finish(manifest("one", file))
    store.finish(store.begin(manifest("two", file)))
    assert store.remove("one") == 0
    assert file.path.read_bytes() == b"12345"
    assert store.remove("two") == 5
    assert not file.path.is_symlink()


def test_rm_leaves_what_was_there_before_the_pull(store: Store, repository: Path) -> None:
    file = put(repository, OTHER, "theirs.gguf", "theirs", b"theirs")
    store.finish(store.begin(manifest("it", file)))
    assert store.remove("it") == 0
    assert file.path.read_bytes() == b"theirs"


def test_rm_deletes_the_bytes_so_far_of_an_unfinished_pull(store: Store, repository: Path) -> None:
    blob = repository / "blobs/m"
    partial = repository / "blobs/m.oxlo.incomplete"
    link = repository / "snapshots" / REVISION / "m.gguf"
    store.begin(manifest("it", StoredFile("m.gguf", link, 9, "m", ours=False, blob=blob, partial=partial)))
    partial.write_bytes(b"123")
    assert store.installed() == {}
    assert store.remove("it") == 3
    assert not partial.exists()
    assert store.unfinished("it") == []


def test_rm_of_what_was_never_pulled_says_what_was(store: Store, repository: Path) -> None:
    store.finish(manifest("it", put(repository, REVISION, "m.gguf", "m", b"12345")))
    with pytest.raises(ModelNotFound, match="that has not been pulled; pulled are: it"):
        store.remove("that")


def test_a_new_build_frees_the_old_one(store: Store, repository: Path) -> None:
    old, new = (
        put(repository, REVISION, "m.gguf", "m", b"12345"),
        put(repository, REVISION, "n.gguf", "n", b"1"),
    )
    store.finish(manifest("it", old))
    assert store.finish(store.begin(manifest("it", new))) == 5
    assert not old.path.is_symlink()
    assert new.path.read_bytes() == b"1"
