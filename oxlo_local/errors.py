"""The error tree: every way a request can fail, with its HTTP status, type, code and whether a retry helps.

Anything in the program raises one of these; exactly one place (`api/app.py`) turns them into responses, and a worker's
`Failed` event carries the `code`, which `from_code` turns back into the exception. Imports nothing of ours.

    OxloError
    ├── BadRequest 400          ├── TooManyRequests 429       ├── ServerError 500
    ├── Unauthorized 401        │   ├── InsufficientQuota     │   └── WorkerLost
    ├── Forbidden 403           │   ├── RateLimitExceeded     ├── Unavailable 503
    ├── NotFound 404            │   └── QueueFull             │   ├── ModelNotLoaded, ModelDoesNotFit
    ├── MethodNotAllowed 405    ├── TooLarge 413              │   └── ShuttingDown, LedgerUnavailable
    ├── IdempotencyExpired 409  └── UnsupportedMediaType 415  └── TimedOut 504
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal


class OxloError(Exception):
    """A failure with a place in the one error shape `{"error": {message, type, param, code}}`.

    `message` says what to do about it. `param` is the path of the offending field (`messages[0].role`).
    `retry_after` is in seconds and only meaningful where `retryable` is true.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class BadRequest(OxloError):
    """The request is malformed; the client has to change it."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class UnsupportedValue(BadRequest):
    """A known field at a value that this server does not honour."""

    code = "unsupported_value"


class IdempotencyConflict(BadRequest):
    """This Idempotency-Key has been used for another body."""

    code = "idempotency_conflict"


class UnknownParameter(BadRequest):
    """An unknown field, under `strict = true`."""

    code = "unknown_parameter"


class ContextLengthExceeded(BadRequest):
    """Prompt (plus the output asked for) is longer than the model's context per sequence."""

    code = "context_length_exceeded"


class UndecodableFile(BadRequest):
    """A file that was sent cannot be read; the message names the stream in it, and what is wrong with that."""

    code = "undecodable_file"


class Unauthorized(OxloError):
    """No key, or one that is unknown, revoked or expired."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(OxloError):
    """A valid caller who may not do this."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class ModelNotAllowed(Forbidden):
    """The key does not cover this model or endpoint."""

    code = "model_not_allowed"


class AdminRequired(Forbidden):
    """The route needs an admin key."""

    code = "admin_required"


class HostNotAllowed(Forbidden):
    """A Host or Origin through which a web page could reach a keyless loopback server."""

    code = "origin_not_allowed"


class NotFound(OxloError):
    """No such route or object."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    """No such model; the message names the nearest ones, or the `oxlo pull` that fetches it."""

    code = "model_not_found"


class MethodNotAllowed(OxloError):
    """The route exists, with another method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class IdempotencyExpired(OxloError):
    """Answered and charged before, under this Idempotency-Key, and the answer is not kept; it is not run again."""

    status = 409
    type = "invalid_request_error"
    code = "idempotency_expired"


class TooLarge(OxloError):
    """The body is over its limit; it was not read into memory."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class UnsupportedMediaType(OxloError):
    """The Content-Type is not the endpoint's own."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


@dataclass(frozen=True)
class Standing:
    """How far one limit of a key is used: requests, or micro-dollars where `kind` is "budget".

    `reset` is in seconds, until the limit is whole again; None where no time brings that (requests at once, a budget
    in total).
    """

    kind: Literal["budget", "daily", "rate", "concurrency"]
    limit: int
    remaining: int
    reset: float | None


class TooManyRequests(OxloError):
    """More requests a minute, or at once, than the key may make.

    `standings` are the limits of the key, where it has any, and `price_micros` is what the request would have cost.
    """

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        standings: Sequence[Standing] = (),
        price_micros: int = 0,
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after)
        self.standings = tuple(standings)
        self.price_micros = price_micros


class RateLimitExceeded(TooManyRequests):
    """More requests a minute, or at once, than the key may make."""


class QueueFull(TooManyRequests):
    """The server's one bounded queue is full; `retry_after` estimates when a place is free."""

    code = "queue_full"


class InsufficientQuota(TooManyRequests):
    """Budget or daily limit used up: no retry cures it."""

    type = "insufficient_quota"
    code = "insufficient_quota"
    retryable = False


class ServerError(OxloError):
    """A fault of ours; the request was refunded."""

    retryable = True


class WorkerLost(ServerError):
    """The model's process died while it held the request."""

    code = "worker_lost"


class Unavailable(OxloError):
    """The server cannot take the request now."""

    status = 503
    code = "overloaded"
    retryable = True


class LedgerUnavailable(Unavailable):
    """The ledger cannot write (locked, full or read-only disk); nothing is served unmetered."""

    code = "ledger_unavailable"


class ShuttingDown(Unavailable):
    """The server is draining after SIGTERM."""

    code = "shutting_down"


class ModelNotLoaded(Unavailable):
    """The model is here but not running; the message names the command that loads it."""

    code = "model_not_loaded"
    retryable = False


class ModelDoesNotFit(Unavailable):
    """The model cannot fit this machine; the message shows the arithmetic."""

    code = "model_does_not_fit"
    retryable = False


class TimedOut(OxloError):
    """The request took longer than it may."""

    status = 504
    code = "timeout"
    retryable = True


class Cancelled(OxloError):
    """The client left; it is logged as 499 and answered to nobody."""

    status = 499
    code = "cancelled"


def every_error() -> list[type[OxloError]]:
    """All classes of the tree that have a code of their own, parents first; the README's table is held against it."""
    found: list[type[OxloError]] = []
    queue: list[type[OxloError]] = [OxloError]
    while queue:
        cls = queue.pop(0)
        if cls.code not in {seen.code for seen in found}:
            found.append(cls)
        queue.extend(cls.__subclasses__())
    return found


def from_code(code: str, message: str, *, param: str | None = None) -> OxloError:
    """The exception for a code that crossed a process boundary; an unknown code is a ServerError."""
    if code == OxloError.code:
        return ServerError(message, param=param)
    for cls in every_error():
        if cls.code == code:
            return cls(message, param=param)
    return ServerError(f"{message} (code {code})", param=param)
