"""Connections: uvicorn as we run it, what is no HTTP, and clients that have stopped taking their answers.

The parser (httptools) and uvicorn's protocol over it believe a client more than a server may that faces the network.
What they leave open is closed in `Http`; whatever it overrides is theirs.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from oxlo_local.api.app import not_http

FLUSH_SECONDS = 3.0  # for the last bytes of answers whose calls have ended
LOOK_SECONDS = 0.25
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
HEAD_BYTES = 65_536  # of a request's line and headers


class HttpServer(uvicorn.Server):
    """uvicorn without its hands on the signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `server.Signals`."""
        yield

    def connections(self) -> list["Http"]:
        """All that are open."""
        return [each for each in self.server_state.connections if isinstance(each, Http)]

    def cut_off(self) -> None:
        """End every connection at once, whatever is under way on it."""
        for connection in self.connections():
            connection.transport.abort()


class Http(HttpToolsProtocol):
    """uvicorn's HTTP with the one error shape also for what is no HTTP, and no room for heads without end."""

    _unheard = 0  # bytes since a head was complete, or a piece of a body came
    _heard = False
    _answering: RequestResponseCycle | None = None

    def data_received(self, data: bytes) -> None:
        """Take what has come. The parser keeps a head, or what stands between chunks, until it is whole."""
        self._heard = False
        super().data_received(data)
        self._unheard = 0 if self._heard else self._unheard + len(data)
        if self._unheard > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        """Take the head. What comes behind a chunked body is none of it, though the parser calls it headers too."""
        super().on_headers_complete()
        self.headers = []
        self._heard = True

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        super().on_body(body)
        self._heard = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being answered. uvicorn tells the last one, which may be waiting behind it."""
        cycle = self._answering
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """Answer and close."""
        self.transport.write(not_http())
        self.transport.close()

    def stuck_bytes(self) -> int:
        """What waits for the client while nothing is added to it: less of it is left only if the client takes some."""
        if not self.flow.write_paused and self.cycle is not None and not self.cycle.response_complete:
            return 0
        return self.transport.get_write_buffer_size()


class Readers:
    """Cuts off clients that have stopped taking their answers without closing, as if they had left.

    One look at all connections, now and then, instead of a timer for each write. It also finds connections that wait
    for the end of an answer which was complete long ago.
    """

    def __init__(self, http: HttpServer, patience: float) -> None:
        """`patience` is in seconds, and may be changed at any time."""
        self.patience = patience
        self._http = http
        self._stuck: dict[Http, tuple[int, float]] = {}  # how many bytes, and since when

    async def watch(self) -> None:
        """Look for as long as the server lives."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Cut off those that have taken nothing for as long as `patience`."""
        seen, self._stuck = self._stuck, {}
        for connection in self._http.connections():
            size = connection.stuck_bytes()
            before, since = seen.get(connection, (size, now))
            if size == 0:
                continue
            if size == before and now - since >= self.patience:
                connection.transport.abort()
            else:
                self._stuck[connection] = (size, since if size == before else now)


def http_config(app: ASGIApp) -> uvicorn.Config:
    """uvicorn as we run it: no lifespan, no logs of its own, no trust in forwarding headers."""
    return uvicorn.Config(
        app,
        http=Http,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(2 * FLUSH_SECONDS),  # `House` cuts off what is left before that
    )


def speak(app: ASGIApp) -> Http:
    """The HTTP of one connection that no listener has accepted."""
    return Http(http_config(app), ServerState(), {})


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop: uvloop's where it is installed."""
    return uvicorn.Config(_nothing, loop="auto", log_config=None).get_loop_factory()


async def _nothing(scope: object, receive: object, send: object) -> None:
    """An application for a uvicorn.Config that is only asked about the loop."""
