"""From the fields that constrain an answer to the one constraint that the engine gets."""

import json

import pytest

from oxlo_local.calls import Constraint
from oxlo_local.errors import BadRequest
from oxlo_local.protocol import chat, completions, constraints

INTEGER: dict[str, object] = {"type": "integer"}


def asked(**fields: object) -> Constraint | None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    request, warnings = chat.decode(json.dumps(body).encode(), strict=True)
    assert not warnings
    return chat.to_call(request, {}, "id").constraint


def schema_format(**named: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "n", **named}}


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type":"object"}'),
        (
            {"response_format": schema_format(schema=INTEGER, strict=True)},
            "json_schema",
            '{"type":"integer"}',
        ),
        ({"response_format": schema_format(schema=INTEGER)}, "json_schema", '{"type":"integer"}'),
        ({"response_format": schema_format()}, "json_schema", '{"type":"object"}'),
        ({"guided_json": INTEGER}, "json_schema", '{"type":"integer"}'),
        ({"guided_json": '{ "type": "integer" }'}, "json_schema", '{"type":"integer"}'),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["ja", 'né"in']}, "grammar", 'start: "ja" | "né\\"in"'),
        ({"guided_grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
    ],
)
def test_each_field_becomes_a_constraint(fields: dict[str, object], kind: str, text: str) -> None:
    constraint = asked(**fields)
    assert constraint is not None
    assert (constraint.kind, constraint.text) == (kind, text)
    assert constraint.param.startswith(next(iter(fields)))


@pytest.mark.parametrize("fields", [{}, {"response_format": None}, {"response_format": {"type": "text"}}])
def test_no_constraint(fields: dict[str, object]) -> None:
    assert asked(**fields) is None


def test_completions_take_the_same_fields() -> None:
    body = {"model": "m", "prompt": "p", "response_format": {"type": "json_object"}}
    request, _ = completions.decode(json.dumps(body).encode(), strict=True)
    assert completions.to_call(request, {}, "id").constraint is not None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": schema_format(name="with space")}, "response_format.json_schema.name"),
        ({"response_format": schema_format(schema={"not": {}})}, "response_format.json_schema.schema.not"),
        (
            {"response_format": schema_format(schema={"enum": ["a" * 70_000]})},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object", "strict": True}}, "response_format.strict"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[]"}, "guided_json"),
        ({"guided_json": "[" * 50_000}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": "a" * 20_000}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [""]}, "guided_choice[0]"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(**fields)
    assert caught.value.param == param


def test_a_schema_is_checked_once_for_a_request_and_its_repetitions() -> None:
    schema = {"type": "object", "properties": {"once": INTEGER}}
    before = constraints._checked.cache_info().misses
    for _ in range(3):
        assert asked(guided_json=schema) is not None
    assert constraints._checked.cache_info().misses == before + 1
