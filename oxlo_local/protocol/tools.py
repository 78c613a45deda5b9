"""What a chat request says of tools and of thinking: their wire types and rules, in the engine's words.

`functions` and `function_call` are what `tools` and `tool_choice` were called first. They are the same to the engine;
only the answer is put otherwise (`legacy`), and has one call at most, since the old form has room for no more.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from oxlo_local.calls import Thinking, Tool
from oxlo_local.errors import BadRequest, UnsupportedValue
from oxlo_local.protocol import parts
from oxlo_local.protocol.constraints import of_schema
from oxlo_local.protocol.schemas import check_size

NAME = r"^[a-zA-Z0-9_-]{1,64}\Z"  # `$` would let a line feed follow
MAX_TOOLS = 128
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class FunctionDefinition(Struct, frozen=True):
    """A function that the model may call."""

    name: Annotated[str, Meta(pattern=NAME)]
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class ToolDefinition(Struct, frozen=True):
    """A tool; all of ours are functions."""

    type: str
    function: FunctionDefinition | None = None


class Named(Struct, frozen=True):
    """A function by its name."""

    name: str


class AllowedTool(Struct, frozen=True):
    """One of the tools that may be called."""

    type: Literal["function"]
    function: Named


class Allowed(Struct, frozen=True):
    """Some of the tools, and whether one has to be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Meta(min_length=1)]


class Choice(Struct, frozen=True):
    """A tool that has to be called, or those that may be."""

    type: Literal["function", "allowed_tools"]
    function: Named | None = None
    allowed_tools: Allowed | None = None


class TemplateWishes(Struct, frozen=True, forbid_unknown_fields=True):
    """What may be said to the template directly, as vLLM has it."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    reasoning_effort: Effort | None = None
    thinking_budget: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None


class ToolRequest(parts.TextRequest, frozen=True, kw_only=True):
    """A text request with the fields about tools and thinking; None = not given."""

    tools: Annotated[list[ToolDefinition], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[FunctionDefinition], Meta(max_length=MAX_TOOLS)] | None = None
    function_call: Literal["none", "auto"] | Named | None = None
    reasoning_effort: Effort | None = None
    enable_thinking: bool | None = None
    thinking_budget: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    reasoning_format: Literal["split", "inline"] | None = None
    chat_template_kwargs: TemplateWishes | None = None

    @property
    def legacy(self) -> bool:
        """Whether the answer's calls are wanted in the old form."""
        return bool(self.functions)


class Offer(Struct, frozen=True):
    """The tools of a call, and whether one has to be called."""

    tools: list[Tool]
    choice: Literal["auto", "none", "required"]
    parallel: bool


def offer_of(request: ToolRequest) -> Offer:
    """What may be called. Raises BadRequest and its kinds, with the path of the field."""
    if request.tools and request.functions:
        raise BadRequest("'functions' is the old name of 'tools'; send one of them.", param="functions")
    functions, path, param = _functions(request)
    names = [function.name for function in functions]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise BadRequest(f"Two functions are named '{name}'.", param=path.format(place) + ".name")
    choice, wanted = _choice(request, param)
    if not functions:
        if choice == "required":
            raise BadRequest(f"'{param}' asks for a call, and there are no tools.", param=param)
        return Offer([], "auto", parallel=True)
    for name in wanted or ():
        if name not in names:
            raise BadRequest("No tool of this name is offered.", param=param)
    forced = choice == "required"
    tools = [
        tool_of(function, path.format(place) + ".parameters", forced=forced)
        for place, function in enumerate(functions)
        if wanted is None or function.name in wanted
    ]
    one = request.legacy or isinstance(request.tool_choice, Choice) and request.tool_choice.type == "function"
    return Offer(tools, choice, parallel=request.parallel_tool_calls is not False and not one)


def _functions(request: ToolRequest) -> tuple[list[FunctionDefinition], str, str]:
    """The functions, a pattern of their paths, and the field that chooses among them."""
    if request.functions:
        return request.functions, "functions[{}]", "function_call"
    functions = []
    for place, tool in enumerate(request.tools or ()):
        if tool.type != "function":
            raise UnsupportedValue(
                "Only tools of type 'function' are supported.", param=f"tools[{place}].type"
            )
        if tool.function is None:
            param = f"tools[{place}].function"
            raise BadRequest(f"Missing required parameter: '{param}'.", param=param)
        functions.append(tool.function)
    return functions, "tools[{}].function", "tool_choice"


def _choice(request: ToolRequest, param: str) -> tuple[Literal["auto", "none", "required"], list[str] | None]:
    """Whether a call is wanted, and of which functions; None = of any."""
    choice = request.function_call if param == "function_call" else request.tool_choice
    match choice:
        case None:
            return "auto", None
        case Named():
            return "required", [choice.name]
        case Choice(type="function", function=Named(name=name)):
            return "required", [name]
        case Choice(type="allowed_tools", allowed_tools=Allowed() as allowed):
            return allowed.mode, [each.function.name for each in allowed.tools]
        case Choice():
            raise BadRequest(f"'{param}' names no function.", param=param)
    return choice, None


def tool_of(function: FunctionDefinition, path: str, *, forced: bool) -> Tool:
    """A function in the engine's words; `path` is that of its schema. Raises BadRequest and UnsupportedValue."""
    schema = function.parameters or {"type": "object", "properties": {}}
    if forced or function.strict:
        text = of_schema(schema, path).text
    else:
        check_size(schema, path)
        try:
            text = msgspec.json.encode(schema).decode()
        except OverflowError:
            raise BadRequest("A number has more than 64 bits.", param=path) from None
    return Tool(function.name, text, function.description, strict=bool(function.strict))


def thinking_of(request: ToolRequest) -> Thinking:
    """What is wished of the model's thinking. Raises BadRequest where two fields differ."""
    wishes = request.chat_template_kwargs or TemplateWishes()

    def one(name: str, *values: object) -> object:
        given = {value for value in values if value is not None}
        if len(given) > 1:
            raise BadRequest(
                f"'{name}' and 'chat_template_kwargs' differ; send one of them.", param="chat_template_kwargs"
            )
        return given.pop() if given else None

    return msgspec.convert(
        {
            "effort": one("reasoning_effort", request.reasoning_effort, wishes.reasoning_effort),
            "enabled": one(
                "enable_thinking", request.enable_thinking, wishes.enable_thinking, wishes.thinking
            ),
            "budget": one("thinking_budget", request.thinking_budget, wishes.thinking_budget),
            "inline": request.reasoning_format == "inline",
        },
        Thinking,
    )


_TOOL = frozenset(field.name for field in msgspec.structs.fields(ToolDefinition))
_FUNCTION = frozenset(field.name for field in msgspec.structs.fields(FunctionDefinition))


def unknown_members(members: Mapping[str, object]) -> list[str]:
    """Paths of unknown members inside `tools` and `functions`, whose shapes are known to be right."""
    paths = []
    tools = members.get("tools")
    for place, tool in enumerate(tools if isinstance(tools, list) else ()):
        paths += [f"tools[{place}].{name}" for name in tool if name not in _TOOL]
        function = tool.get("function") or {}
        paths += [f"tools[{place}].function.{name}" for name in function if name not in _FUNCTION]
    functions = members.get("functions")
    for place, function in enumerate(functions if isinstance(functions, list) else ()):
        paths += [f"functions[{place}].{name}" for name in function if name not in _FUNCTION]
    return paths
