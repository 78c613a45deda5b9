"""A web server on loopback that answers as it is told: the client's other end, where a real server cannot be made to
misbehave. What a request said, and whether its client left, can be asked afterwards.
"""

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from oxlo_local.client import Address


@dataclass
class Reply:
    """An answer. `pieces` are sent as chunks; `cut` closes the connection after them instead of ending the answer.

    With `endless` the last piece is repeated until the client leaves, which sets `left`. With `silent` the connection
    is closed without a word.
    """

    pieces: Sequence[bytes] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    endless: bool = False
    silent: bool = False
    left: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Seen:
    """A request that came in; `port` is the client's, so that connections can be told apart."""

    path: str
    headers: dict[str, str]
    body: bytes
    port: int


class Stub(ThreadingHTTPServer):
    """Answers each path with its replies, one after another; the last one stays."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: dict[str, list[Reply]] = {}
        self.seen: list[Seen] = []

    @property
    def address(self) -> Address:
        """Where it listens."""
        return Address(f"http://127.0.0.1:{self.server_port}")

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append(Seen(self.path, headers, body, self.client_address[1]))
        replies = self.server.replies.get(self.path, [Reply([b"not found"], 404)])
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if reply.silent:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in {"transfer-encoding": "chunked", **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for piece in reply.pieces:
                self._chunk(piece)
            while reply.endless:
                self._chunk(reply.pieces[-1])
        except OSError:
            reply.left.set()
            raise
        if reply.cut:
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, piece: bytes) -> None:
        self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def stub_server() -> Iterator[Stub]:
    """A running stub."""
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def event(content: object) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def piece(text: str, finish_reason: str | None = None) -> bytes:
    """A chat chunk with some text."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return event({"id": "c", "object": "chat.completion.chunk", "model": "stub-1", "choices": [choice]})


def usage(prompt: int, completion: int, cached: int = 0) -> bytes:
    """The chunk at the end of a stream."""
    counted = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return event({"model": "stub-1", "choices": [], "usage": counted})


DONE = b"data: [DONE]\n\n"
HEAD = {"x-oxlo-entry": "e_1", "x-oxlo-price-usd": "0.0010", "content-type": "text/event-stream"}
CHAT = "/v1/chat/completions"


def answer(*texts: str, prompt: int = 7, cached: int = 0) -> Reply:
    """A whole streamed answer, one piece for each text."""
    body = [
        event({"model": "stub-1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    ]
    body += [piece(text) for text in texts]
    return Reply([*body, piece("", "stop"), usage(prompt, len(texts), cached), DONE], headers=HEAD)


def refusal(status: int, code: str, message: str, **headers: str) -> Reply:
    """An answer in the one error shape."""
    body = {"error": {"message": message, "type": "t", "param": None, "code": code}}
    return Reply(
        [json.dumps(body).encode()],
        status,
        {name.replace("_", "-"): value for name, value in headers.items()},
    )


def models(*ids: str) -> Reply:
    """A model list of chat models that are ready."""
    items = [
        {"id": name, "object": "model", "kind": "chat", "status": "ready", "price_usd": "0.001"}
        for name in ids
    ]
    return Reply([json.dumps({"object": "list", "data": items}).encode()])


def free_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
