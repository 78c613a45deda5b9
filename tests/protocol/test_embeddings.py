import json
from base64 import b64decode
from struct import pack

import pytest

from oxlo_local.calls import Done, EmbedCall, Event, Started, Usage, Vector
from oxlo_local.errors import BadRequest, UnsupportedValue
from oxlo_local.protocol.embeddings import Answer, EmbeddingsRequest, decode, encoded, inputs_of, to_call


def request(**fields: object) -> EmbeddingsRequest:
    return decode(json.dumps({"model": "m", "input": "x", **fields}).encode(), strict=True)[0]


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["x"] * 2048, ["x"] * 2048),
    ],
)
def test_the_four_forms_of_input(given: object, inputs: list[object]) -> None:
    assert inputs_of(request(input=given)) == inputs


def test_dimensions_are_what_the_model_has_or_was_trained_for() -> None:
    assert to_call(request(), "i", width=None, shortens=False) == EmbedCall("i", ["x"])
    assert to_call(request(dimensions=8), "i", width=8, shortens=False).dimensions == 8
    assert to_call(request(dimensions=4), "i", width=8, shortens=True).dimensions == 4
    assert to_call(request(dimensions=4), "i", width=None, shortens=True).dimensions == 4
    with pytest.raises(UnsupportedValue, match="8 dimensions"):
        to_call(request(dimensions=4), "i", width=8, shortens=False)
    with pytest.raises(BadRequest, match="'dimensions' is 9, and this model has 8"):
        to_call(request(dimensions=9), "i", width=8, shortens=True)


def test_the_answer_is_in_order_whatever_came_first() -> None:
    answer = Answer(request(), "the-model")
    vectors = [Vector("i", index, pack("<2f", index, 0.1)) for index in (1, 0)]
    before: list[Event] = [Started("i", 5, 0), *vectors]
    assert all(answer.add(event) == b"" for event in before)
    body = json.loads(answer.add(Done("i", Usage(prompt_tokens=5))))
    assert body["model"] == "the-model" and body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert [(item["index"], item["embedding"][0]) for item in body["data"]] == [(0, 0), (1, 1)]


def test_a_number_is_written_so_that_it_is_read_as_the_same_float32() -> None:
    data = pack("<3f", 0.1, -1e-30, 3)
    assert pack("<3f", *json.loads(encoded(data, base64=False))) == data
    assert b64decode(json.loads(encoded(data, base64=True))) == data


def test_strict_refuses_what_it_does_not_know() -> None:
    body = json.dumps({"model": "m", "input": "x", "dimension": 4}).encode()
    assert decode(body, strict=False)[1] == ['unknown field "dimension" has no effect']
    with pytest.raises(BadRequest, match="dimensions"):
        decode(body, strict=True)
