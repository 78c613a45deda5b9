"""Anthropic's tools and the choice among them, as the engine gets them."""

import pytest

from oxlo_local.calls import Tool
from oxlo_local.errors import BadRequest, UnsupportedValue
from tests.protocol.messages.asking import HELLO, asked, call, warnings

SCHEMA: dict[str, object] = {"type": "object", "properties": {"place": {"type": "string"}}}
TEXT = '{"type":"object","properties":{"place":{"type":"string"}}}'


def tool(name: str = "find", **more: object) -> dict[str, object]:
    return {"name": name, "input_schema": SCHEMA, **more}


TWO = [tool(description="Finds.", strict=True), tool("stop", type="custom")]
FIND, STOP = Tool("find", TEXT, "Finds.", strict=True), Tool("stop", TEXT)


@pytest.mark.parametrize(
    ("choice", "tools", "wanted", "parallel"),
    [
        (None, [FIND, STOP], "auto", True),
        ({"type": "auto"}, [FIND, STOP], "auto", True),
        ({"type": "auto", "disable_parallel_tool_use": True}, [FIND, STOP], "auto", False),
        ({"type": "any"}, [FIND, STOP], "required", True),
        ({"type": "any", "disable_parallel_tool_use": True}, [FIND, STOP], "required", False),
        ({"type": "tool", "name": "stop"}, [STOP], "required", False),
        ({"type": "none"}, [FIND, STOP], "none", True),
    ],
)
def test_a_choice(choice: object, tools: list[Tool], wanted: str, parallel: bool) -> None:
    made = call(tools=TWO, tool_choice=choice)
    assert (made.tools, made.tool_choice, made.parallel_tool_calls) == (tools, wanted, parallel)


@pytest.mark.parametrize("choice", [None, {"type": "auto"}, {"type": "none"}])
def test_without_tools_there_is_none(choice: object) -> None:
    made = call(tool_choice=choice, tools=[])
    assert (made.tools, made.tool_choice) == ([], "auto")


def test_examples_are_shown_to_the_model() -> None:
    (one,) = call(tools=[tool(description="Finds.", input_examples=[{"place": "x"}])]).tools
    assert one.description == 'Finds.\nExamples of its input:\n{"place":"x"}'


def test_a_deferred_tool_is_offered_once_it_is_named() -> None:
    tools = [tool(defer_loading=True), tool("search")]
    assert [each.name for each in call(tools=tools).tools] == ["search"]
    use = {"type": "tool_use", "id": "1", "name": "search", "input": {}}
    found = [{"type": "tool_reference", "tool_name": "find"}]
    turns = [
        *HELLO,
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": found}]},
    ]
    made = call(tools=tools, messages=turns)
    assert [each.name for each in made.tools] == ["find", "search"]
    assert made.messages is not None and "find" in made.messages[-1].content


def test_what_changes_nothing_is_accepted() -> None:
    extras = tool(
        cache_control={"type": "ephemeral"}, eager_input_streaming=False, allowed_callers=["direct"]
    )
    assert warnings(tools=[extras]) == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool("")]}, "tools[0].name"),
        ({"tools": [tool("a" * 129)]}, "tools[0].name"),
        ({"tools": [tool("naïve")]}, "tools[0].name"),
        ({"tools": [tool(), tool()]}, "tools[1].name"),
        ({"tools": [{"name": "find"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "find", "input_schema": []}]}, "tools[0].input_schema"),
        ({"tools": [tool(str(n)) for n in range(513)]}, "tools"),
        ({"tools": [tool()], "tool_choice": {"type": "tool", "name": "stop"}}, "tool_choice.name"),
        ({"tools": [tool()], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [tool()], "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": [tool()], "tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ],
)
def test_bad_tools_are_named(fields: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        asked(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("one", "param"),
    [
        ({"type": "web_search_20250305", "name": "web_search"}, "tools[0].type"),
        ({"type": "bash_20250124", "name": "bash"}, "tools[0].type"),
        (tool(allowed_callers=["code_execution_20250825"]), "tools[0].allowed_callers"),
        (tool(strict=True, input_schema={"type": "object", "not": {}}), "tools[0].input_schema.not"),
    ],
)
def test_what_no_tool_can_be_here_is_refused(one: dict[str, object], param: str) -> None:
    with pytest.raises(UnsupportedValue) as refused:
        asked(tools=[one])
    assert refused.value.param == param
