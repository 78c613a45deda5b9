"""Tools, the choice among them, and wishes about thinking: what reaches the engine, and what is refused."""

import pytest

from oxlo_local.calls import Thinking, Tool
from oxlo_local.errors import BadRequest, UnknownParameter
from tests.protocol.test_chat import HELLO, call, request

SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}}
TEXT = '{"type":"object","properties":{"place":{"type":"string"}}}'

DEEP: object = {}
for _ in range(400):
    DEEP = {"items": DEEP}


def tool(name: str = "find", **more: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **more}}


def named(name: str) -> dict[str, object]:
    return {"type": "function", "function": {"name": name}}


TWO = [tool(description="Finds.", strict=True), tool("stop")]
FIND, STOP = Tool("find", TEXT, "Finds.", strict=True), Tool("stop", TEXT)


@pytest.mark.parametrize(
    ("fields", "tools", "choice", "parallel"),
    [
        ({}, [], "auto", True),
        ({"tools": []}, [], "auto", True),
        ({"tool_choice": "none", "parallel_tool_calls": True}, [], "auto", True),
        ({"tools": TWO}, [FIND, STOP], "auto", True),
        ({"tools": TWO, "tool_choice": "none"}, [FIND, STOP], "none", True),
        ({"tools": TWO, "tool_choice": "required"}, [FIND, STOP], "required", True),
        ({"tools": TWO, "parallel_tool_calls": False}, [FIND, STOP], "auto", False),
        ({"tools": TWO, "tool_choice": named("stop")}, [STOP], "required", False),
        (
            {
                "tools": TWO,
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named("stop")]}},
            },
            [STOP],
            "auto",
            True,
        ),
        ({"functions": [TWO[0]["function"]]}, [FIND], "auto", False),
        (
            {"functions": [t["function"] for t in TWO], "function_call": {"name": "stop"}},
            [STOP],
            "required",
            False,
        ),
    ],
)  # fmt: skip
def test_what_is_offered_reaches_the_call(
    fields: dict[str, object], tools: list[Tool], choice: str, parallel: bool
) -> None:
    made = call(HELLO, **fields)
    assert (made.tools, made.tool_choice, made.parallel_tool_calls) == (tools, choice, parallel)


def test_a_function_without_parameters_takes_none() -> None:
    made = call(HELLO, tools=[{"type": "function", "function": {"name": "go"}}])
    assert made.tools == [Tool("go", '{"type":"object","properties":{}}')]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name"),
        ({"tools": [tool(strict=True, parameters={"type": "object", "uniqueItems": 7})]}, None),
        ({"tools": [tool()] * 129}, "tools"),
        ({"tools": [tool(parameters=DEEP)]}, "tools[0].function.parameters"),
        ({"tools": [tool()], "functions": [tool()["function"]]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": named("find")}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": named("other")}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": "always"}, "tool_choice"),
        (
            {
                "tools": [tool()],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
            },
            "tool_choice.allowed_tools.tools",
        ),
        (
            {
                "tools": [tool()],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function"}]},
                },
            },
            "tool_choice.allowed_tools.tools[0].function",
        ),
        ({"functions": [tool()["function"]], "function_call": {"name": "other"}}, "function_call"),
        (
            {"tools": [tool()], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
        ),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"thinking_budget": -1}, "thinking_budget"),
        ({"chat_template_kwargs": {"colour": "red"}}, "chat_template_kwargs"),
        ({"enable_thinking": True, "chat_template_kwargs": {"thinking": False}}, "chat_template_kwargs"),
        ({"reasoning_format": "hidden"}, "reasoning_format"),
    ],
)
def test_what_cannot_be_offered_is_named(fields: dict[str, object], param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        request(HELLO, **fields)
    assert param is None or caught.value.param == param


def test_unknown_members_of_a_tool_are_named() -> None:
    with pytest.raises(UnknownParameter) as caught:
        request(HELLO, tools=[tool(colour="red")])
    assert caught.value.param == "tools[0].function.colour"


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, Thinking()),
        ({"reasoning_effort": "low", "enable_thinking": True}, Thinking(effort="low", enabled=True)),
        ({"thinking_budget": 7, "reasoning_format": "inline"}, Thinking(budget=7, inline=True)),
        ({"reasoning_format": "split"}, Thinking()),
        ({"chat_template_kwargs": {"enable_thinking": False}}, Thinking(enabled=False)),
    ],
)
def test_wishes_about_thinking_reach_the_call(fields: dict[str, object], thinking: Thinking) -> None:
    assert call(HELLO, **fields).thinking == thinking
