"""Gemma 4's notation of arguments as a grammar: bare keys in order of the alphabet, strings between marks.

{count:3,near:[<|"|>Oslo<|"|>],place:{name:<|"|>Rome<|"|>}}
"""

import json
import re
from collections.abc import Mapping, Set

from oxlo_local.engines.text.toolcalls.shape import Free, Json, OneOf, Part, Rule, Some
from oxlo_local.engines.text.toolcalls.values import (
    KEY,
    OBJECT,
    STRING,
    Node,
    cannot,
    is_of,
    listed,
    referred,
    refuse_others,
    text_of,
)

QUOTE = '<|"|>'
NUMBER = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
ARRAY = frozenset({"items", "minItems", "maxItems"})
KNOWN = OBJECT | STRING | NUMBER | ARRAY
# The kind of value that keywords without a type speak of. That they allow all values of other kinds, nobody means.
IMPLIED = (("object", OBJECT), ("array", ARRAY), ("number", NUMBER), ("string", STRING))


def written(value: object) -> str:
    """A value in the notation."""
    if isinstance(value, str):
        return f"{QUOTE}{value}{QUOTE}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(each)}" for key, each in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


class Notation:
    """The rules of several functions' arguments. Raises UnsupportedValue for what the notation cannot be held to."""

    def __init__(self) -> None:
        self.rules: dict[str, tuple[Part, ...]] = {}
        self._root: Node = {}
        self._known: dict[str, str] = {}  # rules by the `$ref` that means them

    def arguments(self, schema: str | None) -> tuple[Part, ...]:
        """The arguments of a function with this schema, as JSON text; None = any."""
        self._root, self._known = json.loads(schema or '{"type":"object"}'), {}
        return self._value(self._root)

    def _rule(self, parts: tuple[Part, ...]) -> Rule:
        name = f"gemma{len(self.rules)}"
        self.rules[name] = parts
        return Rule(name)

    def _value(self, schema: object) -> tuple[Part, ...]:
        if schema is False:
            raise cannot("false")
        node: Node = schema if isinstance(schema, dict) else {}
        if "$ref" in node:
            refuse_others(node, frozenset({"$ref"}))
            return (Rule(self._referred(str(node["$ref"]))),)
        if "anyOf" in node:
            refuse_others(node, frozenset({"anyOf"}))
            branches = node["anyOf"]
            return (OneOf(tuple(map(self._value, branches if isinstance(branches, list) else ()))),)
        refuse_others(node, KNOWN)
        values = listed(node)
        if values is not None:
            refuse_others(node, frozenset({"type", "enum", "const"}))
            return (OneOf(tuple((written(value),) for value in values if is_of(value, node.get("type")))),)
        kinds = node.get("type") or next((kind for kind, words in IMPLIED if node.keys() & words), None)
        if kinds is None:
            return (self._any(),)
        each = kinds if isinstance(kinds, list) else [kinds]
        return (OneOf(tuple(self._of_kind(str(kind), node) for kind in each)),)

    def _referred(self, pointer: str) -> str:
        if pointer not in self._known:
            self._known[pointer] = self._rule(()).name  # before it is known, since it may refer to itself
            self.rules[self._known[pointer]] = self._value(referred(pointer, self._root))
        return self._known[pointer]

    def _any(self) -> Rule:
        if "any" not in self.rules:
            anything = Rule("any")
            self.rules["any"] = ()
            scalars = tuple((word,) for word in ("true", "false", "null"))
            self.rules["any"] = (
                OneOf(
                    (
                        *scalars,
                        (QUOTE, Free(), QUOTE),
                        (Json('{"type":"number"}'),),
                        ("[", Some((anything,), between=","), "]"),
                        ("{", Some((KEY, ":", anything), between=","), "}"),
                    )
                ),
            )
        return Rule("any")

    def _of_kind(self, kind: str, node: Node) -> tuple[Part, ...]:
        match kind:
            case "string":
                return QUOTE, text_of({name: node[name] for name in node if name in STRING}), QUOTE
            case "integer" | "number":
                bounds = {name: node[name] for name in node if name in NUMBER}
                return (Json(json.dumps({"type": kind, **bounds})),)
            case "boolean":
                return (OneOf((("true",), ("false",))),)
            case "null":
                return ("null",)
            case "array":
                least, most = node.get("minItems", 0), node.get("maxItems")
                assert isinstance(least, int) and isinstance(most, int | None)
                return "[", Some(self._value(node.get("items", True)), most, least, between=","), "]"
            case "object":
                return self._object(node)
            case _:
                raise cannot("type")

    def _object(self, node: Node) -> tuple[Part, ...]:
        named, others = node.get("properties", {}), node.get("additionalProperties", True)
        required = node.get("required", [])
        assert isinstance(named, dict) and isinstance(required, list)
        members = {name: named.get(name, others) for name in sorted({*named, *required})}
        if members:
            return "{", self._members(members, frozenset(required))
        if others is False:
            return ("{}",)
        return "{", Some((KEY, ":", *self._value(others)), between=","), "}"

    def _members(self, members: Mapping[str, object], required: Set[str]) -> Part:
        """The members, in their order, and the closing brace.

        Built from the last to the first: what follows a member differs by whether one has come before, since only then
        a comma stands between.
        """
        at_first: Part = "}"
        later: Part = "}"
        for name, schema in reversed([*members.items()]):
            if re.fullmatch(KEY.pattern, name) is None:
                raise cannot("properties")
            value = self._rule(self._value(schema))
            begun: tuple[Part, ...] = (f"{name}:", value, later)
            more: tuple[Part, ...] = (f",{name}:", value, later)
            if name not in required:
                begun, more = (OneOf((begun, (at_first,))),), (OneOf((more, (later,))),)
            at_first, later = self._rule(begun), self._rule(more)
        return at_first
