"""Errors and signs of life in both dialects."""

import json
from typing import get_args

import anthropic.types.shared as shared
import pytest
from anthropic.types.shared.error_type import ErrorType
from pydantic import TypeAdapter

from oxlo_local.errors import (
    BadRequest,
    InsufficientQuota,
    ModelNotFound,
    QueueFull,
    ServerError,
    TimedOut,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    every_error,
)
from oxlo_local.protocol.dialect import ANTHROPIC, OPENAI, anthropic_type, dialect_of


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (BadRequest, "invalid_request_error"),
        (UnsupportedMediaType, "invalid_request_error"),
        (Unauthorized, "authentication_error"),
        (ModelNotFound, "not_found_error"),
        (TooLarge, "request_too_large"),
        (QueueFull, "rate_limit_error"),
        (InsufficientQuota, "billing_error"),
        (ServerError, "api_error"),
        (Unavailable, "overloaded_error"),
        (TimedOut, "timeout_error"),
    ],
)
def test_an_error_has_the_type_that_anthropic_gives_its_kind(error: type[BadRequest], name: str) -> None:
    assert anthropic_type(error("x")) == name


def test_every_error_has_one_of_anthropics_types() -> None:
    types = {*get_args(ErrorType), "request_too_large"}  # the latter is in the API's description only
    assert {anthropic_type(error("x")) for error in every_error()} <= types


def test_our_code_and_the_clients_own_name_of_the_field_are_there() -> None:
    error = ANTHROPIC.error_object(BadRequest("no", param="thinking_budget"), "req_1")
    assert error == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "no",
            "param": "thinking.budget_tokens",
            "code": "invalid_value",
            "details": {"error_code": "invalid_value"},
        },
        "request_id": "req_1",
    }
    TypeAdapter(shared.ErrorResponse).validate_python(error)
    assert OPENAI.error_object(BadRequest("no"), "req_1").keys() == {"error"}


def test_events_are_named() -> None:
    name, data = ANTHROPIC.error_event(ServerError("x"), "req_1").decode().strip().split("\n")
    assert name == "event: error" and json.loads(data.removeprefix("data: "))["type"] == "error"
    assert ANTHROPIC.heartbeat == b'event: ping\ndata: {"type":"ping"}\n\n'
    assert OPENAI.error_event(ServerError("x"), "req_1").startswith(b'data: {"error":')


@pytest.mark.parametrize(
    ("path", "headers", "dialect"),
    [
        ("/v1/messages", {}, ANTHROPIC),
        ("/v1/messages/count_tokens", {}, ANTHROPIC),
        ("/v1/messages/batches", {}, ANTHROPIC),
        ("/v1/messagesque", {}, OPENAI),
        ("/v1/chat/completions", {"anthropic-version": "2023-06-01"}, OPENAI),
        ("/v1/models", {}, OPENAI),
        ("/v1/models", {"anthropic-version": "2023-06-01"}, ANTHROPIC),
        ("/v1/models/oxlo-demo", {"anthropic-version": "2023-06-01"}, ANTHROPIC),
    ],
)
def test_the_path_says_which_and_for_models_a_header(
    path: str, headers: dict[str, str], dialect: object
) -> None:
    assert dialect_of(path, headers) is dialect
