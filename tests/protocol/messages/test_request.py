"""Requests of /v1/messages: what reaches the engine, what is refused, and that nothing is passed over in silence."""

import anthropic.types as types
import anthropic.types.beta as beta
import pytest

from oxlo_local.calls import Constraint, Message, Sampling
from oxlo_local.errors import BadRequest, OxloError, UnknownParameter, UnsupportedValue
from oxlo_local.protocol.messages.fields import MESSAGES
from oxlo_local.protocol.messages.request import CountRequest, MessagesRequest, decode, decode_count
from tests.protocol.messages.asking import HELLO, asked, body, call, warnings

SCHEMA: dict[str, object] = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
TOOL = {"name": "find", "input_schema": SCHEMA}


def test_all_that_a_request_can_say_reaches_the_engine() -> None:
    made = call(
        system="Be brief.",
        stop_sequences=["a", "b", "c", "d", "e"],
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repeat_penalty=1.1,
        seed=3,
        truncation="auto",
    )
    assert made.messages == [Message("system", "Be brief."), Message("user", "hi")]
    assert (made.max_tokens, made.stop, made.truncate) == (10, ["a", "b", "c", "d", "e"], True)
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repeat_penalty=1.1, seed=3)
    assert made.sampling == sampling and made.n == 1


def test_the_models_own_sampling_holds_where_nothing_is_said() -> None:
    assert asked().call({"temperature": 0.2}, None, "c")[0].sampling.temperature == 0.2
    assert asked(temperature=0).call({"temperature": 0.2}, None, "c")[0].sampling.temperature == 0


@pytest.mark.parametrize("fields", [{"output_config": {"format": FORMAT}}, {"output_format": FORMAT}])
def test_a_format_constrains_the_answer(fields: dict[str, object]) -> None:
    constraint = call(**fields).constraint
    assert constraint is not None and constraint.kind == "json_schema" and '"a"' in constraint.text
    assert constraint.param.startswith(next(iter(fields)))
    assert isinstance(constraint, Constraint)


def test_thoughts_of_older_turns_are_cleared_when_asked_to() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    turns = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": [thought, {"type": "text", "text": "one"}]},
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": [thought, {"type": "text", "text": "two"}]},
        {"role": "user", "content": "3"},
    ]

    def thoughts(*edits: dict[str, object]) -> list[str | None]:
        made = call(messages=turns, context_management={"edits": list(edits)})
        return [turn.reasoning for turn in made.messages or () if turn.role == "assistant"]

    clear: dict[str, object] = {"type": "clear_thinking_20251015"}
    assert thoughts() == thoughts({**clear, "keep": "all"}) == thoughts({**clear, "keep": {"type": "all"}})
    assert thoughts() == ["hm", "hm"] and thoughts(clear) == [None, "hm"]
    assert thoughts({**clear, "keep": {"type": "thinking_turns", "value": 2}}) == ["hm", "hm"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": ["a", ""]}, "stop_sequences[1]"),
        ({"stop_sequences": "a"}, "stop_sequences"),
        ({"stream": "yes"}, "stream"),
        ({"metadata": {"user_id": "x" * 513}}, "metadata"),
        ({"metadata": {"user_id": 5}}, "metadata[...]"),
        ({"cache_control": {"type": "forever"}}, "cache_control.type"),
        ({"cache_control": {"type": "ephemeral", "ttl": "1y"}}, "cache_control.ttl"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"output_config": {"effort": "none"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "regex"}}}, "output_config.format.type"),
        ({"output_config": {"format": FORMAT}, "output_format": FORMAT}, "output_format"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "any"}, "output_config": {"format": FORMAT}},
            "output_config.format.schema",
        ),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits[0].type"),
        ({"service_tier": "priority"}, "service_tier"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fields: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        asked(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"container": "c_1"}, "container"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"speed": "fast"}, "speed"),
        ({"inference_geo": "us"}, "inference_geo"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"fallbacks": ["m"]}, "fallbacks"),
        ({"compaction": {}}, "compaction"),
        ({"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]}, "messages[0].content[0].type"),
        ({"output_config": {"format": {**FORMAT, "schema": {"not": {}}}}}, "output_config.format.schema.not"),
    ],
)  # fmt: skip
def test_what_is_not_done_here_is_refused(fields: dict[str, object], param: str) -> None:
    with pytest.raises(UnsupportedValue) as refused:
        asked(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        dict.fromkeys(("system", "tools", "thinking", "container", "metadata", "speed", "stream")),
        {"container": None, "speed": "standard", "mcp_servers": [], "inference_geo": "global"},
        {"cache_control": {"type": "ephemeral", "ttl": "1h"}, "service_tier": "standard_only"},
        {"metadata": {"user_id": None}, "diagnostics": {"previous_message_id": None}},
        {"stream": False, "stop_sequences": [], "tools": [], "system": []},
    ],
)
def test_neutral_values_are_accepted_without_a_word(fields: dict[str, object]) -> None:
    assert warnings(**fields) == [] and call(**fields).messages == [Message("user", "hi")]


