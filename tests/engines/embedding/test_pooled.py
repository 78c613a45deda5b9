"""The contact with libllama: its bounds, its separators, its heads."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from oxlo_local.calls import EmbeddingOptions
from oxlo_local.engines.embedding.pooled import SEQUENCES_MAX, Pooled, _around
from oxlo_local.engines.weights import LoadError
from tests.engines.embedding.conftest import BertPath

Make = Callable[..., Pooled]


@pytest.fixture
def make(bert_path: BertPath) -> Iterator[Make]:
    models: list[Pooled] = []

    def made(pooling: str = "mean", **options: object) -> Pooled:
        given = EmbeddingOptions(threads=1, **options)  # type: ignore[arg-type]
        models.append(Pooled(bert_path(pooling), given, lambda _: None))  # type: ignore[arg-type]
        return models[-1]

    yield made
    for model in models:
        model.close()


def test_a_step_holds_the_longest_input_and_a_full_step_is_computed(make: Make) -> None:
    model = make(ctx=200, batch=64)
    assert (model.longest, model.capacity) == (200, 200)
    assert model.compute([[9] * 200]).shape == (1, 64)
    rows = model.compute([[9] * 4] * model.sequences)
    assert rows.shape == (50, 64) and np.allclose(rows, rows[0], atol=1e-4)


def test_no_context_is_longer_than_the_table_of_positions(make: Make) -> None:
    model = make(ctx=100_000)
    assert model.longest == 256 and model.compute([[9] * 256]).shape == (1, 64)


def test_sequences_stay_within_libllamas_bound(make: Make) -> None:
    model = make(batch=4096)
    assert model.sequences == SEQUENCES_MAX
    assert model.compute([[number % 500] for number in range(SEQUENCES_MAX)]).shape == (SEQUENCES_MAX, 64)


def test_a_step_that_libllama_would_abort_on_is_never_handed_over(make: Make) -> None:
    model = make(ctx=64, batch=64)
    refused: list[list[list[int]]] = [[[9] * 65], [[9]] * (model.sequences + 1), [[]], []]
    for inputs in refused:
        with pytest.raises(AssertionError):
            model.compute(inputs)


def test_a_pair_has_its_marks_and_nothing_a_text_says_is_one(make: Make) -> None:
    model = make("rank")
    begin, end = model.bos, model.eos
    plain = model.tokenize("<s>", special=False, add_special=False)
    query = model.tokenize("cat", special=False, add_special=False)
    assert model.pair("cat", "<s>") == [begin, *query, end, *plain, end]
    assert model.pair("cat", "") == [begin, *query, end, end]


def test_a_rerankers_prompt_is_cut_at_its_places() -> None:
    assert _around("<q>{query}</q><d>{document}</d>") == ("<q>", "</q><d>", "</d>")
    with pytest.raises(LoadError, match="rerank prompt"):
        _around("{document} {query}")


def test_what_could_never_fit_is_known_without_tokenising(make: Make) -> None:
    model = make()
    assert model.hopeless("ab" * 10_000) and not model.hopeless("ab")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"none\.gguf"):
        Pooled(tmp_path / "none.gguf", EmbeddingOptions(), lambda _: None)
