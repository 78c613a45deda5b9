"""What is measured at load decides within its bounds and leaves nothing behind; what a shape says is read right."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from oxlo_local.calls import TextOptions
from oxlo_local.engines.text.llama import Llama
from oxlo_local.engines.text.measure import NEVER_ALONE, SIZES, fewest_together, halfway, halfway_of
from oxlo_local.random_model import Architecture


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mamba", "jamba"])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_it_decides_and_leaves_an_empty_cache(
    model_path: Callable[[Architecture], Path], kind: Architecture, slots: int
) -> None:
    llama = Llama(model_path(kind), TextOptions(ctx=256, parallel=slots, threads=1), lambda _: None)
    try:
        assert fewest_together(llama, slots) in (*SIZES, NEVER_ALONE)
        assert [llama.computed(slot) for slot in range(slots)] == [0] * slots
    finally:
        llama.close()


# As a file of this shape says it: 18 layers, each with 3.54 M numbers in its matrices, and 9 heads of 64.
SMALL = {
    "general.architecture": "llama",
    "llama.embedding_length": "576",
    "llama.feed_forward_length": "1536",
    "llama.attention.head_count": "9",
    "llama.attention.head_count_kv": "3",
}


def test_halfway_is_where_attention_takes_as_many_operations_as_all_matrices() -> None:
    matrices = 576 * 576 * 2 + 576 * 192 * 2 + 3 * 576 * 1536
    assert halfway_of(SMALL.get, cpu=False) == matrices / (9 * 128) == 3072
    assert halfway_of(SMALL.get, cpu=True) == 1536


def test_of_experts_those_that_are_used_count() -> None:
    experts = SMALL | {"llama.expert_used_count": "2", "llama.expert_feed_forward_length": "768"}
    assert halfway_of(experts.get, cpu=True) == halfway_of(SMALL.get, cpu=True)
    assert halfway_of((SMALL | {"llama.expert_used_count": "2"}).get, cpu=True) > halfway_of(
        SMALL.get, cpu=True
    )


@pytest.mark.parametrize("value", ["[9, 0, 9]", "", "-4", "0"])
def test_a_shape_that_is_not_understood_has_no_depth(value: str) -> None:
    assert halfway_of((SMALL | {"llama.attention.head_count": value}).get, cpu=True) == math.inf


@pytest.mark.parametrize(
    ("kind", "deep"), [("llama", True), ("gemma2", True), ("mamba", False), ("jamba", False)]
)
def test_it_is_read_from_a_models_file(
    model_path: Callable[[Architecture], Path], kind: Architecture, deep: bool
) -> None:
    llama = Llama(model_path(kind), TextOptions(ctx=256, parallel=1, threads=1), lambda _: None)
    try:
        assert math.isfinite(halfway(llama)) == deep
    finally:
        llama.close()
