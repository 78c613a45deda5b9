"""The only contact with huggingface_hub: what a repository holds, and fetching one file of it whole and right.

Files land in huggingface_hub's shared cache, where other programs find them. Two things are added to what the library
does. It throws a partial download away when it is interrupted, so the bytes are written here, to a partial file beside
the blob (`<etag>.oxlo.incomplete`, which `hf cache` knows as litter), and the next attempt asks for the rest with a
Range. And it does not hash what it has fetched: every file is compared with the hash that the hub states (SHA-256 for
large files, git's SHA-1 for small ones) before it gets its name; a wrong one is removed and fetched once more.

Commits, hashes and file names become paths, so what a hub says of them is checked when it is listed.

While a file is fetched and checked, the library's own lock of that blob is held, so that two pulls share the work; the
one that waits shows how far the other one is.
Files above 50 GB are not served over plain HTTP: the library fetches these through Xet, without a partial file.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import httpx2
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import (
    hf_hub_download,
    hf_hub_url,
    http_get,
    repo_folder_name,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import logging
from msgspec import Struct
from tqdm import tqdm

from oxlo_local import __version__
from oxlo_local.errors import Forbidden, NotFound, OxloError, ServerError, Unavailable

HASH_CHUNK = 4 * 1024 * 1024
METADATA_SECONDS = 30.0
LOCK_SECONDS = 0.5  # between two looks at how far another pull of the same file is
_COMMIT = re.compile("[0-9a-f]{40}")  # git's hash, of a commit or of a file
_SHA256 = re.compile("[0-9a-f]{64}")
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f]")


class RemoteFile(Struct, frozen=True):
    """One file of a repository at one commit. Exactly one of the two hashes says what it must be."""

    path: str
    bytes: int
    sha256: str | None
    git_sha1: str


class Snapshot(Struct, frozen=True):
    """What a repository holds at one commit."""

    repo: str
    revision: str
    files: tuple[RemoteFile, ...]


class Place(Struct, frozen=True):
    """Where a file is in the cache: its name, its bytes, and its bytes so far while it is fetched."""

    path: Path
    blob: Path
    partial: Path


class Watch(Protocol):
    """Is told how far a file has come, in bytes; `verifying` is False while it is fetched."""

    def __call__(self, file: RemoteFile, done: int, *, verifying: bool) -> None: ...


class Hub:
    """A hub and the shared cache. `endpoint` and `cache` default to HF_ENDPOINT and HF_HUB_CACHE (or HF_HOME)."""

    def __init__(self, endpoint: str | None = None, cache: Path | None = None) -> None:
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # retries are the library's business; failures are raised
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.cache = Path(cache or constants.HF_HUB_CACHE).expanduser().absolute()
        self._api = HfApi(endpoint=self.endpoint, library_name="oxlo", library_version=__version__)

    def snapshot(self, repo: str, revision: str | None = None) -> Snapshot:
        """List a repository at `revision`, or at the tip of its main branch.

        Raises NotFound, Forbidden or Unavailable, saying what to do; ServerError for a list that could lead out of
        the cache.
        """
        with self._explained(repo, revision):
            info = self._api.model_info(repo, revision=revision, timeout=METADATA_SECONDS)
            commit = info.sha or ""
            if not _COMMIT.fullmatch(commit):
                raise ServerError(f"{self.endpoint} does not say which commit of {repo} it serves")
            entries = self._api.list_repo_tree(repo, recursive=True, revision=commit)
            files = tuple(
                RemoteFile(
                    path=entry.path,
                    bytes=entry.lfs.size if entry.lfs else entry.size,
                    sha256=entry.lfs.sha256 if entry.lfs else None,
                    git_sha1=entry.blob_id,
                )
                for entry in entries
                if isinstance(entry, RepoFile)
            )
        for file in files:
            if not _stays_inside(file):
                raise ServerError(
                    f"{self.endpoint} lists a file of {repo} that no repository can hold: {file.path!r}"
                )
        return Snapshot(repo, commit, files)

    def place(self, snapshot: Snapshot, file: RemoteFile) -> Place:
        """Where the cache has, or will have, `file`."""
        blob = self._repository(snapshot.repo) / "blobs" / (file.sha256 or file.git_sha1)
        return Place(self.folder(snapshot) / file.path, blob, blob.with_name(f"{blob.name}.oxlo.incomplete"))

    def folder(self, snapshot: Snapshot) -> Path:
        """Where the cache shows the files of this commit under their names."""
        return self._repository(snapshot.repo) / "snapshots" / snapshot.revision

    def missing_bytes(self, snapshot: Snapshot, files: tuple[RemoteFile, ...]) -> int:
        """Bytes of `files` that are not on this disk yet; what an interrupted attempt left counts as here."""
        places = [(file, self.place(snapshot, file)) for file in files]
        return sum(file.bytes - _size(place.partial) for file, place in places if not place.blob.exists())

    def fetch(self, snapshot: Snapshot, file: RemoteFile, watch: Watch) -> Path:
        """Have `file` in the cache, checked, and return its path under snapshots/.

        Raises ServerError when it is wrong twice, NotFound, Forbidden or Unavailable as the hub answers.
        """
        place = self.place(snapshot, file)
        # The library takes the same lock when it fetches by itself.
        own = file.bytes <= constants.MAX_HTTP_DOWNLOAD_SIZE
        with self._explained(snapshot.repo, snapshot.revision):
            with self._alone(snapshot, file, place, watch) if own else nullcontext():
                self._have(snapshot, file, place, watch)
            # The blob is there: the library only adds its name under snapshots/.
            return self._link(snapshot, file)

    def _have(self, snapshot: Snapshot, file: RemoteFile, place: Place, watch: Watch) -> None:
        stated = file.sha256 or file.git_sha1
        for attempt in (1, 2):
            if not place.blob.exists():
                if file.bytes > constants.MAX_HTTP_DOWNLOAD_SIZE:
                    self._link(snapshot, file, watch)
                else:
                    self._download(snapshot, file, place.partial, watch)
            source = place.blob if place.blob.exists() else place.partial
            found = digest(source, file, watch)
            if found == stated:
                if source != place.blob:
                    source.replace(place.blob)
                return
            source.unlink()
            if attempt == 2:
                raise ServerError(
                    f"{file.path} of {snapshot.repo} was fetched twice and is wrong: its hash is {found}, the hub "
                    f"states {stated}. Try again later, or over another network"
                )

    def _download(self, snapshot: Snapshot, file: RemoteFile, partial: Path, watch: Watch) -> None:
        partial.parent.mkdir(parents=True, exist_ok=True)
        if _size(partial) > file.bytes:
            partial.unlink()
        # A compressed answer could not be resumed.
        headers = {"user-agent": f"oxlo/{__version__}", "accept-encoding": "identity"}
        if (token := get_token()) is not None:
            headers["authorization"] = f"Bearer {token}"
        with partial.open("ab") as target:
            http_get(
                hf_hub_url(snapshot.repo, file.path, revision=snapshot.revision, endpoint=self.endpoint),
                target,
                resume_size=target.tell(),
                headers=headers,
                expected_size=file.bytes,
                tqdm_class=_observer(target.tell(), lambda done: watch(file, done, verifying=False)),
            )

    def _link(self, snapshot: Snapshot, file: RemoteFile, watch: Watch | None = None) -> Path:
        tqdm_class = None
        if watch is not None:
            tqdm_class = _observer(0, lambda done: watch(file, done, verifying=False))
        return Path(
            hf_hub_download(
                snapshot.repo,
                file.path,
                revision=snapshot.revision,
                cache_dir=self.cache,
                endpoint=self.endpoint,
                tqdm_class=tqdm_class,
            )
        )

    def _repository(self, repo: str) -> Path:
        return self.cache / repo_folder_name(repo_id=repo, repo_type="model")

    @contextmanager
    def _alone(self, snapshot: Snapshot, file: RemoteFile, place: Place, watch: Watch) -> Iterator[None]:
        """Hold the lock of a blob. Where another pull has it, `watch` is told how far that one is meanwhile."""
        folder = self.cache / ".locks" / repo_folder_name(repo_id=snapshot.repo, repo_type="model")
        folder.mkdir(parents=True, exist_ok=True)
        # The mode is the library's: a cache may be shared by a group.
        lock = FileLock(folder / f"{place.blob.name}.lock", mode=0o664, timeout=LOCK_SECONDS)
        while not lock.is_locked:
            try:
                lock.acquire()
            except Timeout:
                watch(file, _size(place.partial), verifying=False)
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _explained(self, repo: str, revision: str | None) -> Iterator[None]:
        """Turn the library's errors into ours, each with what to do."""
        try:
            yield
        except OxloError:
            raise
        except (
            OSError,
            httpx2.HTTPError,
            ValueError,
            RuntimeError,
        ) as error:  # all that the library and Xet raise
            raise self._failure(repo, revision, error) from error

    def _failure(self, repo: str, revision: str | None, error: Exception) -> OxloError:
        unreachable = f"the hub at {self.endpoint} cannot be reached ({type(error).__name__}: {error})"
        offline = "HF_HUB_OFFLINE is set: pulling needs the network; what is here is served without it"
        table: tuple[tuple[type[Exception], type[OxloError], str], ...] = (
            (GatedRepoError, Forbidden, self._gated(repo)),
            (
                RevisionNotFoundError,
                NotFound,
                f"{repo} has no revision {revision}; hf:{repo} takes what is there now",
            ),
            (
                RepositoryNotFoundError,
                NotFound,
                f"{self.endpoint} has no repository {repo}, or it is private: check the name, and give HF_TOKEN for "
                "a private one",
            ),
            (RemoteEntryNotFoundError, NotFound, f"{repo} no longer has a file that it listed: {error}"),
            (HFValidationError, NotFound, f"{repo!r} is no repository name; it has the form OWNER/NAME"),
            (OfflineModeIsEnabled, Unavailable, offline),
            (LocalEntryNotFoundError, Unavailable, offline if constants.is_offline_mode() else unreachable),
            (
                FileMetadataError,
                Unavailable,
                f"{self.endpoint} does not answer like a Hugging Face hub: {error}",
            ),
        )
        for kind, failure, text in table:
            if isinstance(error, kind):
                return failure(text)
        if isinstance(error, HfHubHTTPError):
            return _refused(self.endpoint, repo, error)
        if isinstance(error, httpx2.HTTPError):
            return Unavailable(f"{unreachable}; the next `oxlo pull` goes on where this one stopped")
        return Unavailable(f"{repo}: {error}")

    def _gated(self, repo: str) -> str:
        page = f"{self.endpoint}/{repo}"
        if get_token() is None:
            return (
                f"{repo} is gated: its owner wants a licence accepted first. (1) Accept it at {page}, signed in. "
                f"(2) Make a read token at {self.endpoint}/settings/tokens. (3) HF_TOKEN=hf_... oxlo pull ..., or "
                "`hf auth login` once"
            )
        return (
            f"{repo} is gated, and the token given (HF_TOKEN or `hf auth login`) has no access: accept the licence at "
            f"{page} with the token's account, and wait until its owner has granted it where that is needed"
        )


