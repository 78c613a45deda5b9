"""Reading a request's body: never more of it than is allowed, and never on the loop when it is big."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from oxlo_local.api.exchange import State, exchange_of
from oxlo_local.errors import Cancelled, TooLarge

T = TypeVar("T")

# Bytes whose decoding would hold up every stream for milliseconds: to check a schema takes 3 ms a KiB at worst.
BIG_BODY = 16 * 1024


async def read_request(state: State, request: Request, decode: Callable[..., tuple[T, list[str]]]) -> T:
    """What `decode(body, strict=...)` makes of the body; its warnings go to the exchange. Raises what it raises."""
    settings = state.settings
    body = await read_body(request, settings.max_body_bytes)
    asked, warnings = await decoded(partial(decode, strict=settings.strict), body)
    exchange_of(request).warnings += warnings
    return asked


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises TooLarge from its declared length, or as soon as more than `limit` bytes have come."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(request, limit)
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise _too_large(request, limit)
    except ClientDisconnect:
        raise Cancelled("the client left while it sent its request") from None
    return bytes(body)


def _too_large(request: Request, limit: int) -> TooLarge:
    exchange_of(request).body_left = True
    return TooLarge(f"The body is larger than {limit} bytes, which is this server's limit (max_body_bytes).")


async def decoded(decode: Callable[[bytes], T], body: bytes) -> T:
    """`decode(body)`; that of a big body runs in a thread."""
    return await asyncio.to_thread(decode, body) if len(body) > BIG_BODY else decode(body)
