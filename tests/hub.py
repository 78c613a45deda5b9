"""A stand-in for the Hugging Face hub on loopback: the part of its protocol that huggingface_hub 2.4 uses, and faults.

What it speaks, as the library expects it (file_download.py and hf_api.py of the installed package):

    GET  /api/models/REPO[/revision/REV]       {"id", "sha", "siblings"}
    GET  /api/models/REPO/tree/REV[/PATH]      entries with oid, size and, for large files, lfs.oid; pages by Link
    POST /api/models/REPO/paths-info/REV       the same entries for named paths
    HEAD, GET /REPO/resolve/REV/PATH           X-Repo-Commit and ETag; for large files a redirect to another host with
                                               X-Linked-ETag (the SHA-256) and X-Linked-Size
    GET  /blobs/SHA256 on that other host      Range, 206, 416; must never see a token

Faults on demand: a connection cut or stalled at a byte, wrong bytes, a gated repository, another status.
"""

import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

LFS_BYTES = 1024  # files of this size and more are large files
PIECE = 256 * 1024


def gguf_bytes(
    size: int, *, seed: int = 0, architecture: str = "llama", name: str = "", **numbers: int
) -> bytes:
    """A GGUF file of `size` bytes: a real header, and filling that no engine is meant to load."""
    shape = {
        "block_count": 2,
        "embedding_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "context_length": 2048,
        **numbers,
    }

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = [text("general.architecture") + struct.pack("<I", 8) + text(architecture)]
    pairs += [text("general.name") + struct.pack("<I", 8) + text(name)] if name else []
    pairs += [text(f"{architecture}.{key}") + struct.pack("<II", 4, number) for key, number in shape.items()]
    tokens = ["<s>", "</s>", "a"]
    listed = b"".join(text(token) for token in tokens)
    pairs.append(text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(tokens)) + listed)
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs)
    filling = hashlib.sha256(bytes([seed])).digest()
    return header + (filling * (size // len(filling) + 1))[: max(size - len(header), 0)]


@dataclass
class Repository:
    """Files at one commit."""

    files: dict[str, bytes]
    commit: str = "1" * 40
    gated: bool = False

    @staticmethod
    def sha256(content: bytes) -> str:
        """What git-lfs calls a large file."""
        return hashlib.sha256(content).hexdigest()

    @staticmethod
    def git_sha1(content: bytes) -> str:
        """What git calls a file."""
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

    def entry(self, path: str) -> dict[str, object]:
        """One line of a tree listing."""
        content = self.files[path]
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content)}
        entry["oid"] = self.git_sha1(content)
        if len(content) >= LFS_BYTES:
            entry["lfs"] = {"oid": self.sha256(content), "size": len(content), "pointerSize": 135}
        return entry


@dataclass
class Seen:
    """A request as it came in."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Hub:
    """The repositories, the faults to play, and the requests so far."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)  # that have access to gated repositories
    page_size: int = 1000
    cut_at: dict[str, list[int]] = field(
        default_factory=dict
    )  # path -> bytes after which to hang up, one each time
    stall_at: dict[str, int] = field(default_factory=dict)  # path -> byte after which to wait for `go_on`
    wrong: dict[str, int] = field(default_factory=dict)  # path -> how many times to send wrong bytes
    status: int | None = None  # answer everything with this
    go_on: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    def downloads(self) -> list[Seen]:
        """Requests for the bytes of large files."""
        return [request for request in self.seen if request.path.startswith("/blobs/")]

    def find(self, sha256: str) -> tuple[str, bytes] | None:
        """Path and content of a large file."""
        for repository in self.repositories.values():
            for path, content in repository.files.items():
                if repository.sha256(content) == sha256:
                    return path, content
        return None


