"""/v1/chat/completions on the wire: the request, and the call that it becomes. Its answers are in `rendering`."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from oxlo_local.calls import ModelFacts, TextCall
from oxlo_local.errors import BadRequest, UnsupportedValue
from oxlo_local.protocol import parts, pictures, tools, turns
from oxlo_local.protocol.constraints import constraint_of, unknown_members
from oxlo_local.protocol.fields import CHAT, refuse_unhonoured
from oxlo_local.protocol.rendering import Answer, Chunks
from oxlo_local.protocol.turns import ChatMessage

_KNOWN = frozenset(field.name for field in CHAT)
_STREAM_FIELDS = frozenset(field.name for field in msgspec.structs.fields(parts.StreamOptions))
_NO_PREDICTION = 'field "prediction" has no effect: this model does not speculate'

Tier = Literal["priority", "standard", "batch"]
# What OpenAI calls the tiers of keys. Its others (scale, fast) are bought apart, and there is nothing like them here.
TIERS: Final[dict[str, Tier]] = {"priority": "priority", "default": "standard", "flex": "batch"}


class Prediction(Struct, frozen=True):
    """What the client thinks that the answer will be."""

    type: Literal["content"]
    content: str | Annotated[list[turns.Part], Meta(min_length=1)]


class ChatRequest(tools.ToolRequest, frozen=True, kw_only=True):
    """A chat request whose fields have the right types and ranges."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    safety_identifier: Annotated[str, Meta(max_length=64)] | None = None
    prompt_cache_key: str | None = None
    prediction: Prediction | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    @property
    def tier(self) -> Tier | None:
        """The tier that is asked for; None = the key's own."""
        return TIERS.get(self.service_tier or "auto")


def tier_name(tier: Tier) -> str:
    """What OpenAI calls a tier."""
    return next(name for name, ours in TIERS.items() if ours == tier)


def decode(body: bytes, *, strict: bool, max_n: int = 128) -> tuple[ChatRequest, list[str]]:
    """The request in `body` and one warning for each field without effect. Raises BadRequest and its kinds."""
    members = parts.read_object(body)
    refuse_unhonoured(members, CHAT)
    request = parts.convert(members, ChatRequest)
    parts.check_text_request(request, max_n=max_n)
    parts.one_of(request.max_tokens, request.max_completion_tokens, "max_tokens", "max_completion_tokens")
    if request.top_logprobs and not request.logprobs:
        raise BadRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    if request.service_tier in ("scale", "fast"):
        raise UnsupportedValue(
            f"There is no tier '{request.service_tier}' here; send auto, {', '.join(TIERS)}.",
            param="service_tier",
        )
    turns.turns_of(request.messages)
    pictures.pictures_of(request.messages, "")
    continues(request)
    offer = tools.offer_of(request)
    tools.thinking_of(request)
    if offer.choice == "required" and (constraint := constraint_of(request)) is not None:
        raise BadRequest("A call that is required cannot be constrained otherwise.", param=constraint.param)
    warnings = parts.warn_unknown(_unknown(members), _KNOWN, strict=strict)
    if request.prediction is not None:
        _check_prediction(request.prediction)
    return request, warnings


def _check_prediction(prediction: Prediction) -> None:
    parts_of_it = prediction.content if isinstance(prediction.content, list) else ()
    for place, part in enumerate(parts_of_it):
        if part.type != "text" or part.text is None:
            raise BadRequest(
                "A prediction is text: a string, or parts of type 'text'.",
                param=f"prediction.content[{place}]",
            )


def _predicted(prediction: Prediction | None) -> str:
    content = "" if prediction is None else prediction.content
    return content if isinstance(content, str) else "".join(part.text or "" for part in content)


def in_vain(request: ChatRequest, facts: ModelFacts | None) -> list[str]:
    """What has no effect on the model of these `facts` (None: it is not loaded), as warnings."""
    speculates = facts is None or (facts.options is not None and facts.options.speculation != "none")
    return [_NO_PREDICTION] if request.prediction is not None and not speculates else []


def continues(request: ChatRequest) -> bool:
    """Whether the answer goes on where the last message, an assistant's, ends. Raises BadRequest where none does."""
    added = request.add_generation_prompt
    asked = request.continue_final_message
    if asked is not None and added is asked:
        raise BadRequest(
            "'continue_final_message' and 'add_generation_prompt' are opposites; send one of them.",
            param="add_generation_prompt",
        )
    if asked is None and added is not None:
        asked = not added
    is_last = request.messages[-1].role == "assistant"
    if asked and not is_last:
        raise BadRequest(
            "Only an assistant's message can be continued, and the last one is none.",
            param="add_generation_prompt"
            if request.continue_final_message is None
            else "continue_final_message",
        )
    return is_last if asked is None else asked


def _unknown(members: Mapping[str, object]) -> list[str]:
    """Paths of unknown members, also inside messages, tools and stream options. The shapes are known to be right."""
    paths = parts.unknown_names(members, _KNOWN)
    options = members.get("stream_options")
    if isinstance(options, dict):
        paths += parts.unknown_names(options, _STREAM_FIELDS, "stream_options.")
    paths += unknown_members(members)
    paths += tools.unknown_members(members)
    messages = members.get("messages")
    return paths + turns.unknown_members(messages if isinstance(messages, list) else [])


def to_call(request: ChatRequest, model_defaults: Mapping[str, float], id: str) -> TextCall:
    """The request in the engine's words. `model_defaults` are the model's own sampling values."""
    offer = tools.offer_of(request)
    return TextCall(
        id=id,
        messages=turns.turns_of(request.messages, id),
        pictures=pictures.pictures_of(request.messages, id),
        new_turn=request.messages[-1].role == "assistant" and not continues(request),
        sampling=parts.sampling_of(request, model_defaults),
        max_tokens=parts.one_of(
            request.max_tokens, request.max_completion_tokens, "max_tokens", "max_completion_tokens"
        ),
        stop=parts.stop_strings(request),
        n=request.choices_each,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        truncate=request.truncation == "auto",
        constraint=constraint_of(request),
        tools=offer.tools,
        tool_choice=offer.choice,
        parallel_tool_calls=offer.parallel,
        thinking=tools.thinking_of(request),
        prediction=_predicted(request.prediction),
    )


def renderer(request: ChatRequest, head: parts.Head) -> parts.Renderer:
    """What turns the events of `request` into the bytes that its client asked for."""
    if request.stream:
        return Chunks(
            head, logprobs=bool(request.logprobs), include_usage=request.include_usage, legacy=request.legacy
        )
    return Answer(head, choices=request.choices_each, logprobs=bool(request.logprobs), legacy=request.legacy)
