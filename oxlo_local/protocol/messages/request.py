"""The requests of /v1/messages and of its count_tokens, and the call that they become.

`decode` does all that needs the request alone, so that whatever is wrong with it is said before a row is written;
`Asked.call` adds what depends on the model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from oxlo_local.calls import Constraint, ModelFacts, TextCall
from oxlo_local.errors import BadRequest, UnsupportedValue
from oxlo_local.protocol import parts
from oxlo_local.protocol.constraints import of_schema
from oxlo_local.protocol.fields import refuse_unhonoured
from oxlo_local.protocol.messages.blocks import KINDS, CacheControl, InputMessage, TextBlock
from oxlo_local.protocol.messages.conversation import Conversation, conversation_of, without_thoughts
from oxlo_local.protocol.messages.fields import MESSAGES
from oxlo_local.protocol.messages.thinking import Effort, ThinkingConfig, wish_of
from oxlo_local.protocol.messages.tools import MAX_TOOLS, ToolChoice, ToolDefinition, offer_of
from oxlo_local.protocol.tools import Offer

_KNOWN = frozenset(field.name for field in MESSAGES)
MAX_MESSAGES = 100_000


class JsonFormat(Struct, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that is valid against a schema."""

    schema: dict[str, object]


class OutputConfig(Struct, frozen=True):
    """How much effort, and in what form."""

    effort: Effort | None = None
    format: JsonFormat | None = None


class Turns(Struct, frozen=True, tag_field="type", tag="thinking_turns"):
    """So many of the assistant's last turns."""

    value: Annotated[int, Meta(ge=1)]


class AllTurns(Struct, frozen=True, tag_field="type", tag="all"):
    """Every turn."""


class ClearThinking(Struct, frozen=True, tag_field="type", tag="clear_thinking_20251015"):
    """Thoughts of older turns are dropped."""

    keep: Turns | AllTurns | Literal["all"] = Turns(1)


class ContextManagement(Struct, frozen=True):
    """What is dropped from a conversation."""

    edits: list[ClearThinking] = []


class Diagnostics(Struct, frozen=True):
    """Asks why a prefix was not found again."""

    previous_message_id: str | None = None


