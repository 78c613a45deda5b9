"""Frames between parent and child: a 4-byte length, then one msgpack message of `calls`.

Sans I/O: `pack` makes bytes and `Frames` takes them apart again, whatever the pieces a pipe delivers. The two ends do
their own reading and writing (asyncio in the parent, `os.read` and `os.write` in the child).
"""

from struct import Struct

from oxlo_local.calls import Down, Up, encoder

HEADER = Struct("<I")
MAX_FRAME = 256 * 1024 * 1024  # four times the largest request body; a longer one is not a frame but noise


class Garbled(Exception):
    """The bytes on the pipe are no frames: the two ends have lost each other."""


def pack(message: Down | Up) -> bytes:
    """One frame, header included. Raises `Garbled` for a message that no frame can hold."""
    body = encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise Garbled(f"a message of {len(body):,} bytes is longer than a frame may be ({MAX_FRAME:,})")
    return HEADER.pack(len(body)) + body


class Frames:
    """Cuts a stream of bytes into message bodies."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytearray]:
        """The bodies that are complete with `data`; the rest is kept. Raises `Garbled` on an impossible length."""
        held = self._held
        held += data
        bodies: list[bytearray] = []
        at = 0
        while len(held) - at >= HEADER.size:
            (size,) = HEADER.unpack_from(held, at)
            if size > MAX_FRAME:
                raise Garbled(f"a frame of {size:,} bytes was announced; at most {MAX_FRAME:,} are possible")
            end = at + HEADER.size + size
            if end > len(held):
                break
            bodies.append(held[at + HEADER.size : end])
            at = end
        del held[:at]
        return bodies
