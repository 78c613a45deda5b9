"""The engine against plain numpy, and what it does with many requests at once and with bad ones."""

from pathlib import Path

import numpy as np
import pytest

from oxlo_local.calls import (
    DetokenizeCall,
    Done,
    EmbedCall,
    PromptCall,
    RerankCall,
    Started,
    Text,
    TextCall,
    TokenizeCall,
    Tokens,
    Usage,
    Vector,
)
from oxlo_local.engines.embedding.engine import EmbeddingEngine
from oxlo_local.engines.weights import LoadError
from oxlo_local.random_model import Pooling, Shape, write
from tests.engines.embedding.conftest import BertPath, MakeEngine, drive
from tests.engines.embedding.reference import Bert

TEXTS = ["the cat sat on the mat", "a", "rain, rain, go away; come again another day", "0 1 2 3"]


def tokens_of(engine: EmbeddingEngine, text: str, *, special: bool = True) -> list[int]:
    answer = drive(engine, [TokenizeCall("q", text, add_special=special)])
    return next(event.tokens for event in answer.steps[0] if isinstance(event, Tokens))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_are_those_of_a_plain_forward_pass(
    make_engine: MakeEngine, bert_path: BertPath, pooling: Pooling
) -> None:
    engine, bert = make_engine(pooling), Bert(bert_path(pooling))
    answers = drive(engine, [EmbedCall("a", [*TEXTS])])
    for index, text in enumerate(TEXTS):
        expected = bert.vector(tokens_of(engine, text), pooling)
        assert np.abs(answers.vectors["a", index] - expected).max() < 2e-3
    assert isinstance(answers.ends["a"], Done)


def test_scores_are_those_of_a_plain_forward_pass(make_engine: MakeEngine, bert_path: BertPath) -> None:
    engine, bert = make_engine("rank"), Bert(bert_path("rank"))
    answers = drive(engine, [RerankCall("r", "who sat?", TEXTS)])
    bos, *_, eos = tokens_of(engine, "x")
    query = tokens_of(engine, "who sat?", special=False)
    for index, text in enumerate(TEXTS):
        pair = [bos, *query, eos, *tokens_of(engine, text, special=False), eos]
        assert answers.scores["r", index] == pytest.approx(bert.relevance(pair), abs=2e-3)
    assert len({round(score, 4) for score in answers.scores.values()}) == len(TEXTS)


