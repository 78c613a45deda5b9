"""Schemas of arguments for formats that do not write JSON: their parameters, and text that is written as it is.

Where a format has no room for a keyword, the call is refused with its name. A schema is never loosened.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from oxlo_local.engines.text.toolcalls.shape import Free, OneOf, Part, Written
from oxlo_local.errors import UnsupportedValue

Node = Mapping[str, object]

KEY = Written(r"[^\s:{}\[\],\"'<>=|]{1,64}", clear=True)
DEFINITIONS = ("$defs", "definitions")
# Notes to a reader, which no value can break.
NOTES = frozenset(
    "$anchor $comment $id $schema contentEncoding contentMediaType contentSchema default deprecated description "
    "discriminator example examples externalDocs nullable readOnly title writeOnly xml".split()
).union(DEFINITIONS)
OBJECT = frozenset({"type", "properties", "required", "additionalProperties"})
BOUNDS = ("pattern", "format", "minLength", "maxLength")
STRING = frozenset({"type", "enum", "const", *BOUNDS})

_LEAP = "([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)"
_DATE = (
    "([1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    f"|02-(0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HOST = r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.){1,3}[a-z]{2,12}"
# Narrower than the standards where that is shorter: what matches is valid.
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": "P([1-9][0-9]{0,3}[YMWD]|T[1-9][0-9]{0,4}[HMS])",
    "email": rf"[a-zA-Z0-9][a-zA-Z0-9_+-]{{0,40}}(\.[a-zA-Z0-9_+-]{{1,20}}){{0,2}}@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
    "ipv6": "([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}",
    "uri": rf"https?://{_HOST}(/[a-zA-Z0-9._~+-]{{0,60}}){{0,8}}(\?[a-zA-Z0-9._~+=&-]{{1,200}})?",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}


@dataclass(frozen=True)
class Parameter:
    """One argument of a function. `schema` can be read by itself."""

    name: str
    schema: Node
    required: bool


def cannot(keyword: str) -> UnsupportedValue:
    """The refusal of a keyword."""
    return UnsupportedValue(
        f"the keyword {keyword[:64]!r} of a tool's parameters cannot be enforced in the form in which this model "
        "writes calls: leave it out",
        param="tools",
    )


def refuse_others(schema: Node, known: frozenset[str]) -> None:
    """Raise UnsupportedValue for a keyword that is neither known nor a note."""
    for keyword in schema:
        if keyword not in known and keyword not in NOTES and not keyword.startswith("x-"):
            raise cannot(keyword)


def referred(pointer: object, root: Node) -> object:
    """The schema that a `$ref` means."""
    found: object = root
    for step in str(pointer).split("/")[1:]:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def parameters(schema: str) -> list[Parameter] | None:
    """The parameters that a function's schema (JSON text) names, in its order; None = whatever one likes.

    Raises UnsupportedValue for a schema of another kind.
    """
    root: Node = json.loads(schema)
    node = root
    for _ in range(len(root)):
        target = referred(node["$ref"], root) if "$ref" in node else None
        node = target if isinstance(target, dict) else node
    refuse_others(node, OBJECT)
    if node.get("type", "object") != "object":
        raise cannot("type")
    shared = definitions(root)
    named, others = node.get("properties", {}), node.get("additionalProperties", True)
    required = node.get("required", [])
    assert isinstance(named, dict) and isinstance(required, list)
    if not named and not required and others is not False:
        return None
    names = [*named, *(name for name in required if name not in named)]
    return [
        Parameter(name, alone(named.get(name, others), shared), required=name in required) for name in names
    ]


def definitions(root: Node) -> Node:
    """What the parts of a schema refer to."""
    return {name: root[name] for name in DEFINITIONS if name in root}


def alone(schema: object, shared: Node) -> Node:
    """A part of a schema with the definitions that it refers to. Raises UnsupportedValue where it refers to others."""
    if schema is False:
        raise cannot("false")
    node = dict(schema) if isinstance(schema, dict) else {}
    if any(not pointer.startswith(("#/$defs/", "#/definitions/")) for pointer in _pointers(node)):
        raise cannot("$ref")
    return {**node, **shared}


def _pointers(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield str(value["$ref"])
        for each in value.values():
            yield from _pointers(each)
    elif isinstance(value, list):
        for each in value:
            yield from _pointers(each)


def plain_string(schema: object) -> bool:
    """Whether a parameter's schema asks for a string and nothing else."""
    if not isinstance(schema, dict):
        return False
    values = listed(schema)
    kind = schema.get(
        "type", "string" if values and all(isinstance(value, str) for value in values) else None
    )
    return kind == "string"


def listed(schema: Node) -> list[object] | None:
    """The values that `const` or `enum` allow, None where neither stands."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return list(values) if isinstance(values, list) else None


def is_of(value: object, kinds: object) -> bool:
    """Whether a value is of the type, or one of the types, that a schema names; None = any."""
    if kinds is None:
        return True
    names = kinds if isinstance(kinds, list) else [kinds]
    return any(_is_kind(value, str(name)) for name in names)


def _is_kind(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, int):
        return kind in ("integer", "number")
    python = {"string": str, "number": float, "array": list, "object": dict, "null": type(None)}.get(kind)
    return python is not None and isinstance(value, python)


def suited(value: object, text: str, schema: object) -> object:
    """What a tag says, which is `value` as JSON: its text, where a string may stand there and no such value."""
    kinds = _kinds(schema)
    return text if kinds is not None and "string" in kinds and not is_of(value, kinds) else value


def _kinds(schema: object) -> list[object] | None:
    """The types that a schema allows, as far as it names them."""
    if not isinstance(schema, dict):
        return None
    named = schema.get("type")
    if named is not None:
        return list(named) if isinstance(named, list) else [named]
    for keyword in ("anyOf", "oneOf"):
        if isinstance(branches := schema.get(keyword), list):
            found = [_kinds(branch) for branch in branches]
            return None if None in found else [kind for kinds in found for kind in kinds or ()]
    return None


def text_of(schema: Node) -> Part:
    """The place of a plain string, written without quotes. Raises UnsupportedValue."""
    refuse_others(schema, STRING)
    bounds = [keyword for keyword in BOUNDS if keyword in schema]
    values = listed(schema)
    if values is not None:
        if bounds:
            raise cannot(bounds[0])
        return OneOf(tuple((value,) for value in values if isinstance(value, str)))
    if "pattern" in schema or "format" in schema:
        if len(bounds) > 1:
            raise cannot(bounds[1])
        known = FORMATS.get(str(schema.get("format")))
        pattern = searched(str(schema["pattern"])) if "pattern" in schema else known
        if pattern is None:
            raise cannot("format")
        return Written(pattern)
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    assert isinstance(least, int) and isinstance(most, int | None)
    return Free(least, most)


def searched(pattern: str) -> str:
    """An expression for a whole text in which `pattern` is found, as JSON Schema means it. Raises UnsupportedValue."""
    begins, ends = pattern.startswith("^"), re.search(r"(?<!\\)(\\\\)*\$$", pattern) is not None
    inner = pattern[begins : len(pattern) - ends]
    if (begins or ends) and "|" in re.sub(r"\\.|\[[^\]]*\]|\([^()]*\)", "", inner):
        raise cannot("pattern")  # "^a|b$": the signs belong to the branches
    return f"{'' if begins else '(?s:.*)'}({inner}){'' if ends else '(?s:.*)'}"
