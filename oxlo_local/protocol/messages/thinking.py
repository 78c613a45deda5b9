"""Thinking in Anthropic's form: what a request wishes of it, and the signatures of thinking blocks.

`enabled` lets a model think up to a budget and `adaptive` as it likes; a model that never thinks keeps to both. So a
wish that this model's template has no word for is a warning and no refusal, or coding agents, which send one with every
request, could use few models. `disabled` is a promise, and is refused where it cannot be kept.

Anthropic signs thoughts to know its own when they come back. Here nothing hangs on where a thought comes from, so that
any signature is taken. Those given out are a digest, because clients drop blocks without one; where the client does not
want to see the thought (`display: "omitted"`), the signature carries it, and it is there again in the next turn.
"""

from base64 import b64decode, b64encode
from binascii import Error
from hashlib import sha256
from typing import Annotated, Literal

from msgspec import Meta, Struct

from oxlo_local.calls import ModelFacts, Thinking
from oxlo_local.errors import BadRequest
from oxlo_local.protocol.messages.blocks import ThinkingBlock

Display = Literal["summarized", "omitted"]
Effort = Literal["low", "medium", "high", "xhigh", "max"]
SEALED = "oxlo-thought:"


class EnabledThinking(Struct, frozen=True, tag_field="type", tag="enabled"):
    """The model may think, with so many tokens."""

    budget_tokens: Annotated[int, Meta(ge=1024, le=2**31 - 1)]
    display: Display | None = None


class AdaptiveThinking(Struct, frozen=True, tag_field="type", tag="adaptive"):
    """The model may think as it likes."""

    display: Display | None = None


class DisabledThinking(Struct, frozen=True, tag_field="type", tag="disabled"):
    """The model must not think."""


ThinkingConfig = EnabledThinking | AdaptiveThinking | DisabledThinking


def wish_of(
    config: ThinkingConfig | None, effort: Effort | None, facts: ModelFacts | None
) -> tuple[Thinking, list[str]]:
    """What the engine is to do, and a warning for each wish that has no effect on this model.

    `facts` are None where the model does not run: then nothing comes of the request anyway.
    """
    knows = frozenset(facts.thinking_knows if facts is not None else ())
    thinks = facts is not None and facts.thinks
    off = isinstance(config, DisabledThinking)
    may_think = config is not None and not off
    enabled = False if off else (may_think and bool(knows & {"enable_thinking", "thinking"})) or None
    budget = config.budget_tokens if isinstance(config, EnabledThinking) else None
    warnings = []
    if budget is not None and not thinks:
        warnings.append("thinking has no effect: this model does not think")
    if effort is not None and (off or "reasoning_effort" not in knows):
        why = "thinking is disabled" if off else "this model's template knows no effort"
        warnings.append(f"output_config.effort has no effect: {why}")
        effort = None
    wish = Thinking(
        effort=effort,
        enabled=enabled,
        budget=budget if thinks else None,
    )
    return wish, warnings


def signature_of(thought: str, *, shown: bool) -> str:
    """The signature of a thinking block; that of one whose text is not shown carries the text."""
    data = thought.encode()
    return b64encode(sha256(data).digest()).decode() if shown else SEALED + b64encode(data).decode()


def thought_of(block: ThinkingBlock, path: str) -> str:
    """The text of a thinking block that came back. Raises BadRequest for one of ours that has been tampered with."""
    signature = block.signature or ""
    if block.thinking or not signature.startswith(SEALED):
        return block.thinking
    try:
        return b64decode(signature.removeprefix(SEALED), validate=True).decode()
    except (Error, UnicodeDecodeError, ValueError):
        raise BadRequest("This signature is not as it was given out.", param=f"{path}.signature") from None