def _stays_inside(file: RemoteFile) -> bool:
    """Whether name and hashes can be parts of a path in the cache, and the name be printed."""
    named = not _CONTROL.search(file.path) and not {"", ".", ".."} & set(file.path.split("/"))
    hashed = _SHA256.fullmatch(file.sha256) if file.sha256 is not None else _COMMIT.fullmatch(file.git_sha1)
    return named and hashed is not None


def digest(path: Path, file: RemoteFile, watch: Watch) -> str:
    """The hash of the file at `path`, of the kind that the hub states for `file`."""
    hasher = hashlib.sha256()
    if file.sha256 is None:
        hasher = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    done = 0
    with path.open("rb") as source:
        while chunk := source.read(HASH_CHUNK):
            hasher.update(chunk)
            done += len(chunk)
            watch(file, done, verifying=True)
    return hasher.hexdigest()


def _refused(endpoint: str, repo: str, error: HfHubHTTPError) -> OxloError:
    status = error.response.status_code
    if status in (401, 403):
        return Forbidden(
            f"{endpoint} refuses {repo} ({status}): check HF_TOKEN, and what its account may read"
        )
    return Unavailable(f"{endpoint} answers {status} for {repo}; try again later")


def _observer(start: int, tell: Callable[[int], None]) -> type[tqdm]:  # type: ignore[type-arg]
    """A progress bar class that draws nothing and tells how many bytes there are."""

    class Observer(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(disable=True)
            self.done = start

        def update(self, n: float | None = 1) -> bool | None:
            self.done += int(n or 0)
            tell(self.done)
            return None

    return Observer


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
