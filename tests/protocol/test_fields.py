import json

import msgspec
import pytest

from oxlo_local.errors import UnsupportedValue
from oxlo_local.protocol import chat, completions, embeddings, rerank, tokens
from oxlo_local.protocol.fields import (
    CHAT,
    COMPLETIONS,
    DETOKENIZE,
    EMBEDDINGS,
    RERANK,
    TOKENIZE,
    Field,
    refuse_unhonoured,
)

TABLES: dict[str, tuple[tuple[Field, ...], type[msgspec.Struct]]] = {
    "chat": (CHAT, chat.ChatRequest),
    "completions": (COMPLETIONS, completions.CompletionRequest),
    "embeddings": (EMBEDDINGS, embeddings.EmbeddingsRequest),
    "rerank": (RERANK, rerank.RerankRequest),
    "tokenize": (TOKENIZE, tokens.TokenizeRequest),
    "detokenize": (DETOKENIZE, tokens.DetokenizeRequest),
}
NEUTRAL = [
    (endpoint, field) for endpoint, (table, _) in TABLES.items() for field in table if field.fate == "neutral"
]
BODY: dict[str, dict[str, object]] = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    "completions": {"model": "m", "prompt": "x"},
    "rerank": {"model": "m", "query": "x", "documents": ["x"]},
}


def decode(endpoint: str, **fields: object) -> list[str]:
    body = json.dumps({**BODY[endpoint], **fields}).encode()
    if endpoint == "chat":
        return chat.decode(body, strict=True)[1]
    if endpoint == "rerank":
        return rerank.decode(body, strict=True)[1]
    return completions.decode(body, strict=True)[1]


@pytest.mark.parametrize("endpoint", TABLES)
def test_a_request_has_exactly_the_fields_that_are_read(endpoint: str) -> None:
    table, request = TABLES[endpoint]
    names = [field.name for field in table]
    assert len(names) == len(set(names))
    read = {field.name for field in table if field.fate != "neutral"}
    assert {field.name for field in msgspec.structs.fields(request)} == read


@pytest.mark.parametrize(("endpoint", "field"), NEUTRAL, ids=lambda each: getattr(each, "name", each))
def test_a_field_that_is_not_honoured_is_accepted_at_its_neutral_values_only(
    endpoint: str, field: Field
) -> None:
    for value in (None, *field.neutral):
        assert decode(endpoint, **{field.name: value}) == []
    for value in (
        0.5,
        "high",
        {"type": "json_object"},
        [{"type": "function"}],
        ["text", "audio"],
        {"x": [1]},
    ):
        with pytest.raises(UnsupportedValue) as caught:
            decode(endpoint, **{field.name: value})
        assert caught.value.param == field.name
        assert f"'{field.name}'" in caught.value.message and "null" in caught.value.message


def test_true_is_not_1_and_0_is_not_false() -> None:
    table = (Field("a", "neutral", "", (1,)), Field("b", "neutral", "", (False,)))
    refuse_unhonoured({"a": 1.0, "b": False}, table)
    for body in ({"a": True}, {"b": 0}):
        with pytest.raises(UnsupportedValue):
            refuse_unhonoured(body, table)
