"""The text fields of a form as members of one object, in the spellings that OpenAI's SDKs and curl's users send.

    name=a                       the member `name`
    name[]=a, name[0]=a          an item of the list `name`; so is a plain name=a, and each item of name=["a"]
    name[key]=a                  a member of the object `name`; so is each member of name={"key": "a"}

Everything stays text: the struct that it is converted into says what is a number. A field without a value is one that
was not given.
"""

import re
from collections.abc import Iterable
from typing import TypeVar

import msgspec
from msgspec import Struct

from oxlo_local.errors import BadRequest
from oxlo_local.protocol import parts

T = TypeVar("T")

_NAME = re.compile(r"([^\[\]]+)(?:\[([^\[\]]*)\])?")
_Member = str | list[object] | dict[str, object]


class Kinds(Struct, frozen=True):
    """Which members are lists and which are objects; all others are single texts."""

    lists: frozenset[str]
    objects: frozenset[str]


def members_of(fields: Iterable[tuple[str, str]], kinds: Kinds) -> dict[str, _Member]:
    """The members, in order. Raises BadRequest for one that is given twice, or in two spellings that exclude another.

    A name in a spelling that its member does not have stays as it is: it is unknown.
    """
    members: dict[str, _Member] = {}
    for name, text in fields:
        if text:
            _add(members, name, text, kinds)
    return members


def _add(members: dict[str, _Member], name: str, text: str, kinds: Kinds) -> None:
    spelled = _NAME.fullmatch(name)
    stem, key = (spelled[1], spelled[2]) if spelled else (name, None)
    if stem in kinds.lists and (not key or key.isdecimal()):
        found = members.setdefault(stem, [])
        if isinstance(found, list):
            found.extend(_json(text, list) or [text])
    elif stem in kinds.objects and key:
        found = members.setdefault(stem, {})
        if not isinstance(found, dict) or key in found:
            raise _twice(stem)
        found[key] = text
    elif name in members:
        raise _twice(name)
    else:
        members[name] = (_json(text, dict) or text) if name in kinds.objects else text


def _twice(name: str) -> BadRequest:
    return BadRequest(f"The form has the field {parts.printable(name)} twice.", param=name[:100])


def _json(text: str, kind: type[T]) -> T | None:
    """The JSON value of that kind which `text` is; None for any other text."""
    if text[:1] not in "[{":
        return None
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, kind) else None
