"""The rehearsal before /readyz says 200, so that the first request costs what the hundredth does.

Whatever a program does for the first time costs more: types are looked up, caches are filled, statements prepared, code
specialised. Each model is therefore asked for answers as a client would ask, over real connections and through every
room. The application that answers is a twin of the real one, with metrics and a ledger of its own in a scratch folder:
nobody pays for a rehearsal, and it is in no figure and no row.
"""

import asyncio
import dataclasses
import logging
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import msgspec
from starlette.types import ASGIApp

from oxlo_local import keys
from oxlo_local.api.app import create_app
from oxlo_local.api.connections import speak
from oxlo_local.api.exchange import State
from oxlo_local.db import Database
from oxlo_local.inference import Inference
from oxlo_local.ledger import Ledger
from oxlo_local.metrics import Metrics
from oxlo_local.workers.supervisor import SILENCE

WORDS = "Who are you?"
TOKENS = 2  # a first one and one after another
TIMES = 8  # as often as CPython looks at a function before it specialises its code
QUICK = 0.2  # seconds after which nothing is asked again
SECONDS = 30.0  # a model that takes longer is not waited for: its own warm-up has been answered

log = logging.getLogger(__name__)


async def rehearse(state: State, only: Collection[str] | None = None) -> None:
    """Ask every ready model, or `only` those of these ids. What fails is logged, never raised."""
    try:
        async with asyncio.timeout(SECONDS), _twin(state) as app:
            begun = time.monotonic()
            for _ in range(TIMES):
                await _once(app, _requests(state, only))
                if time.monotonic() - begun > QUICK:
                    break
    except Exception as error:
        log.warning("the rehearsal was cut short: %r", error)


async def _once(app: ASGIApp, requests: Iterable[bytes]) -> None:
    for request in requests:
        status = await _ask(request, lambda: speak(app))
        if status >= 500:
            log.warning("a rehearsed request was answered with %d", status)


@asynccontextmanager
async def _twin(state: State) -> AsyncIterator[ASGIApp]:
    with tempfile.TemporaryDirectory(prefix="oxlo-") as folder:
        with closing(Database.open(Path(folder) / "ledger.db")) as db:
            ledger = await Ledger.open(db, Path(folder) / "locks")
            inference = Inference(state.catalogue, ledger, state.fleet)
            try:
                yield create_app(
                    dataclasses.replace(
                        state, inference=inference, ledger=ledger, metrics=Metrics(state.fleet.status)
                    ),
                    log_level=logging.DEBUG,
                )
            finally:
                await inference.quiet()
                await ledger.close()


def _requests(state: State, only: Collection[str] | None) -> Iterator[bytes]:
    """Whole HTTP requests. The unknown key in the first is looked up where keys are in force, which refuses it."""
    yield _request("GET", "/v1/models", f"x-api-key: {keys.mint()}")
    admin = f"authorization: Bearer {state.admin_token}"
    for worker in state.fleet.status():
        if worker.state != "ready" or worker.facts is None or (only is not None and worker.model not in only):
            continue
        if worker.facts.kind == "speech":
            yield _spoken(worker.model, admin)
            continue
        if worker.facts.kind == "image":
            drawn = {"model": worker.model, "prompt": WORDS, "steps": 1}
            yield _request("POST", "/v1/images/generations", admin, msgspec.json.encode(drawn))
            continue
        if worker.facts.kind != "chat":
            yield _pooled(worker.model, worker.facts.kind, admin)
            continue
        asked = {"model": worker.model, "max_tokens": TOKENS}
        if worker.facts.chat:
            chat = {**asked, "messages": [{"role": "user", "content": WORDS}], "stream": True}
            for path in ("/v1/chat/completions", "/v1/messages"):
                yield _request("POST", path, admin, msgspec.json.encode(chat))
        text = {**asked, "prompt": WORDS, "logprobs": 1}
        yield _request("POST", "/v1/completions", admin, msgspec.json.encode(text))


def _pooled(model: str, kind: str, header: str) -> bytes:
    """A request for a model that makes vectors or scores."""
    if kind == "rerank":
        asked: dict[str, object] = {"model": model, "query": WORDS, "documents": [WORDS]}
        return _request("POST", "/v1/rerank", header, msgspec.json.encode(asked))
    return _request("POST", "/v1/embeddings", header, msgspec.json.encode({"model": model, "input": WORDS}))


def _spoken(model: str, header: str) -> bytes:
    """A request for a model that hears: a moment of silence, listened to as if somebody spoke."""
    boundary = "a-moment-of-silence"
    fields = {"model": model, "vad_filter": "false", "temperature": "1", "response_format": "verbose_json"}
    parts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'
        for name, text in fields.items()
    ]
    file = f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="silence.wav"\r\n\r\n'
    body = "".join((*parts, file)).encode() + SILENCE.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    return _request(
        "POST", "/v1/audio/transcriptions", header, body, kind=f"multipart/form-data; boundary={boundary}"
    )


def _request(method: str, path: str, header: str, body: bytes = b"", kind: str = "application/json") -> bytes:
    lines = (
        f"{method} {path} HTTP/1.1",
        "host: localhost",
        "connection: close",
        f"content-type: {kind}",
        f"content-length: {len(body)}",
        header,
    )
    return "\r\n".join((*lines, "", "")).encode() + body


async def _ask(request: bytes, protocol: Callable[[], asyncio.Protocol]) -> int:
    """Send a request over a connection of its own and read the answer to its end; its status."""
    theirs, ours = socket.socketpair()
    await asyncio.get_running_loop().connect_accepted_socket(protocol, theirs)
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        writer.write(request)
        answer = await reader.read()
    finally:
        writer.close()
    return int(answer.split(maxsplit=2)[1])
