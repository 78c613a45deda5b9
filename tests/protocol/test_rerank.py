import json

import pytest

from oxlo_local.calls import Done, RerankCall, Score, Usage
from oxlo_local.errors import UnknownParameter
from oxlo_local.protocol.rerank import Answer, RerankRequest, decode, to_call


def request(**fields: object) -> RerankRequest:
    body = {"model": "m", "query": "q", "documents": ["a", {"text": "b"}, "c"], **fields}
    return decode(json.dumps(body).encode(), strict=True)[0]


def answer(asked: RerankRequest, *scores: float) -> list[dict[str, object]]:
    rendering = Answer(asked, "id", "the-model")
    for index, score in enumerate(scores):
        assert rendering.add(Score("i", index, score)) == b""
    body = json.loads(rendering.add(Done("i", Usage(prompt_tokens=9))))
    assert body["usage"] == {"prompt_tokens": 9, "total_tokens": 9} and body["object"] == "list"
    results = body["results"]
    assert isinstance(results, list)
    return results


def test_documents_are_texts_or_objects() -> None:
    assert to_call(request(), "i") == RerankCall("i", "q", ["a", "b", "c"])


def test_the_best_first_and_equal_ones_as_given() -> None:
    assert [each["index"] for each in answer(request(), 0.5, 0.9, 0.5)] == [1, 0, 2]


def test_top_n_and_texts() -> None:
    results = answer(request(top_n=1, return_documents=True), 0.5, 0.9, 0.5)
    assert results == [{"index": 1, "relevance_score": 0.9, "document": {"text": "b"}}]


def test_strict_looks_into_documents_too() -> None:
    with pytest.raises(UnknownParameter) as caught:
        request(documents=[{"text": "a", "title": "t"}])
    assert caught.value.param == "documents[0].title"
