"""/v1/rerank over a real server: Cohere's and Jina's shape, bad requests, rows."""

import httpx
import pytest

from tests.conftest import RunningServer

DOCUMENTS = ["a cat", {"text": "two dogs ran"}, "rain", "a cat"]


def post(server: RunningServer, **fields: object) -> httpx.Response:
    body = {"model": "rank", "query": "which animal?", "documents": DOCUMENTS, **fields}
    return httpx.post(f"{server.base_url}/rerank", json=body, timeout=30)


def test_documents_come_back_the_best_first(vectors: RunningServer) -> None:
    answer = post(vectors).json()
    scores = [result["relevance_score"] for result in answer["results"]]
    assert sorted(scores, reverse=True) == scores and all(0 < score < 1 for score in scores)
    assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2, 3]
    assert all(set(result) == {"index", "relevance_score"} for result in answer["results"])
    assert (
        answer["model"] == "rank" and answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
    )


def test_equal_documents_have_equal_scores_whatever_their_company(vectors: RunningServer) -> None:
    by_index = {each["index"]: each["relevance_score"] for each in post(vectors).json()["results"]}
    assert by_index[0] == pytest.approx(by_index[3], abs=1e-5)
    alone = post(vectors, documents=["rain"]).json()["results"][0]["relevance_score"]
    assert alone == pytest.approx(by_index[2], abs=1e-4) and alone != pytest.approx(by_index[1], abs=1e-4)


def test_so_many_of_the_best_with_their_texts(vectors: RunningServer) -> None:
    whole = post(vectors).json()["results"]
    best = post(vectors, top_n=2, return_documents=True).json()["results"]
    assert [each["index"] for each in best] == [each["index"] for each in whole[:2]]
    texts = ["a cat", "two dogs ran", "rain", "a cat"]
    assert all(each["document"] == {"text": texts[each["index"]]} for each in best)
    assert len(post(vectors, top_n=99).json()["results"]) == 4


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"query": {"text": "x"}}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "x"}, "documents"),
        ({"documents": ["x"] * 2049}, "documents"),
        ({"documents": ["x", 5]}, "documents[1]"),
        ({"documents": ["x", {"title": "x"}]}, "documents[1].text"),
        ({"top_n": 0}, "top_n"),
        ({"return_documents": "yes"}, "return_documents"),
        ({"truncation": True}, "truncation"),
        ({"max_tokens_per_doc": 100}, "max_tokens_per_doc"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"documents": ["x", "a b " * 130]}, "documents[1]"),
        ({"query": "a b " * 130}, "query"),
        ({"query": "a b " * 70, "documents": ["a b " * 70]}, "documents[0]"),
    ],
)
def test_a_malformed_request_is_told_so(
    vectors: RunningServer, fields: dict[str, object], param: str
) -> None:
    answer = post(vectors, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")


def test_a_list_is_one_unit(vectors: RunningServer) -> None:
    answer = post(vectors, title="x", documents=[{"text": "a", "page": 3}])
    warned = answer.headers["x-oxlo-warnings"]
    assert "title" in warned and "documents[0].page" in warned
    row = next(row for row in vectors.rows() if row["id"] == answer.headers["x-oxlo-entry"])
    assert (row["endpoint"], row["model"], row["units"], row["status"]) == (
        "/v1/rerank",
        "rank",
        1,
        "settled",
    )
