"""Ids that begin with their moment: rows are appended, and read in order of time, without an index for it."""

import secrets
from typing import Final

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: sorts like the number it writes
_RANDOM_BITS: Final = 55


class SortableIds:
    """Makes ids whose text order is time order: `e_`, 9 characters of milliseconds, 11 random ones.

    Two ids of one object and one millisecond follow each other too, so that rows are listed as they were opened.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._last = 0

    def next(self, at_ms: int) -> str:
        """The next id, for a moment in milliseconds since 1970."""
        if self._last >> _RANDOM_BITS == at_ms:
            self._last += 1 + secrets.randbits(_RANDOM_BITS - 20)
        else:  # the upper half of the random bits' range is left for those that follow
            self._last = (at_ms << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS - 1)
        return _identity(self._kind, self._last)


def first_id(kind: str, at_ms: int) -> str:
    """The lowest id that can be made at this moment: ids from here on are from then on."""
    return _identity(kind, max(at_ms, 0) << _RANDOM_BITS)


def _identity(kind: str, number: int) -> str:
    return f"{kind}_" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(95, -1, -5))


_DIGITS: Final = 9  # that are the moment
MOMENT: Final = " + ".join(  # of the column `id`, as SQL
    f"((instr('{_ALPHABET}', substr(id, {3 + place}, 1)) - 1) << {5 * (_DIGITS - 1 - place)})"
    for place in range(_DIGITS)
)
