"""How a family of routes words what all of its answers share: errors, and the sign of life in a silent stream.

OpenAI's is spoken everywhere but under /v1/messages, where Anthropic's clients ask, and where they ask for the models.
There, an error's `type` is one of
Anthropic's, our `code` and `param` stand beside it, and `details.error_code` says the code once more, where Anthropic's
SDKs look for it. Fields that are named otherwise than in the engine's refusals are given their own names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from oxlo_local.errors import (
    IdempotencyExpired,
    InsufficientQuota,
    NotFound,
    OxloError,
    ServerError,
    TimedOut,
    TooLarge,
    TooManyRequests,
    Unavailable,
)
from oxlo_local.protocol import parts

MESSAGES, MODELS = "/v1/messages", "/v1/models"

_TYPES: tuple[tuple[type[OxloError], str], ...] = (
    (NotFound, "not_found_error"),
    (TooLarge, "request_too_large"),
    (IdempotencyExpired, "conflict_error"),
    (InsufficientQuota, "billing_error"),
    (TooManyRequests, "rate_limit_error"),
    (Unavailable, "overloaded_error"),
    (TimedOut, "timeout_error"),
)
_PARAMS = {
    "stop": "stop_sequences",
    "enable_thinking": "thinking",
    "reasoning_effort": "output_config.effort",
    "thinking_budget": "thinking.budget_tokens",
}


@dataclass(frozen=True)
class Dialect:
    """`error_object` and `error_event` are given the error and the request's id."""

    name: str
    error_object: Callable[[OxloError, str], dict[str, object]]
    error_event: Callable[[OxloError, str], bytes]
    heartbeat: bytes


def anthropic_type(error: OxloError) -> str:
    """What Anthropic calls this kind of error."""
    found = next((name for kind, name in _TYPES if isinstance(error, kind)), None)
    return found or ("api_error" if error.type == ServerError.type else error.type)


def event(value: Mapping[str, object]) -> bytes:
    """A server-sent event that is named as its `type` says."""
    return b"event: %b\ndata: %b\n\n" % (str(value["type"]).encode(), msgspec.json.encode(value))


def _anthropic_error(error: OxloError, request_id: str) -> dict[str, object]:
    told = {
        "type": anthropic_type(error),
        "message": error.message,
        "param": None if error.param is None else _PARAMS.get(error.param, error.param),
        "code": error.code,
        "details": {"error_code": error.code},
    }
    return {"type": "error", "error": told, "request_id": request_id}


OPENAI = Dialect(
    "openai",
    error_object=lambda error, _: parts.error_object(error),
    error_event=lambda error, _: parts.error_event(error),
    heartbeat=b": ping\n\n",
)
ANTHROPIC = Dialect(
    "anthropic",
    error_object=_anthropic_error,
    error_event=lambda error, request_id: event(_anthropic_error(error, request_id)),
    heartbeat=event({"type": "ping"}),
)


def dialect_of(path: str, headers: Mapping[str, str]) -> Dialect:
    """The dialect of a request, whether or not there is such a route: of its path, and of the list of models as its
    client's header says, since both have it in one place."""
    if _within(path, MESSAGES) or (_within(path, MODELS) and "anthropic-version" in headers):
        return ANTHROPIC
    return OPENAI


def _within(path: str, route: str) -> bool:
    return path == route or path.startswith(route + "/")
