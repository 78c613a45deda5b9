"""Which schemas are refused before any engine sees them, and what the refusal names."""

import json
import time

import pytest

from oxlo_local.errors import BadRequest, UnsupportedValue
from oxlo_local.protocol import schemas

STRING: dict[str, object] = {"type": "string"}


def nested(levels: int) -> dict[str, object]:
    schema = STRING
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def refusal(schema: dict[str, object]) -> BadRequest:
    begun = time.monotonic()
    with pytest.raises(BadRequest) as caught:
        schemas.check_size(schema, "s")
        schemas.check(schema, "s")
    assert time.monotonic() - begun < 1
    return caught.value


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"not": STRING, "$ref": {"type": "integer"}}},  # names, not keywords
        {"enum": [{"not": 1, "items": 3}]},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
            "required": ["next"],
        },
        {"$defs": {"a/b": STRING}, "$ref": "#/$defs/a~1b"},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "array", "prefixItems": [STRING], "items": {"$ref": "#"}, "minItems": 1},
        {
            "title": "T",
            "description": "d",
            "default": {"not": 1},
            "x-order": 1,
            "$schema": "http://json-schema.org/draft-07/schema#",
        },
        {"type": "object", "additionalProperties": True, "minProperties": 1},
        nested(60),
    ],
)
def test_what_can_be_enforced_passes(schema: dict[str, object]) -> None:
    schemas.check_size(schema, "s")
    schemas.check(schema, "s")


@pytest.mark.parametrize(
    "keyword",
    "not if dependentRequired dependentSchemas dependencies unevaluatedProperties unevaluatedItems contains "
    "minContains uniqueItems propertyNames $dynamicRef $recursiveRef extends maxlength x-guidance".split(),
)
def test_a_keyword_that_would_be_ignored_is_named(keyword: str) -> None:
    error = refusal({"type": "object", "properties": {"a": {"type": "string", keyword: {"type": "null"}}}})
    assert isinstance(error, UnsupportedValue)
    assert error.param == f"s.properties.a.{keyword}" and f"'{keyword}'" in error.message


INT32 = {"minimum": -(2**31), "maximum": 2**31 - 1}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        # As zod writes a record, and OpenAPI's generators a number.
        ({"type": "object", "propertyNames": {"type": "string"}}, {"type": "object"}),
        ({"type": "array", "uniqueItems": False}, {"type": "array"}),
        ({"unevaluatedProperties": {}, "unevaluatedItems": True}, {}),
        ({"type": "string", "format": "password"}, {"type": "string"}),
        ({"type": "integer", "format": "int32"}, {"type": "integer", **INT32}),
        ({"type": "integer", "format": "int32", "minimum": 3}, {"type": "integer", **INT32, "minimum": 3}),
        ({"type": "number", "format": "double"}, {"type": "number"}),
    ],
)
def test_what_asks_for_nothing_is_taken_out_and_formats_of_numbers_are_bounds(
    written: dict[str, object], read: dict[str, object]
) -> None:
    outer: dict[str, object] = {"type": "object", "properties": {"a": written}}
    schemas.check(outer, "s")
    assert outer == {"type": "object", "properties": {"a": read}}
    error = refusal({"type": "string", "format": "int32"})
    assert error.param == "s.format"


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"$ref": "#"}, "s.$ref"),
        ({"$ref": "http://elsewhere/schema.json"}, "s.$ref"),
        ({"$ref": "#/nowhere"}, "s.$ref"),
        ({"$ref": "#/title", "title": "T"}, "s.$ref"),
        ({"$ref": 3}, "s.$ref"),
        ({"anyOf": [{"$ref": "#"}, STRING]}, "s.anyOf[0].$ref"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "s.$defs.a.$ref"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "s.$ref"),
        ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "s.$ref"),
        ({"type": "string", "format": "idn-email"}, "s.format"),
        ({"type": "string", "format": "unknown"}, "s.format"),
        ({"type": "string", "format": ["date"]}, "s.format"),
        ({"type": "object", "minProperties": 2}, "s.minProperties"),
        ({"type": "integer", "multipleOf": 1000003}, "s.multipleOf"),
        ({"allOf": [{"pattern": str(i)} for i in range(17)]}, "s.allOf"),
        ({"allOf": [{"pattern": str(i)} for i in range(9)]}, "s.allOf"),
        ({"allOf": [{"allOf": [{"pattern": f"{i}{j}"} for i in range(4)]} for j in range(4)]}, "s.allOf"),
        ({"multipleOf": 7, "allOf": [{"multipleOf": 991}]}, "s.allOf"),
        (
            {
                "$defs": {
                    **{f"d{i}": {"pattern": "a", "$ref": f"#/$defs/d{i + 1}"} for i in range(9)},
                    "d9": {},
                }
            },
            "s.$defs.d0.$ref",
        ),
        ({"properties": {"a": {"$id": "http://a"}}}, "s.properties.a.$id"),
        ({"properties": {"a": [1]}}, "s.properties.a"),
        ({"pattern": "a" * 5000}, "s"),
        (nested(70), "s"),
        ({"enum": list(range(30_000))}, "s"),
    ],
)
def test_what_cannot_be_enforced_is_refused_at_once(schema: dict[str, object], param: str) -> None:
    assert refusal(schema).param == param


def test_a_long_chain_of_references_is_read_at_once() -> None:
    links = 2000
    forth = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} if i < links else STRING for i in range(links + 1)}
    back = {f"d{i}": {"$ref": f"#/$defs/d{i - 1}"} if i else STRING for i in range(links + 1)}
    begun = time.monotonic()
    schemas.check(json.loads(json.dumps({"$defs": forth, "$ref": "#/$defs/d0"})), "s")
    schemas.check(json.loads(json.dumps({"$defs": back, "$ref": f"#/$defs/d{links}"})), "s")
    assert time.monotonic() - begun < 1
