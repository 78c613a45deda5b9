"""The error tree: codes that come back as what they were, and the drawing at the top of the file."""

import re

import pytest

from oxlo_local import errors
from oxlo_local.errors import OxloError, ServerError, every_error, from_code

CLASSES = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, OxloError)
]


# Drawn by their parents' status alone.
LEAVES_NOT_DRAWN = {
    "IdempotencyConflict",
    "UnsupportedValue",
    "UndecodableFile",
    "UnknownParameter",
    "ContextLengthExceeded",
    "ModelNotAllowed",
    "AdminRequired",
    "HostNotAllowed",
    "ModelNotFound",
    "Cancelled",
}


@pytest.mark.parametrize("cls", every_error())
def test_a_code_that_crossed_a_process_is_its_class_again(cls: type[OxloError]) -> None:
    back = from_code(cls.code, "what to do", param="messages[0]")
    assert type(back) is (ServerError if cls is OxloError else cls)
    assert (back.message, back.param, back.code) == ("what to do", "messages[0]", cls.code)


def test_an_unknown_code_is_a_server_error_that_names_it() -> None:
    back = from_code("gremlins", "it broke")
    assert type(back) is ServerError and "gremlins" in back.message


def test_no_class_is_missing_from_the_drawing() -> None:
    drawn = set(re.findall(r"[A-Z]\w+", (errors.__doc__ or "").partition("\n\n    OxloError")[2]))
    assert {cls.__name__ for cls in CLASSES} - drawn - {"OxloError"} <= LEAVES_NOT_DRAWN


@pytest.mark.parametrize("cls", CLASSES)
def test_what_a_retry_can_cure_is_a_busy_or_a_failing_server(cls: type[OxloError]) -> None:
    assert not cls.retryable or cls.status == 429 or cls.status >= 500
    assert cls.status not in (402, 422)
    assert cls.code and re.fullmatch(r"[a-z_]+", cls.code) and re.fullmatch(r"[a-z_]+", cls.type)