class CountRequest(Struct, frozen=True, kw_only=True):
    """What the model would be given; None = not given."""

    model: parts.ModelName
    messages: Annotated[list[InputMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[ToolDefinition], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    cache_control: CacheControl | None = None
    context_management: ContextManagement | None = None


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    """A request for an answer."""

    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str | None] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    diagnostics: Diagnostics | None = None

    @property
    def kept_metadata(self) -> dict[str, str] | None:
        """What the ledger's row keeps."""
        if self.metadata is None:
            return None
        return {name: value for name, value in self.metadata.items() if value is not None}

    @property
    def shows_thoughts(self) -> bool:
        """Whether the client wants to read what the model thinks."""
        return getattr(self.thinking, "display", None) != "omitted"


@dataclass(frozen=True)
class Asked:
    """A request that has been read: its conversation, tools and form, in the engine's words."""

    request: CountRequest
    told: Conversation
    offer: Offer
    constraint: Constraint | None

    def call(
        self, model_defaults: Mapping[str, float], facts: ModelFacts | None, id: str
    ) -> tuple[TextCall, list[str]]:
        """The call for a model with these sampling defaults, and what has no effect on it."""
        config = self.request.output_config or OutputConfig()
        thinking, warnings = wish_of(self.request.thinking, config.effort, facts)
        call = TextCall(
            id=id,
            messages=self.told.turns,
            pictures=self.told.pictures,
            constraint=self.constraint,
            tools=self.offer.tools,
            tool_choice=self.offer.choice,
            parallel_tool_calls=self.offer.parallel,
            thinking=thinking,
        )
        request = self.request
        if not isinstance(request, MessagesRequest):
            return call, warnings
        sampling = parts.TextRequest(
            model=request.model,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            repeat_penalty=request.repeat_penalty,
            seed=request.seed,
        )
        return replace(
            call,
            sampling=parts.sampling_of(sampling, model_defaults),
            max_tokens=request.max_tokens,
            stop=list(request.stop_sequences or ()),
            truncate=request.truncation == "auto",
        ), warnings


@dataclass(frozen=True)
class AskedMessage(Asked):
    """A request for an answer that has been read."""

    request: MessagesRequest


def decode(body: bytes, *, strict: bool) -> tuple[AskedMessage, list[str]]:
    """The request in `body`, and what has no effect. Raises BadRequest and its kinds."""
    members = parts.read_object(body)
    refuse_unhonoured(members, MESSAGES)
    _refuse_kinds(members)
    request = parts.convert(members, MessagesRequest)
    for index, stop in enumerate(request.stop_sequences or ()):
        if not stop:
            raise BadRequest("A stop sequence must not be empty.", param=f"stop_sequences[{index}]")
    parts.check_metadata(request.kept_metadata)
    told, offer, constraint = _read(request)
    return AskedMessage(request, told, offer, constraint), told.warnings + _warned(
        members, request, strict=strict
    )


def decode_count(body: bytes, *, strict: bool) -> tuple[Asked, list[str]]:
    """The request for a count in `body`, and what has no effect. Raises BadRequest and its kinds."""
    members = parts.read_object(body)
    refuse_unhonoured(members, MESSAGES)
    _refuse_kinds(members)
    request = parts.convert(members, CountRequest)
    told, offer, constraint = _read(request)
    known = {name: value for name, value in members.items() if name not in _KNOWN - _fields(CountRequest)}
    return Asked(request, told, offer, constraint), told.warnings + _warned(known, request, strict=strict)


def _read(request: CountRequest) -> tuple[Conversation, Offer, Constraint | None]:
    told = conversation_of(request.system, request.messages, parts.new_id("look"))
    for edit in request.context_management.edits if request.context_management else ():
        if isinstance(edit.keep, Turns):
            told.turns = without_thoughts(told.turns, edit.keep.value)
    offer = offer_of(request.tools or (), request.tool_choice, told.references)
    constraint = _constraint(request)
    if offer.choice == "required" and constraint is not None:
        raise BadRequest("A call that is required cannot be constrained otherwise.", param=constraint.param)
    return told, offer, constraint


def _constraint(request: CountRequest) -> Constraint | None:
    config = request.output_config or OutputConfig()
    if config.format is not None and request.output_format is not None:
        raise BadRequest("'output_format' is the old name of 'output_config.format'.", param="output_format")
    if config.format is not None:
        return of_schema(config.format.schema, "output_config.format.schema")
    if request.output_format is not None:
        return of_schema(request.output_format.schema, "output_format.schema")
    return None


# -- what is not known ------------------------------------------------------------------------------------------------


def _refuse_kinds(members: Mapping[str, object]) -> None:
    """Raise UnsupportedValue for a block whose type is not one of ours. The shapes may still be wrong."""
    messages = members.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        for place, block in enumerate(content if isinstance(content, list) else ()):
            kind = block.get("type") if isinstance(block, dict) else None
            if isinstance(kind, str) and kind not in KINDS:
                shown = kind[:64].encode("ascii", "backslashreplace").decode()
                raise UnsupportedValue(
                    f"Blocks of type '{shown}' are not supported: server tools, containers and the like do not "
                    "exist here.",
                    param=f"messages[{index}].content[{place}].type",
                )


def _fields(kind: type[Struct]) -> frozenset[str]:
    return frozenset(kind.__struct_fields__)


def _warned(members: Mapping[str, object], request: CountRequest, *, strict: bool) -> list[str]:
    names = parts.unknown_names(members, _KNOWN)
    return parts.warn_unknown([*names, *_unknown(members, request, "")], _KNOWN, strict=strict)


def _unknown(raw: object, read: object, path: str) -> Iterator[str]:
    """Paths of members below the top that were not read: what was sent beside what became of it."""
    if isinstance(read, list) and isinstance(raw, list):
        for place, (sent, became) in enumerate(zip(raw, read, strict=True)):
            yield from _unknown(sent, became, f"{path}[{place}]")
    elif isinstance(read, Struct) and isinstance(raw, dict):
        tag = read.__struct_config__.tag_field
        for name, value in raw.items():
            here = f"{path}.{name}" if path else name
            if name in read.__struct_fields__:
                yield from _unknown(value, getattr(read, name), here)
            elif path and name != tag:
                yield here