def test_unknown_fields_are_named_wherever_they_stand() -> None:
    fields: dict[str, object] = {
        "mood": "good",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x", "tone": 1}], "name": "n"}],
        "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "scope": "global"}}],
        "tools": [{**TOOL, "colour": 1}],
        "tool_choice": {"type": "auto", "soon": True},
        "thinking": {"type": "adaptive", "depth": 1},
    }
    paths = [
        "mood",
        "messages[0].content[0].tone",
        "messages[0].name",
        "system[0].cache_control.scope",
        "tools[0].colour",
        "tool_choice.soon",
        "thinking.depth",
    ]
    said = warnings(**fields)
    assert sorted(said) == sorted(f'unknown field "{path}" has no effect' for path in paths)
    with pytest.raises(UnknownParameter) as refused:
        decode(body(**fields), strict=True)
    assert refused.value.param == "mood"


def test_members_of_schemas_and_inputs_are_nobodys_business() -> None:
    use = {"type": "tool_use", "id": "1", "name": "find", "input": {"any": {"thing": 1}}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": "x"}
    turns = [*HELLO, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    tool = {"name": "find", "input_schema": {**SCHEMA, "x-mine": {"y": 1}}, "input_examples": [{"a": 1}]}
    assert warnings(messages=turns, tools=[tool]) == []


def test_a_count_needs_no_more_than_the_prompt() -> None:
    asked_for, said = decode_count(body(max_tokens=None, tools=[TOOL], mood=1), strict=False)
    assert said == ['unknown field "mood" has no effect']
    made = asked_for.call({}, None, "c")[0]
    assert made.tools[0].name == "find" and made.max_tokens is None
    assert decode_count(body(stream=True), strict=True)[1] == [], "known, and nothing to a prompt"
    with pytest.raises(OxloError) as refused:
        decode_count(body(messages=[]), strict=False)
    assert refused.value.param == "messages"


def test_the_table_knows_every_field_of_the_sdk() -> None:
    """The SDK's types are the judge of what Anthropic's API has; headers among them are no fields."""
    known = {field.name for field in MESSAGES}
    read = set(MessagesRequest.__struct_fields__) | {f.name for f in MESSAGES if f.fate == "neutral"}
    assert known == read and set(CountRequest.__struct_fields__) < known
    headers = {"betas", "user_profile_id", "workspace_id"}
    described: set[str] = set()
    for params in (types.message_create_params, beta.message_create_params):
        described |= params.MessageCreateParamsBase.__annotations__.keys()
    for counted in (types.message_count_tokens_params, beta.message_count_tokens_params):
        described |= counted.MessageCountTokensParams.__annotations__.keys()
    assert described - headers - {"stream"} <= known
    gone = {"temperature", "top_p", "top_k", "output_format", "stream"}  # the newest SDK does not name them
    assert {f.name for f in MESSAGES if f.fate != "extension"} - described <= gone
