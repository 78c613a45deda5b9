import json

import pytest

from oxlo_local.calls import DetokenizeCall, Text, TokenizeCall, Tokens
from oxlo_local.errors import BadRequest, UnknownParameter
from oxlo_local.protocol.tokens import (
    decode_detokenize,
    decode_tokenize,
    detokenize_call,
    text_answer,
    tokenize_call,
    tokens_answer,
    with_model,
)


def test_defaults_are_llama_servers() -> None:
    asked, _ = decode_tokenize(b'{"content": "x"}', strict=True)
    assert tokenize_call(asked, "i") == TokenizeCall("i", "x", add_special=False, parse_special=True)
    asked, _ = decode_tokenize(b'{"content": "x", "add_special": true, "parse_special": false}', strict=True)
    assert tokenize_call(asked, "i") == TokenizeCall("i", "x", add_special=True, parse_special=False)
    back, _ = decode_detokenize(b'{"tokens": [1, 2]}', strict=True)
    assert detokenize_call(back, "i") == DetokenizeCall("i", [1, 2])


def test_strict_refuses_what_it_does_not_know() -> None:
    for decode in (decode_tokenize, decode_detokenize):
        with pytest.raises(UnknownParameter):
            decode(b'{"content": "x", "tokens": [], "pieces": true}', strict=True)


def test_answers() -> None:
    event = Tokens("i", [5, 6], [b"a", b"\xc3"])
    assert json.loads(tokens_answer(event, with_pieces=False)) == {"tokens": [5, 6]}
    assert json.loads(tokens_answer(event, with_pieces=True)) == {
        "tokens": [{"id": 5, "piece": "a"}, {"id": 6, "piece": [0xC3]}]
    }
    assert json.loads(text_answer(Text("i", 0, "x", 0), "prompt")) == {"prompt": "x"}


def test_a_model_is_named_where_none_is() -> None:
    assert json.loads(with_model(b' {"a": 1} ', "m")) == {"model": "m", "a": 1}
    for body in (b'{"model": "x"}', b"{}"):
        assert with_model(body, "m") == body
    assert with_model(b'{"a": 1}', "") == b'{"a": 1}'
    with pytest.raises(BadRequest):
        with_model(b"[1]", "m")
