"""`oxlo pull`: a name -> which files of which repository -> all of them here, checked, with a manifest.

Three forms are understood: a model of the catalogue (`mistral-7b`, `mistral-7b:Q8_0`), any repository of the hub with
GGUF files, a speech model or a diffusers pipeline (`hf:OWNER/NAME`, `hf:OWNER/NAME:Q5_K_M`), and a local GGUF or
.safetensors file or the folder of such a model, which is noted where it lies. Where no build is named, the catalogue's
default is taken if it fits the machine, else the largest that does; of another repository Q4_K_M, or the nearest to it.
What happens is told as events, which the command draws or prints as JSON.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import msgspec
from msgspec import Struct

from oxlo_local import ct2, diffuser, fit, gguf, mmproj
from oxlo_local.catalogue import Catalogue, Model, file_id
from oxlo_local.entry import Build
from oxlo_local.errors import BadRequest, ModelDoesNotFit, ModelNotFound, NotFound, OxloError, Unavailable
from oxlo_local.hardware import Machine
from oxlo_local.hub import Hub, RemoteFile, Snapshot, digest
from oxlo_local.store import Manifest, Store, StoredFile

# Builds of a repository that is not in the catalogue, the one to take first.
PREFERRED = (
    "Q4_K_M", "UD-Q4_K_XL", "Q4_K_S", "MXFP4", "MXFP4_MOE", "IQ4_NL", "IQ4_XS", "Q4_0", "Q5_K_M", "Q5_K_S", "Q6_K",
    "Q8_0", "Q3_K_M", "F16", "FP16", "BF16",
)  # fmt: skip
_QUANT = re.compile(
    r"(?:^|[-._/])(?P<quant>(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|NVFP4|BF16|FP?16|FP?32))"
    r"(?:-\d{5}-of-\d{5})?\.gguf$",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(r"(^|/)(mmproj|mtp|imatrix)[^/]*$|(^|/)mtp/|imatrix", re.IGNORECASE)


# -- what happens -----------------------------------------------------------------------------------------------------


class Chosen(Struct, frozen=True, tag="chosen", tag_field="event"):
    """What will be fetched. `missing` counts the bytes that are not on this disk yet."""

    model: str
    repo: str
    revision: str
    quant: str
    files: int
    bytes: int
    missing: int


class Progress(Struct, frozen=True, tag="progress", tag_field="event"):
    """How far one file has come, in bytes."""

    file: str
    done: int
    bytes: int
    verifying: bool


class Note(Struct, frozen=True, tag="note", tag_field="event"):
    """Something that the user should know."""

    text: str


class Pulled(Struct, frozen=True, tag="pulled", tag_field="event"):
    """The model is here."""

    model: str
    path: str
    bytes: int
    quant: str | None
    revision: str | None


Event = Chosen | Progress | Note | Pulled


class Wanted(Struct, frozen=True):
    """Files of one repository that make up one model."""

    model_id: str
    quant: str
    files: tuple[RemoteFile, ...]


def disk_free(path: Path) -> int:
    """Bytes that this user may still write to the disk of `path`, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


