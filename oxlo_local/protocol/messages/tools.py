"""What Anthropic's requests say of tools, as what a chat says of functions.

Only tools that the client itself runs, and whose arguments it describes. A deferred one is kept from the model until a
`tool_reference` in the conversation names it.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from oxlo_local.errors import BadRequest, UnsupportedValue
from oxlo_local.protocol.messages.blocks import CacheControl
from oxlo_local.protocol.tools import FunctionDefinition, Offer, tool_of

NAME = r"^[a-zA-Z0-9_-]{1,128}\Z"  # `$` would let a line feed follow
MAX_TOOLS = 512


class ToolDefinition(Struct, frozen=True):
    """A tool. Those of Anthropic's own types have no `input_schema`."""

    name: Annotated[str, Meta(pattern=NAME)]
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, object] | None = None
    cache_control: CacheControl | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    input_examples: list[dict[str, object]] | None = None
    eager_input_streaming: bool | None = None
    allowed_callers: list[str] | None = None


class Auto(Struct, frozen=True, tag_field="type", tag="auto"):
    """The model decides."""

    disable_parallel_tool_use: bool | None = None


class AnyTool(Struct, frozen=True, tag_field="type", tag="any"):
    """Some tool is called."""

    disable_parallel_tool_use: bool | None = None


class One(Struct, frozen=True, tag_field="type", tag="tool"):
    """This tool is called."""

    name: str
    disable_parallel_tool_use: bool | None = None


class Nothing(Struct, frozen=True, tag_field="type", tag="none"):
    """No tool is called."""


ToolChoice = Auto | AnyTool | One | Nothing


def offer_of(tools: Sequence[ToolDefinition], choice: ToolChoice | None, references: set[str]) -> Offer:
    """What may be called. Raises BadRequest and its kinds, with the path of the field."""
    seen: set[str] = set()
    for place, tool in enumerate(tools):
        _check(tool, f"tools[{place}]")
        if tool.name in seen:
            raise BadRequest(f"Two tools are named '{tool.name}'.", param=f"tools[{place}].name")
        seen.add(tool.name)
    forced = isinstance(choice, AnyTool | One)
    offered = [
        tool_of(_function(tool), f"tools[{place}].input_schema", forced=forced)
        for place, tool in enumerate(tools)
        if (not tool.defer_loading or tool.name in references)
        and (not isinstance(choice, One) or tool.name == choice.name)
    ]
    if forced and not offered:
        what = (
            "No tool of this name is offered." if isinstance(choice, One) else "There are no tools to call."
        )
        raise BadRequest(what, param="tool_choice.name" if isinstance(choice, One) else "tool_choice")
    if not offered:
        return Offer([], "auto", parallel=True)
    one = isinstance(choice, One) or (
        isinstance(choice, Auto | AnyTool) and bool(choice.disable_parallel_tool_use)
    )
    wanted: Literal["auto", "none", "required"] = "required" if forced else "auto"
    return Offer(offered, "none" if isinstance(choice, Nothing) else wanted, parallel=not one)


def _check(tool: ToolDefinition, path: str) -> None:
    if tool.type not in (None, "custom"):
        kind = tool.type[:64].encode("ascii", "backslashreplace").decode()
        raise UnsupportedValue(
            f"Tools of type '{kind}' are Anthropic's own; send a tool of type 'custom' with an 'input_schema', "
            "and run it yourself.",
            param=f"{path}.type",
        )
    if tool.input_schema is None:
        raise BadRequest(f"Missing required parameter: '{path}.input_schema'.", param=f"{path}.input_schema")
    if tool.allowed_callers is not None and "direct" not in tool.allowed_callers:
        raise UnsupportedValue(
            "Only the model calls tools here; leave it out, or name 'direct'.",
            param=f"{path}.allowed_callers",
        )


def _function(tool: ToolDefinition) -> FunctionDefinition:
    about = tool.description
    if tool.input_examples:
        examples = [msgspec.json.encode(example).decode() for example in tool.input_examples]
        about = "\n".join([*([about] if about else []), "Examples of its input:", *examples])
    return FunctionDefinition(tool.name, about, tool.input_schema, tool.strict)
