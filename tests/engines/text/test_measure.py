"""The measurement at load: it decides within its bounds and leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from oxlo_local.calls import TextOptions
from oxlo_local.engines.text.llama import Llama
from oxlo_local.engines.text.measure import NEVER_ALONE, SIZES, fewest_together
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