class _Answer(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        token = self.headers.get("Authorization")
        self.hub.seen.append(Seen(self.command, self.path, self.headers.get("Range"), token))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        path = unquote(parts.path).strip("/").split("/")
        query = parse_qs(parts.query)
        if self.hub.status is not None:
            self._refuse(self.hub.status, None, "out of order")
        elif path[0] == "blobs":
            self._blob(path[1])
        elif path[:2] == ["api", "models"]:
            self._api("/".join(path[2:4]), path[4:], query, body)
        elif len(path) > 4 and path[2] == "resolve":
            self._resolve("/".join(path[:2]), path[3], "/".join(path[4:]))
        else:
            self._refuse(404, None, "no such page")

    # -- answers ----------------------------------------------------------------------------------------------------

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def _json(self, content: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self._head(200, {"Content-Type": "application/json", **(headers or {})}, len(body))
        self.wfile.write(body)

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._head(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _allowed(self, repository: Repository) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not repository.gated or token in self.hub.tokens:
            return True
        self._refuse(403 if token else 401, "GatedRepo", "Access to this model is restricted.")
        return False

    def _repository(self, name: str, revision: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:  # a stranger cannot tell a missing repository from a private one
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif revision not in ("main", repository.commit):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository
        return None

    def _api(self, name: str, rest: list[str], query: dict[str, list[str]], body: bytes) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        repository = self._repository(name, revision)
        if repository is None:
            return
        kind = rest[0] if rest else "revision"
        entries = [repository.entry(path) for path in sorted(repository.files)]
        if kind == "revision":
            siblings = [{"rfilename": path} for path in sorted(repository.files)]
            self._json({"id": name, "sha": repository.commit, "private": False, "siblings": siblings})
        elif kind == "tree":
            start = int(query.get("cursor", ["0"])[0])
            page = entries[start : start + self.hub.page_size]
            following = start + self.hub.page_size
            headers = {}
            if following < len(entries):
                target = f"{self.hub.url}/api/models/{name}/tree/{revision}?recursive=true&cursor={following}"
                headers["Link"] = f'<{target}>; rel="next"'
            self._json(page, headers)
        elif kind == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            self._json([entry for entry in entries if entry["path"] in wanted])
        else:
            self._refuse(404, None, "no such call")

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name, revision)
        if repository is None or not self._allowed(repository):
            return
        content = repository.files.get(path)
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if len(content) < LFS_BYTES:
            self._head(200, {**headers, "ETag": f'"{repository.git_sha1(content)}"'}, len(content))
            if self.command == "GET":
                self.wfile.write(content)
            return
        sha256 = repository.sha256(content)
        headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(content)), "ETag": '"a-pointer"'}
        # Another host, as a CDN is: the token must not follow.
        headers["Location"] = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/blobs/{sha256}"
        self._head(302, headers, 0)

    def _blob(self, sha256: str) -> None:
        found = self.hub.find(sha256)
        if found is None:
            self._refuse(404, None, "no such blob")
            return
        path, content = found
        total, start = len(content), 0
        asked = self.headers.get("Range")
        if asked is not None:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            if start >= total:
                self._head(416, {"Content-Range": f"bytes */{total}"}, 0)
                return
            self._head(206, {"Content-Range": f"bytes {start}-{total - 1}/{total}"}, total - start)
        else:
            self._head(200, {"Accept-Ranges": "bytes"}, total)
        if self.hub.wrong.get(path, 0) > 0:
            self.hub.wrong[path] -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._send(path, content, start)

    def _send(self, path: str, content: bytes, start: int) -> None:
        cuts = self.hub.cut_at.get(path, [])
        end = cuts.pop(0) if cuts else len(content)
        stall = self.hub.stall_at.pop(path, None)
        for at in range(start, end, PIECE):
            if stall is not None and at >= stall:
                self.hub.stalled.set()
                self.hub.go_on.wait(30)
                stall = None
            self.wfile.write(content[at : min(at + PIECE, end)])
        if end < len(content):
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are what these tests are about


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that serves until the block ends."""
    hub = Hub()
    answer = type("Answer", (_Answer,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), answer)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
