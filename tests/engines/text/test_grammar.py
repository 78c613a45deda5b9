"""Constrained answers of real models with random weights: whatever they say, it parses and is valid."""

import json

import jsonschema
import pytest

from oxlo_local.calls import Constraint, Done, Finished, Sampling, TextCall
from tests.engines.text.conftest import Answers, MakeEngine, drive

WARM = Sampling(temperature=1.0, seed=11)
STRING = {"type": "string", "maxLength": 12}
SCHEMAS: dict[str, dict[str, object]] = {
    "any object": {"type": "object", "maxProperties": 3, "additionalProperties": {"type": "integer"}},
    "person": {
        "type": "object",
        "properties": {"name": STRING, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["naïve", "日本語", 'quote " and \\', 1.5, None, {"a": [1, "🎈"]}]},
    "const": {"const": {"deep": [{"er": True}]}},
    "nested arrays": {
        "type": "array",
        "minItems": 1,
        "maxItems": 3,
        "items": {"type": "array", "maxItems": 2, "items": {"type": "number", "minimum": -1, "maximum": 1}},
    },
    "tuple": {"type": "array", "prefixItems": [STRING, {"type": "boolean"}], "items": False, "minItems": 2},
    "$defs": {
        "$defs": {"point": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["from", "to"],
        "additionalProperties": False,
    },
    "recursion": {
        "type": "object",
        "properties": {"value": {"enum": [1, 2]}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["value", "next"],
        "additionalProperties": False,
    },
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    "unicode pattern": {"type": "string", "pattern": "^[äöüß]{3}[α-ω]?$"},
    "formats": {
        "type": "object",
        "properties": {each: {"type": "string", "format": each} for each in ("date-time", "ipv4", "uuid")},
        "required": ["date-time", "ipv4", "uuid"],
        "additionalProperties": False,
    },
    "anyOf": {"anyOf": [{"type": "integer", "multipleOf": 7}, {"type": "string", "maxLength": 2}]},
    "oneOf": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}},
                "required": ["kind"],
                "maxProperties": 1,
            }
            for kind in ("a", "b")
        ]
    },
    "allOf": {"allOf": [{"type": "integer", "minimum": 10}, {"maximum": 20}]},
    "lengths": {"type": "string", "minLength": 3, "maxLength": 5},
    "types": {"type": ["integer", "null"], "minimum": 5, "maximum": 9999},
    "pattern properties": {
        "type": "object",
        "patternProperties": {"^[ab]$": {"type": "boolean"}},
        "additionalProperties": False,
        "maxProperties": 2,
    },
}


def schema(value: object) -> Constraint:
    return Constraint("json_schema", json.dumps(value), "response_format.json_schema.schema")


def call(id: str, constraint: Constraint | None, max_tokens: int = 400, **more: object) -> TextCall:
    fields: dict[str, object] = {"sampling": WARM, "constraint": constraint} | more
    return TextCall(id, prompts=["tell me"], max_tokens=max_tokens, **fields)  # type: ignore[arg-type]


def reasons(answers: Answers, id: str) -> list[str]:
    found = [
        event for step in answers.steps for event in step if isinstance(event, Finished) and event.id == id
    ]
    return [event.reason for event in sorted(found, key=lambda event: event.choice)]


def assert_valid(text: str, wanted: dict[str, object]) -> None:
    value = json.loads(text)
    jsonschema.Draft202012Validator(wanted, format_checker=jsonschema.FormatChecker()).validate(value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_ends_is_valid(make_engine: MakeEngine, name: str) -> None:
    wanted = SCHEMAS[name]
    engine = make_engine(parallel=8)
    answers = drive(
        engine,
        [call(f"c{seed}", schema(wanted), n=4, sampling=Sampling(seed=100 * seed)) for seed in range(2)],
    )
    ended = 0
    for (id, choice), text in answers.texts.items():
        reason = reasons(answers, id)[choice]
        if reason == "stop":
            assert_valid(text, wanted)
            ended += 1
    assert ended
    assert all(isinstance(end, Done) for end in answers.ends.values())
