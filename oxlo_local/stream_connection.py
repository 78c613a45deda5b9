"""A lean asynchronous connection that streams chats: what the load generator can afford for each token.

httptools (C) parses the answer, and a callback takes each chunk as it arrives: no task switch for each token,
no layers. httpx may cost more for each token than the server; a load generator would then measure itself.
"""

import asyncio
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

import httptools

from oxlo_local import __version__
from oxlo_local.client import (
    CHAT_PATH,
    CONNECT_SECONDS,
    Address,
    Chunk,
    EventDecoder,
    Head,
    decode_chunk,
    error_from,
)
from oxlo_local.errors import OxloError, ServerError, Unavailable


class _Exchange(asyncio.Protocol):
    """One request and its answer on a connection; httptools calls the `on_…` methods."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._transport: asyncio.Transport | None = None
        self.answered = False  # whether anything has come back for the running request
        self._finished: asyncio.Future[Head] | None = None

    @property
    def usable(self) -> bool:
        """Whether the connection can carry another request."""
        return self._transport is not None and not self._transport.is_closing()

    def begin(self, request: bytes, on_chunk: Callable[[Chunk], None]) -> asyncio.Future[Head]:
        """Send; the future is the answer's end, or its failure."""
        self._parser = httptools.HttpResponseParser(self)
        self._events = EventDecoder()
        self._headers: dict[str, str] = {}
        self._refusal = b""
        self._failure: OxloError | None = None
        self._complete = False
        self.answered = False
        self._on_chunk = on_chunk
        self._finished = asyncio.get_running_loop().create_future()
        assert self._transport is not None
        self._transport.write(request)
        return self._finished

    def close(self) -> None:
        """Cut the connection: the server takes a running answer's client for gone."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(ServerError(f"{self._url} does not speak HTTP: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end(ServerError(f"{self._url} closed the connection in mid-answer"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() != 200:
            self._refusal += body
            return
        for data in self._events.feed(body):
            if data == b"[DONE]":
                self._complete = True
                continue
            try:
                self._on_chunk(decode_chunk(data))
            except OxloError as error:
                self._failure = error

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if not self._parser.should_keep_alive():
            self.close()
        if status != 200:
            self._end(error_from(status, self._refusal, self._headers, self._url))
        elif self._failure is None and not self._complete:
            self._end(ServerError("the server ended the answer without saying why; look at its log"))
        else:
            self._end(self._failure)

    def _end(self, failure: OxloError | None) -> None:
        if self._finished is None or self._finished.done():
            return
        if failure is None:
            self._finished.set_result(Head.of(self._headers))
        else:
            self._finished.set_exception(failure)


class StreamConnection:
    """A keep-alive connection that streams one chat at a time and calls back for each chunk as it arrives."""

    def __init__(self, address: Address) -> None:
        parts = urlsplit(address.url)
        assert parts.hostname is not None
        self._url = address.url
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        bearer = f"authorization: Bearer {address.token}\r\n" if address.token else ""
        self._prefix = parts.path
        self._head = (
            f"HTTP/1.1\r\nhost: {parts.netloc.rpartition('@')[2]}\r\n"
            f"user-agent: oxlo/{__version__}\r\naccept: text/event-stream\r\n"
            f"content-type: application/json\r\n{bearer}"
        )
        self._exchange: _Exchange | None = None

    async def chat(self, body: bytes, on_chunk: Callable[[Chunk], None], path: str = CHAT_PATH) -> Head:
        """Send an encoded chat request (`encode_chat`) and return once its answer is whole.

        `path` is where it goes: completions stream in the same way. Raises the server's error, or Unavailable when
        nobody answers. A cancelled call cuts the connection.
        """
        head = f"POST {self._prefix}{path} {self._head}content-length: {len(body)}\r\n\r\n"
        request = head.encode() + body
        kept = self._exchange is not None and self._exchange.usable
        try:
            return await self._ask(request, on_chunk)
        except ServerError:
            if not kept or self._exchange is None or self._exchange.answered:
                raise
        # The server closed a kept connection just as it was used again, without a word: that is no failure.
        self._exchange.close()
        return await self._ask(request, on_chunk)

    def close(self) -> None:
        """Close the connection."""
        if self._exchange is not None:
            self._exchange.close()

    async def _ask(self, request: bytes, on_chunk: Callable[[Chunk], None]) -> Head:
        exchange = await self._connected()
        try:
            return await exchange.begin(request, on_chunk)
        except asyncio.CancelledError:
            exchange.close()
            raise

    async def _connected(self) -> _Exchange:
        if self._exchange is None or not self._exchange.usable:
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    _, self._exchange = await loop.create_connection(
                        lambda: _Exchange(self._url), self._host, self._port, ssl=self._tls
                    )
            except OSError as error:  # TimeoutError is one too
                raise Unavailable(f"no server answers at {self._url}; is `oxlo serve` running?") from error
        return self._exchange
