"""Idempotency-Key: a POST that is sent again is neither run nor charged again, whatever endpoint it is for.

This room stands around the endpoint and sees what goes in and out, so no endpoint has to know of it. The last piece of
the body is held back until it is clear whose turn it is: only then is the body's fingerprint known, and nothing has
been decoded, looked up or reserved yet. If the request has been answered before, that piece never comes: `Repeated`
goes through the endpoint instead, and the answer that was kept is sent.

A client that leaves after the first output has paid for its answer. Without a key the rest would be of no use to
anybody; with one the client is expected back, so it is not told to the endpoint, and the answer is completed and kept.

Whoever waits for another's turn waits as long as that may take, but not beyond `request_timeout`, nor the server's end.
"""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from email.message import Message as Headers

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from oxlo_local.api.exchange import Exchange, State, exchange_of
from oxlo_local.claims import LONGEST_KEY, Demand, scope_of
from oxlo_local.errors import BadRequest, Cancelled, TimedOut
from oxlo_local.replays import Answer, Claim

HEADER = "idempotency-key"
_VISIBLE = re.compile(rf"[!-~]{{1,{LONGEST_KEY}}}")


class Repeated(Exception):
    """Not a failure: the request has been answered before, and this is the answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.entry_id)
        self.answer = answer


def key_of(request: Request) -> str | None:
    """The Idempotency-Key of a request that may change something. Raises BadRequest for one that is none."""
    keys = request.headers.getlist(HEADER)
    if request.method != "POST" or not keys:
        return None
    if len(keys) > 1 or not _VISIBLE.fullmatch(keys[0]):
        raise BadRequest(
            f"The header Idempotency-Key takes 1 to {LONGEST_KEY} visible ASCII characters without spaces, once."
        )
    return keys[0]


async def once(app: ASGIApp, state: State, key: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Run `app` for this request unless it has been run under the same key before.

    Raises IdempotencyConflict, IdempotencyExpired, Cancelled, TimedOut, ShuttingDown, LedgerUnavailable, and what `app`
    raises.
    """
    request = Request(scope)
    exchange = exchange_of(request)
    caller = exchange.caller
    assert caller is not None
    turn = Turn(
        state,
        exchange,
        scope_of(caller.key_id, exchange.endpoint, key),
        Fingerprint(request.headers.get("content-type", "")),
        receive,
        send,
    )
    exchange.keep = turn.keep
    try:
        await app(scope, turn.receive, turn.send)
    except Repeated as repeated:
        await _repeat(repeated.answer, exchange, send)
    finally:
        turn.end()


async def _repeat(answer: Answer, exchange: Exchange, send: Send) -> None:
    exchange.entry, exchange.model, exchange.warnings = answer.entry, answer.model, answer.warnings
    exchange.repeated = True
    await send({"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)})
    await send({"type": "http.response.body", "body": answer.body})


class Turn:
    """One request under a key: reads along until its turn has come, then writes its answer down."""

    def __init__(
        self,
        state: State,
        exchange: Exchange,
        scope: bytes,
        fingerprint: "Fingerprint",
        receive: Receive,
        send: Send,
    ) -> None:
        self._replays = state.replays
        self._request_timeout = state.settings.request_timeout
        self._exchange = exchange
        self._scope = scope
        self._fingerprint = fingerprint
        self._receive = receive
        self._send = send
        self._claim: Claim | None = None
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = bytearray()
        self._noting = state.replays.largest > 0

    # -- in ------------------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The request's next message. Raises Repeated, and what `once` raises."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            run = self._exchange.run
            if self._claim is not None and self._noting and run is not None and run.has_output:
                self._exchange.client_left = True
                await asyncio.Event().wait()  # until the endpoint has its answer, and listens no longer
            return message
        self._fingerprint.add(message.get("body", b""))
        if not message.get("more_body", False) and self._claim is None:
            await self._await_turn()
        return message

    async def _await_turn(self) -> None:
        demand = Demand(self._scope, self._fingerprint.digest())
        claiming = asyncio.create_task(self._replays.claim(demand))
        leaving = asyncio.create_task(self._until_gone())
        try:
            limit = self._request_timeout or None  # 0 = as long as it takes
            await asyncio.wait((claiming, leaving), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            claiming.cancel()  # does nothing to one that is done
            await asyncio.wait((claiming, leaving))
            if not claiming.cancelled() and claiming.exception() is None:
                found = claiming.result()
                self._claim = found if isinstance(found, Claim) else None
        if claiming.cancelled() and leaving.cancelled():
            raise TimedOut(
                "Another request under this Idempotency-Key has run for longer than request_timeout "
                f"({self._request_timeout:g} s). Send it again: it will not be charged twice."
            )
        if claiming.cancelled():
            raise Cancelled("the client left while another request ran under its Idempotency-Key")
        found = claiming.result()
        if isinstance(found, Answer):
            raise Repeated(found)
        self._exchange.claim_id = found.id

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # -- out -----------------------------------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Send it, and note it."""
        self._note(message)
        await self._send(message)

    def _note(self, message: Message) -> None:
        if not self._noting:
            return
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message["headers"])
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
        if len(self._body) > self._replays.largest:
            self._noting = False
            self._body.clear()

    async def keep(self, end: Sequence[Message]) -> None:
        """Write the answer down, which `end` completes: its entry is settled next, and then `end` is sent."""
        for message in end:
            self._note(message)
        exchange, entry = self._exchange, self._exchange.entry
        if self._noting and self._claim is not None and entry is not None:
            await self._replays.keep(
                Answer(
                    status=self._status,
                    headers=self._headers,
                    body=bytes(self._body),
                    warnings=exchange.warnings,
                    model=exchange.model,
                    entry_id=entry.id,
                    units=entry.units,
                    unit_price_micros=entry.unit_price_micros,
                    opened=entry.opened,
                )
            )
        self._noting = False

    def end(self) -> None:
        """The request is over, however it ended: whoever waits for it may go on."""
        if self._claim is not None:
            self._replays.end(self._claim)


class Fingerprint:
    """SHA-256 of a body as it comes in. In a multipart body the boundary counts as what it is: clients draw another
    one each time they send the same fields and files.
    """

    def __init__(self, content_type: str) -> None:
        self._hash = hashlib.sha256()
        self._rest = b""  # what may be the beginning of a boundary
        self._boundary = b""
        headers = Headers()
        headers["content-type"] = content_type
        if headers.get_content_maintype() == "multipart":
            self._boundary = b"--" + str(headers.get_param("boundary", "")).encode("utf-8", "replace")

    def add(self, data: bytes) -> None:
        """The next piece."""
        if not self._boundary:
            self._hash.update(data)
            return
        *parts, rest = (self._rest + data).split(self._boundary)
        for part in parts:
            self._hash.update(part)
            self._hash.update(b"\0boundary\0")
        whole = max(0, len(rest) - len(self._boundary) + 1)
        self._hash.update(rest[:whole])
        self._rest = rest[whole:]

    def digest(self) -> bytes:
        """After the last piece."""
        self._hash.update(self._rest)
        self._rest = b""
        return self._hash.digest()
