"""What a request may ask of the form of its answer: `response_format`, and the `guided_` fields as vLLM names them.

Whatever the field, the engine gets one `calls.Constraint`. A schema is checked here by all that shows in it alone
(schemas.py), so that most of what cannot be enforced is refused before the request is entered into the ledger; what
only a compiler can tell, the engine's worker says.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated

from msgspec import Meta, Struct

from oxlo_local.calls import Constraint
from oxlo_local.errors import BadRequest, UnsupportedValue
from oxlo_local.protocol import schemas

MAX_SCHEMA = 64 * 1024  # characters; compiled in well under a second
MAX_GRAMMAR = 16 * 1024

ANY_OBJECT = '{"type":"object"}'


class TextFormat(Struct, frozen=True, tag_field="type", tag="text"):
    """No constraint."""


class JsonObjectFormat(Struct, frozen=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class NamedSchema(Struct, frozen=True):
    """The schema of a response_format. It is enforced with and without `strict`."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
    description: str | None = None
    schema: dict[str, object] | None = None  # None = any object
    strict: bool | None = None


class JsonSchemaFormat(Struct, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that is valid against a schema."""

    json_schema: NamedSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class ConstrainedRequest(Struct, frozen=True, kw_only=True):
    """The fields of a request that constrain its answer; at most one of them may."""

    response_format: ResponseFormat | None = None
    guided_json: dict[str, object] | str | None = None
    guided_regex: Annotated[str, Meta(min_length=1)] | None = None
    guided_choice: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)] | None = None
    guided_grammar: Annotated[str, Meta(min_length=1)] | None = None


def constraint_of(request: ConstrainedRequest) -> Constraint | None:
    """The one constraint of a request. Raises BadRequest for two, UnsupportedValue for what cannot be enforced."""
    found = list(_constraints(request))
    if len(found) > 1:
        names = " and ".join(f"'{each.param.partition('.')[0]}'" for each in found)
        raise BadRequest(f"{names} both constrain the answer; send one of them.", param=found[1].param)
    return found[0] if found else None


def _constraints(request: ConstrainedRequest) -> Iterator[Constraint]:
    match request.response_format:
        case JsonObjectFormat():
            yield Constraint("json_schema", ANY_OBJECT, "response_format")
        case JsonSchemaFormat(json_schema=named):
            yield of_schema(
                {"type": "object"} if named.schema is None else named.schema,
                "response_format.json_schema.schema",
            )
        case TextFormat() | None:
            pass
    if request.guided_json is not None:
        yield of_schema(_object(request.guided_json, "guided_json"), "guided_json")
    if request.guided_regex is not None:
        yield _bounded(Constraint("regex", request.guided_regex, "guided_regex"))
    if request.guided_choice is not None:
        choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in request.guided_choice)
        yield _bounded(Constraint("grammar", f"start: {choices}", "guided_choice"))
    if request.guided_grammar is not None:
        yield _bounded(Constraint("grammar", request.guided_grammar, "guided_grammar"))


def of_schema(schema: dict[str, object], param: str) -> Constraint:
    """JSON that is valid against `schema`. Raises UnsupportedValue or BadRequest, naming the keyword."""
    schemas.check_size(schema, param)
    text = json.dumps(schema, separators=(",", ":"))
    if len(text) > MAX_SCHEMA:
        raise BadRequest(
            f"The schema has {len(text)} characters; at most {MAX_SCHEMA} can be enforced.", param=param
        )
    return Constraint("json_schema", _checked(text, param), param)


@lru_cache(maxsize=64)
def _checked(text: str, param: str) -> str:
    """A schema as the engine takes it. Remembered when it passes: a request asks for its constraint more than once, and
    clients send a schema again and again. To check a large one takes a tenth of a second.
    """
    schema = json.loads(text)
    schemas.check(schema, param)
    return json.dumps(schema, separators=(",", ":"))


def _bounded(constraint: Constraint) -> Constraint:
    if len(constraint.text) > MAX_GRAMMAR:
        raise UnsupportedValue(
            f"This constraint has {len(constraint.text)} characters; at most {MAX_GRAMMAR} can be enforced.",
            param=constraint.param,
        )
    return constraint


def _object(value: Mapping[str, object] | str, param: str) -> dict[str, object]:
    """A schema that may also come as JSON text, as vLLM allows it."""
    if not isinstance(value, str):
        return dict(value)
    if len(value) > MAX_SCHEMA:
        raise BadRequest(
            f"The schema has {len(value)} characters; at most {MAX_SCHEMA} can be enforced.", param=param
        )
    try:
        read = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"This is not JSON: {str(error)[:100]}.", param=param) from None
    if not isinstance(read, dict):
        raise BadRequest("The schema must be an object.", param=param)
    return read


def unknown_members(members: Mapping[str, object]) -> Iterator[str]:
    """Paths of unknown members inside `response_format`, whose shape is known to be right."""
    format = members.get("response_format")
    if not isinstance(format, dict):
        return
    for name in format:
        if name not in ("type", "json_schema") or (name == "json_schema" and format["type"] != "json_schema"):
            yield f"response_format.{name}"
    named = format.get("json_schema")
    if format["type"] == "json_schema" and isinstance(named, dict):
        known = NamedSchema.__struct_fields__
        yield from (f"response_format.json_schema.{name}" for name in named if name not in known)