class Pull:
    """One `oxlo pull`: where it looks, where it writes, whom it tells."""

    def __init__(
        self,
        *,
        store: Store,
        catalogue: Catalogue,
        machine: Machine,
        hub: Hub,
        tell: Callable[[Event], None],
        free: Callable[[Path], int] = disk_free,
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._machine = machine.at_rest()
        self._hub = hub
        self._tell = tell
        self._free = free

    def run(self, name: str) -> Manifest:
        """Have the model here. Raises an OxloError that says what to do."""
        if name.startswith("hf:"):
            manifest = self._from_repository(name.removeprefix("hf:"))
        elif gguf.is_path(name) or "/" in name:
            manifest = self._from_file(Path(name))
        else:
            manifest = self._from_catalogue(name)
            self._with_companions(manifest.id)
        return self._told(manifest)

    def _told(self, manifest: Manifest) -> Manifest:
        self._tell(Pulled(manifest.id, str(manifest.path), manifest.bytes, manifest.quant, manifest.revision))
        return manifest

    def _with_companions(self, model_id: str) -> None:
        """Have the models here that this one needs beside it."""
        for companion in self._catalogue.find(model_id).companions:
            if self._catalogue.find(companion).path is None:
                self._tell(Note(f"{model_id} needs {companion} beside it"))
                self._told(self._from_catalogue(companion))

    # -- the three forms ------------------------------------------------------------------------------------------

    def _from_catalogue(self, name: str) -> Manifest:
        name, _, quant = name.partition(":")
        model = self._catalogue.find(name)
        if model.refused is not None or (model.file is not None and model.path is None):
            self._catalogue.resolve(model.id)  # raises, with the reason
        if model.repo is None and model.path is None:
            raise BadRequest(f"models.toml names neither a repo nor a file for {model.id}")
        if model.repo is None:
            raise BadRequest(f"{model.id} is here without being pulled: {model.path}")
        here = self._store.manifest(model.id) if model.path is not None else None
        if here is not None and not quant:
            quant = here.quant or ""
        build = self._build(model, quant)
        if here is not None and not _has_eye(here, model.mmproj):
            here = None  # pulled before images were served: what is missing is fetched
        if here is not None and here.quant == build and here.revision == model.revision:
            self._tell(Note(f"{model.id}:{build} is already here"))
            return here
        snapshot = self._snapshot(model.repo, model.revision, here)
        if snapshot is None or (
            here is not None and (here.quant, here.revision) == (build, snapshot.revision)
        ):
            assert here is not None  # else the unreachable hub would have been an error
            self._tell(Note(f"{model.id}:{build} is already here"))
            return here
        build = build or _preferred(snapshot)
        files = _catalogued(model.files.get(build), snapshot) or _of_quant(snapshot, build)
        eye = eye_in(snapshot, model.mmproj) if model.mmproj is not None else ()
        wanted = Wanted(model.id, build, (*files, *eye))
        self._compare(model, wanted)
        return self._fetch(snapshot, wanted)

    def _from_repository(self, text: str) -> Manifest:
        repo, _, quant = text.partition(":")
        if repo.count("/") != 1:
            raise BadRequest(f"hf:{text}: write it as hf:OWNER/NAME or hf:OWNER/NAME:QUANT")
        snapshot = self._hub.snapshot(repo)
        names = [file.path for file in snapshot.files]
        whole = ct2.parts(names) or diffuser.parts(names)
        if whole and not quant and not builds(snapshot):
            found = tuple(file for file in snapshot.files if file.path in whole)
            return self._fetch(snapshot, Wanted(self._repository_id(repo), "", found))
        build = _matching(quant, builds(snapshot)) if quant else _preferred(snapshot)
        files = (*_of_quant(snapshot, build), *eye_in(snapshot))
        return self._fetch(snapshot, Wanted(self._repository_id(repo), build, files))

    def _from_file(self, path: Path) -> Manifest:
        path = Path(os.path.expanduser(path)).absolute()
        if not os.path.exists(path):
            raise NotFound(f"there is no file {path}; a repository of the hub is written hf:OWNER/NAME")
        parts = _local_parts(path)
        known = self._store.manifest(file_id(path))
        model = (
            self._catalogue.find(known.id) if known and known.path == path else self._catalogue.attach(path)
        )
        files = []
        for part in parts:
            remote = RemoteFile(part.name, part.stat().st_size, "", "")
            sha256 = digest(part, remote, self._watch)
            name = part.relative_to(path).as_posix() if path.is_dir() else part.name
            files.append(StoredFile(name=name, path=part, bytes=remote.bytes, sha256=sha256, ours=False))
        place = path if path.is_dir() else files[0].path
        manifest = Manifest(id=model.id, source="file", path=place, files=files, pulled=_now())
        self._store.finish(manifest)
        return manifest

    # -- choosing -------------------------------------------------------------------------------------------------

    def _build(self, model: Model, quant: str) -> str:
        """The build to take: the one named, else the default, else the largest that fits; "" = no size is known."""
        if quant:
            return next((known for known in model.files if known.lower() == quant.lower()), quant)
        if model.engine != "text" or model.default_quant not in model.files:
            return model.default_quant or next(iter(model.files), "")
        by_size = sorted(model.files, key=lambda known: model.files[known].bytes, reverse=True)
        refusal: ModelDoesNotFit | None = None
        for build in (model.default_quant, *by_size):
            try:
                fit.plan(f"{model.id}:{build}", model.geometry(build), self._machine)
            except ModelDoesNotFit as error:
                refusal = error
            else:
                return build
        smallest = by_size[-1]
        raise ModelDoesNotFit(
            f"{refusal.message if refusal else model.id}. `oxlo pull {model.id}:{smallest}` fetches it all the same",
            param="model",
        )

    def _repository_id(self, repo: str) -> str:
        """The id of a repository's model: its short name, with the owner where that name is another model's."""
        owner, name = repo.lower().split("/")
        short = re.sub(r"[-_.]gguf$", "", name)
        for model in self._catalogue.models.values():
            if model.repo is not None and model.repo.lower() == repo.lower():
                return model.id
        whole, begun = self._store.manifest(short), self._store.unfinished(short)
        taken = [whole, *begun] if whole else begun
        if taken:
            return short if taken[0].repo == repo else f"{owner}-{short}"
        try:
            self._catalogue.find(short)
        except ModelNotFound:
            return short
        return f"{owner}-{short}"

    def _snapshot(self, repo: str, revision: str | None, here: Manifest | None) -> Snapshot | None:
        """The repository's list; None when the hub cannot be reached and the model is here anyhow."""
        try:
            return self._hub.snapshot(repo, revision)
        except Unavailable as error:
            if here is None:
                raise
            self._tell(Note(f"{here.id} stays as it is: {error.message}"))
            return None

    def _compare(self, model: Model, wanted: Wanted) -> None:
        """Say so where the hub's file is not the one that the catalogue describes."""
        build = model.files.get(wanted.quant)
        stated = {file.sha256 for file in wanted.files}
        if build is not None and build.sha256 is not None and build.sha256 not in stated:
            self._tell(
                Note(f"{model.repo} now has another {wanted.quant} than when the catalogue was written")
            )

    # -- fetching -------------------------------------------------------------------------------------------------

    def _fetch(self, snapshot: Snapshot, wanted: Wanted) -> Manifest:
        missing = self._hub.missing_bytes(snapshot, wanted.files)
        total = sum(file.bytes for file in wanted.files)
        free = self._free(self._hub.cache)
        if missing > free:
            raise OxloError(
                f"{wanted.model_id}:{wanted.quant} needs {fit.gigabytes(missing)} in {self._hub.cache}, where "
                f"{fit.gigabytes(free)} are free: {fit.gigabytes(missing - free)} too little. Free some, or set "
                "HF_HOME to another disk"
            )
        self._tell(
            Chosen(
                wanted.model_id,
                snapshot.repo,
                snapshot.revision,
                wanted.quant,
                len(wanted.files),
                total,
                missing,
            )
        )
        begun = self._store.begin(self._planned(snapshot, wanted))
        try:
            paths = [self._hub.fetch(snapshot, file, self._watch) for file in wanted.files]
        except KeyboardInterrupt:
            kept = total - self._hub.missing_bytes(snapshot, wanted.files)
            self._tell(
                Note(
                    f"stopped: {fit.gigabytes(kept)} of {fit.gigabytes(total)} are kept, the same command goes on; "
                    f"`oxlo rm {wanted.model_id}` deletes them"
                )
            )
            raise
        if paths[0].suffix == ".gguf":
            gguf.read_header(paths[0])  # raises for a file that no engine can load
        freed = self._store.finish(msgspec.structs.replace(begun, pulled=_now()))
        if freed:
            self._tell(Note(f"replaced the build that was here; {fit.gigabytes(freed)} freed"))
        return begun

    def _planned(self, snapshot: Snapshot, wanted: Wanted) -> Manifest:
        files = []
        for remote in wanted.files:
            place = self._hub.place(snapshot, remote)
            files.append(
                StoredFile(
                    name=remote.path,
                    path=place.path,
                    bytes=remote.bytes,
                    sha256=remote.sha256 or "",
                    ours=True,
                    blob=place.blob,
                    partial=place.partial,
                )
            )
        first = files[0].path
        alone = first.suffix == ".gguf" or len(files) == 1
        return Manifest(
            id=wanted.model_id,
            source="hub",
            path=first if alone else self._hub.folder(snapshot),
            files=files,
            pulled="",
            repo=snapshot.repo,
            revision=snapshot.revision,
            quant=wanted.quant,
        )

    def _watch(self, file: RemoteFile, done: int, *, verifying: bool) -> None:
        self._tell(Progress(file.path, done, file.bytes, verifying))


# -- builds of a repository: pure -------------------------------------------------------------------------------------


def builds(snapshot: Snapshot) -> dict[str, list[tuple[RemoteFile, ...]]]:
    """The GGUF builds of a repository: quantisation -> the models of that kind, each with all its parts."""
    groups: dict[str, dict[str, list[RemoteFile]]] = {}
    for file in sorted(snapshot.files, key=lambda file: file.path):
        match = _QUANT.search(file.path)
        if match is None or _NO_MODEL.search(file.path):
            continue
        whole = gguf.SPLIT.sub("", file.path)
        groups.setdefault(match["quant"].upper(), {}).setdefault(whole, []).append(file)
    return {quant: [tuple(parts) for parts in models.values()] for quant, models in groups.items()}


def _matching(quant: str, known: dict[str, list[tuple[RemoteFile, ...]]]) -> str:
    if quant.upper() in known:
        return quant.upper()
    raise NotFound(f"there is no {quant} in the repository; it has {_listed(known)}")


def _preferred(snapshot: Snapshot) -> str:
    known = builds(snapshot)
    if not known:
        raise NotFound(f"{snapshot.repo} holds no GGUF model; text models are served from GGUF files")
    if len(known) == 1:
        return next(iter(known))
    for quant in PREFERRED:
        if len(known.get(quant, [])) == 1:
            return quant
    raise BadRequest(
        f"{snapshot.repo} has several builds, name one as hf:{snapshot.repo}:QUANT: {_listed(known)}"
    )


def _of_quant(snapshot: Snapshot, quant: str) -> tuple[RemoteFile, ...]:
    known = builds(snapshot)
    models = known[_matching(quant, known)]
    if len(models) > 1:
        names = ", ".join(PurePosixPath(parts[0].path).name for parts in models)
        raise BadRequest(
            f"{snapshot.repo} has several models in {quant}: {names}; oxlo cannot tell which is meant"
        )
    return _complete(snapshot.repo, models[0])


def _complete(repo: str, parts: tuple[RemoteFile, ...]) -> tuple[RemoteFile, ...]:
    match = gguf.SPLIT.search(parts[0].path)
    if match is not None and len(parts) != int(match["parts"]):
        raise NotFound(f"{repo} has {len(parts)} of the {int(match['parts'])} parts of {parts[0].path}")
    return parts


def _catalogued(build: Build | None, snapshot: Snapshot) -> tuple[RemoteFile, ...]:
    """The files that the catalogue names; none when one of them is not there under that name any more."""
    if build is None:
        return ()
    found: dict[str, RemoteFile] = {}
    for pattern in build.files:
        matches = [file for file in snapshot.files if fnmatchcase(file.path.lower(), pattern.lower())]
        if not matches and "*" not in pattern:
            return ()
        found |= {file.path: file for file in sorted(matches, key=lambda file: file.path)}
    return tuple(found.values())


def _local_parts(path: Path) -> list[Path]:
    """The files of a local model. Raises BadRequest for what no engine can load."""
    if (path / diffuser.INDEX).is_file() or path.suffix in {diffuser.WEIGHTS, *diffuser.PICKLED}:
        return diffuser.files(path)
    if path.is_dir():
        return ct2.files(path)
    gguf.read_header(path)
    return gguf.whole(path)


def eye_in(snapshot: Snapshot, named: str | None = None) -> tuple[RemoteFile, ...]:
    """The image encoder of a repository: the one that is named, else the one in the usual number format, or none."""
    encoders = [file for file in snapshot.files if mmproj.called_encoder(PurePosixPath(file.path).name)]
    if named is not None:
        encoders = [file for file in encoders if PurePosixPath(file.path).name.lower() == named.lower()]
    return tuple(sorted(encoders, key=lambda file: mmproj.rank(PurePosixPath(file.path).name)))[:1]


def _has_eye(manifest: Manifest, named: str | None) -> bool:
    return named is None or any(PurePosixPath(file.name).name == named for file in manifest.files)


def _listed(known: Iterable[str]) -> str:
    return ", ".join(sorted(known)) or "no GGUF build"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
