"""A proxy between clients and a server: it keeps every exchange with the test that it belongs to, and may dictate.

A suite's base URL begins with the suite's name, and before each test the suite says the test's name
(`PUT /SUITE/test`), so that each exchange is known by both. Dictation sets members of the bodies that a test posts,
one set of members after another, the last for all that follow: what a model cannot do by itself is put into its mouth
with the API's own fields, and the answer takes the same way to the client as any other.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

START_SECONDS = 20.0
OWN = frozenset({"host", "content-length", "connection", "transfer-encoding", "accept-encoding"})

Members = Mapping[str, object]
Dictations = Mapping[tuple[str, str], Sequence[Members]]


@dataclass
class Exchange:
    """A request and its answer. `whole` is False where the client left before the end."""

    suite: str
    test: str
    method: str
    path: str
    asked: bytes
    status: int = 0
    content_type: str = ""
    answered: bytes = b""
    whole: bool = False


@dataclass
class Wire:
    """The proxy, on a thread of its own. Use as a context manager."""

    upstream: str
    dictations: Dictations = field(default_factory=dict)
    exchanges: list[Exchange] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._tests: dict[str, str] = {}
        self._posted: dict[tuple[str, str], int] = {}
        app = Starlette(
            routes=[
                Route("/{suite}/test", self._name_test, methods=["PUT"]),
                Route("/{suite}/{path:path}", self._pass, methods=["GET", "POST"]),
            ],
            lifespan=self._connected,
        )
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, loop="asyncio"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        for _ in range(int(START_SECONDS / 0.02)):
            if self._server.started:
                return self
            self._thread.join(0.02)
        raise TimeoutError("the proxy did not start")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(START_SECONDS)

    @property
    def url(self) -> str:
        """Where it listens; a suite's base URL is this, the suite's name, and /v1."""
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    @asynccontextmanager
    async def _connected(self, app: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(base_url=self.upstream, timeout=None, trust_env=False) as self._client:
            yield

    async def _name_test(self, request: Request) -> Response:
        suite = request.path_params["suite"]
        self._tests[suite] = (await request.body()).decode()
        self._posted.pop((suite, self._tests[suite]), None)
        return Response(status_code=204)

    async def _pass(self, request: Request) -> Response:
        suite, path = request.path_params["suite"], "/" + request.path_params["path"]
        test = self._tests.get(suite, "")
        asked = self._dictated(suite, test, await request.body()) if request.method == "POST" else b""
        exchange = Exchange(suite, test, request.method, path, asked)
        self.exchanges.append(exchange)
        headers = [(name, value) for name, value in request.headers.items() if name not in OWN]
        sent = self._client.build_request(request.method, path, headers=headers, content=asked)
        answer = await self._client.send(sent, stream=True)
        exchange.status, exchange.content_type = answer.status_code, answer.headers.get("content-type", "")
        passed = {name: value for name, value in answer.headers.items() if name not in OWN}
        return StreamingResponse(_kept(answer, exchange), answer.status_code, passed)

    def _dictated(self, suite: str, test: str, body: bytes) -> bytes:
        """The body as it is sent on: with the members that are dictated to this one of the test's requests."""
        place = self._posted.get((suite, test), 0)
        self._posted[suite, test] = place + 1
        dictation = self.dictations.get((suite, test))
        if not dictation:
            return body
        return json.dumps({**json.loads(body), **dictation[min(place, len(dictation) - 1)]}).encode()


async def _kept(answer: httpx.Response, exchange: Exchange) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            exchange.answered += piece
            yield piece
        exchange.whole = True
    finally:
        await asyncio.shield(answer.aclose())