def test_a_text_model_with_pooling_forgets_the_step_before(make_engine: MakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "last.gguf"
    write(path, "llama", Shape(layers=2, context=256), pooling="last")
    engine = make_engine(path, batch=256)
    first = drive(engine, [EmbedCall("a", [*TEXTS])])
    again = drive(engine, [EmbedCall("b", [*TEXTS[:2]]), EmbedCall("c", [*TEXTS[2:]])])
    for index in range(4):
        other = again.vectors["b" if index < 2 else "c", index % 2]
        assert np.abs(first.vectors["a", index] - other).max() < 1e-3


def test_company_and_order_change_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine(batch=64, ctx=64)
    alone = drive(engine, [EmbedCall("a", [TEXTS[2]])]).vectors["a", 0]
    crowd = drive(engine, [EmbedCall(str(i), [*TEXTS * 5]) for i in range(7)])
    assert all(
        np.abs(crowd.vectors[str(i), 4 * j + 2] - alone).max() < 1e-4 for i in range(7) for j in range(5)
    )


def test_usage_counts_every_token_once(make_engine: MakeEngine) -> None:
    engine = make_engine()
    count = sum(len(tokens_of(engine, text)) for text in TEXTS)
    answers = drive(engine, [EmbedCall("a", [*TEXTS])])
    assert answers.ends["a"] == Done("a", Usage(prompt_tokens=count))
    assert [event for events in answers.steps for event in events if isinstance(event, Started)] == [
        Started("a", count, 0)
    ]


def test_fewer_dimensions_are_the_first_ones_made_1_long(make_engine: MakeEngine) -> None:
    answers = drive(make_engine(), [EmbedCall("a", [TEXTS[0]]), EmbedCall("b", [TEXTS[0]], dimensions=16)])
    whole, cut = answers.vectors["a", 0], answers.vectors["b", 0]
    assert cut.shape == (16,)
    assert np.linalg.norm(cut) == pytest.approx(1, abs=1e-5)
    assert np.allclose(cut, whole[:16] / np.linalg.norm(whole[:16]), atol=1e-5)


def test_token_lists_are_taken_as_they_are(make_engine: MakeEngine) -> None:
    engine = make_engine()
    tokens = tokens_of(engine, TEXTS[0])
    answers = drive(engine, [EmbedCall("a", [tokens, TEXTS[0]])])
    assert np.allclose(answers.vectors["a", 0], answers.vectors["a", 1], atol=1e-5)


def test_a_long_list_holds_up_nobody(make_engine: MakeEngine) -> None:
    engine = make_engine(batch=64, ctx=64)
    engine.submit(EmbedCall("list", ["many words in each of these texts"] * 600))
    engine.step()
    engine.submit(EmbedCall("query", ["one"]))
    for _ in range(2):
        if any(event == Done("query", event.usage) for event in engine.step() if isinstance(event, Done)):
            return
    raise AssertionError("the single query waits for the list")


def test_an_input_as_long_as_the_context_is_taken_and_no_longer_one(make_engine: MakeEngine) -> None:
    engine = make_engine(ctx=40, batch=8)  # a step is never shorter than the context
    full, over = [7] * 40, [7] * 41
    answers = drive(engine, [EmbedCall("a", [full]), EmbedCall("b", ["fine", over])])
    assert isinstance(answers.ends["a"], Done)
    failed = answers.failed("b")
    assert failed.code == "context_length_exceeded" and failed.param == "input[1]"
    assert "input[1] has 41 tokens" in failed.message and "holds 40" in failed.message


def test_megabytes_of_text_are_refused_on_the_side(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.submit(EmbedCall("big", ["ab " * 700_000]))
    engine.submit(EmbedCall("small", ["ab"]))
    answers = drive(engine, [])
    assert answers.failed("big").code == "context_length_exceeded"
    assert isinstance(answers.ends["small"], Done)


@pytest.mark.parametrize(
    ("call", "code", "param"),
    [
        (EmbedCall("x", [[1, 99_999]]), "invalid_value", "input[0]"),
        (EmbedCall("x", ["a"], dimensions=65), "invalid_value", "dimensions"),
        (RerankCall("x", "q", ["d"]), "unsupported_value", "model"),
        (TextCall("x", prompts=["a"]), "unsupported_value", "model"),
        (DetokenizeCall("x", [99_999]), "invalid_value", "tokens"),
        (PromptCall("x", TextCall("x", messages=[])), "invalid_value", "messages"),
    ],
)
def test_what_cannot_be_done_fails_alone(
    make_engine: MakeEngine, call: EmbedCall | RerankCall | TextCall, code: str, param: str
) -> None:
    answers = drive(make_engine(), [call, EmbedCall("good", ["a"])])
    assert (answers.failed("x").code, answers.failed("x").param) == (code, param)
    assert isinstance(answers.ends["good"], Done)


def test_a_reranker_says_which_document_is_too_long_and_makes_no_embeddings(make_engine: MakeEngine) -> None:
    engine = make_engine("rank", ctx=32)
    answers = drive(engine, [RerankCall("r", "q", ["short", "long " * 30]), EmbedCall("e", ["a"])])
    assert answers.failed("r").param == "documents[1]" and "holds 32" in answers.failed("r").message
    assert "/v1/rerank" in answers.failed("e").message
    assert (engine.facts.kind, engine.facts.dimensions) == ("rerank", 0)


def test_a_cancelled_list_ends_at_once(make_engine: MakeEngine) -> None:
    engine = make_engine(batch=64, ctx=64)
    engine.submit(EmbedCall("a", ["some words"] * 500))
    first = engine.step()
    engine.cancel("a")
    engine.cancel("nobody")
    assert any(isinstance(event, Vector) for event in first)
    answers = drive(engine, [])
    assert answers.failed("a").code == "cancelled" and not answers.vectors


def test_questions_about_tokens_are_answered(make_engine: MakeEngine) -> None:
    engine = make_engine()
    tokens = tokens_of(engine, "a cat", special=False)
    answers = drive(engine, [DetokenizeCall("d", tokens)])
    assert [event.text for event in answers.steps[0] if isinstance(event, Text)] == ["a cat"]


def test_a_file_that_does_not_say_how_to_pool_needs_to_be_told(make_engine: MakeEngine) -> None:
    with pytest.raises(LoadError, match=r"models\.toml"):
        make_engine(None)
    engine = make_engine(None, pooling="cls")
    assert engine.facts.dimensions == 64 and engine.facts.kind == "embedding"
