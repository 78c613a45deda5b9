import pytest

from oxlo_local.errors import BadRequest
from oxlo_local.protocol.audio.languages import NAMES, code_of, name_of


@pytest.mark.parametrize(
    ("given", "code"),
    [("en", "en"), (" EN ", "en"), ("English", "en"), ("auto", None), ("jv", "jw"), ("haitian creole", "ht")],
)
def test_codes_and_names_are_taken(given: str, code: str | None) -> None:
    assert code_of(given, "language") == code


@pytest.mark.parametrize(
    ("given", "hint"), [("germn", "'german'"), ("en-US", "'en'"), ("xx", None), ("x" * 5000, None)]
)
def test_others_are_refused_with_the_nearest(given: str, hint: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        code_of(given, "language")
    assert caught.value.param == "language" and len(caught.value.message) < 400
    assert (f"Did you mean {hint}" in caught.value.message) if hint else ("mean" not in caught.value.message)


def test_they_are_those_that_the_engine_knows() -> None:
    tokenizer = pytest.importorskip("faster_whisper.tokenizer", reason="the speech engine is not installed")
    assert set(NAMES) == set(tokenizer._LANGUAGE_CODES)
    assert len(set(NAMES.values())) == len(NAMES) and name_of("de") == "german" and name_of("qq") == "qq"
