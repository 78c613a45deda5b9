"""Which models are on this disk: a manifest for each, and removing exactly what it names.

A manifest (OXLO_HOME/manifests/ID.json) pins a model to a repository, a commit and files with their sizes and hashes.
The files lie in the hub's shared cache, or wherever the user keeps a local GGUF. A pull that is under way, or was
interrupted, has one too, as ID:BUILD.json.partial, so that `rm` finds what it left, of every build that was ever begun.
Nothing here needs the network or the hub's library: what has been pulled is served offline.

The shared cache is everybody's. A file counts as ours only if it was not there before the pull, and a blob goes only
when nothing else, no other manifest and no other snapshot, points at it.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import msgspec
from msgspec import Struct

from oxlo_local.config import Settings
from oxlo_local.errors import ModelNotFound, OxloError


class StoredFile(Struct, frozen=True, omit_defaults=True):
    """One file of a model. `blob` and `partial` are where the hub's cache keeps its bytes; local files have none."""

    name: str
    path: Path
    bytes: int
    sha256: str
    ours: bool
    blob: Path | None = None
    partial: Path | None = None


class Manifest(Struct, frozen=True, omit_defaults=True):
    """What was pulled. `path` is what an engine loads: the (first) weights file, or a folder."""

    id: str
    source: Literal["hub", "file"]
    path: Path
    files: list[StoredFile]
    pulled: str  # ISO 8601, UTC
    repo: str | None = None
    revision: str | None = None
    quant: str | None = None

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)


def _to_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError


def _from_text(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError


WHOLE, UNFINISHED = ".json", ".json.partial"  # how the names of manifests end

_encoder = msgspec.json.Encoder(enc_hook=_to_text)
_decoder = msgspec.json.Decoder(Manifest, dec_hook=_from_text)


class Store:
    """The manifests of one OXLO_HOME."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.manifests_dir

    def installed(self) -> dict[str, Path]:
        """Pulled models whose files are all there: id -> what the engine loads."""
        return {
            manifest.id: manifest.path
            for manifest in self.manifests()
            if all(file.path.exists() for file in manifest.files)
        }

    def manifests(self) -> list[Manifest]:
        """Every complete manifest, by id."""
        return sorted(self._read_all(WHOLE), key=lambda manifest: manifest.id)

    def manifest(self, model_id: str) -> Manifest | None:
        """The manifest of a model that was pulled whole."""
        return self._read(self._file(model_id))

    def unfinished(self, model_id: str) -> list[Manifest]:
        """What pulls that are under way, or were interrupted, have set out to fetch: one for each build."""
        return [manifest for manifest in self._read_all(UNFINISHED) if manifest.id == model_id]

    def begin(self, manifest: Manifest) -> Manifest:
        """Note what a pull sets out to fetch, and return it with `ours` set for each file."""
        mine = {file.blob for other in self._read_all(WHOLE, UNFINISHED) for file in other.files if file.ours}
        files = [
            msgspec.structs.replace(file, ours=file.blob in mine or not (file.blob or file.path).exists())
            for file in manifest.files
        ]
        begun = msgspec.structs.replace(manifest, files=files)
        self._write(self._begun(manifest), begun)
        return begun

    def finish(self, manifest: Manifest) -> int:
        """Note that a model is here whole. Files of another build that it replaces go; returns the bytes freed."""
        before = self.manifest(manifest.id)
        self._write(self._file(manifest.id), manifest)
        self._begun(manifest).unlink(missing_ok=True)
        kept = {file.path for file in manifest.files}
        return self._delete([file for file in before.files if file.path not in kept]) if before else 0

    def remove(self, model_id: str) -> int:
        """Forget a model, delete the files that its manifest pinned and nothing else needs; returns the bytes freed.

        Raises ModelNotFound when there is nothing of that id.
        """
        whole, begun = self.manifest(model_id), self.unfinished(model_id)
        if whole is None and not begun:
            here = ", ".join(manifest.id for manifest in self.manifests()) or "none"
            raise ModelNotFound(f"{model_id} has not been pulled; pulled are: {here}", param="model")
        for file in (self._file(model_id), *(self._begun(manifest) for manifest in begun)):
            file.unlink(missing_ok=True)
        known = [whole, *begun] if whole else begun
        return self._delete([file for manifest in known for file in manifest.files])

    # -- files ----------------------------------------------------------------------------------------------------

    def _delete(self, files: list[StoredFile]) -> int:
        manifests = self._read_all(WHOLE, UNFINISHED)
        needed = {file.blob or file.path for manifest in manifests for file in manifest.files}
        freed = 0
        for file in files:
            if not file.ours or file.blob is None or file.blob in needed:
                continue
            file.path.unlink(missing_ok=True)
            if not _pointed_at(file.blob):
                freed += _unlink(file.blob)
            freed += _unlink(file.partial)
            _prune(file.path.parent, file.blob.parent.parent)
        return freed

    def _file(self, model_id: str) -> Path:
        return self._folder / f"{quote(model_id, safe=' ')}{WHOLE}"

    def _begun(self, manifest: Manifest) -> Path:
        return (
            self._folder
            / f"{quote(manifest.id, safe=' ')}:{quote(manifest.quant or '', safe='')}{UNFINISHED}"
        )

    def _read_all(self, *endings: str) -> Iterator[Manifest]:
        for ending in endings:
            for file in sorted(self._folder.glob(f"*{ending}")):
                manifest = self._read(file)
                if manifest is not None:
                    yield manifest

    def _read(self, file: Path) -> Manifest | None:
        try:
            return _decoder.decode(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise OxloError(f"cannot read the manifest {file}: {error}; remove it and pull again") from error

    def _write(self, file: Path, manifest: Manifest) -> None:
        """Write a manifest so that a reader sees the old one or the new one, whole, also after a crash."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = file.with_name(f".{file.name}.{os.getpid()}")
        with new.open("wb") as target:
            os.fchmod(target.fileno(), 0o644)
            target.write(msgspec.json.format(_encoder.encode(manifest), indent=2))
            target.flush()
            os.fsync(target.fileno())
        new.replace(file)


def _unlink(path: Path | None) -> int:
    """Remove a file; returns its size, 0 for a link and for what is not there."""
    if path is None or not os.path.lexists(path):
        return 0
    size = 0 if path.is_symlink() else path.stat().st_size
    path.unlink()
    return size


def _pointed_at(blob: Path) -> bool:
    """Whether a name under snapshots/ still leads to this blob, one step only: a blob may be a link itself."""
    snapshots = blob.parent.parent / "snapshots"
    links = (path for path in snapshots.rglob("*") if path.is_symlink())
    return any(os.path.normpath(link.parent / link.readlink()) == str(blob) for link in links)


def _prune(folder: Path, top: Path) -> None:
    """Remove folders that have become empty, from `folder` up to `top`, and `top` when it holds no file at all."""
    while folder != top and folder.is_relative_to(top):
        if folder.is_dir():
            if any(folder.iterdir()):
                return
            folder.rmdir()
        folder = folder.parent
    if top.is_dir() and not any(path.is_file() or path.is_symlink() for path in top.rglob("*")):
        for path in sorted(top.rglob("*"), reverse=True):
            path.rmdir()
        top.rmdir()
