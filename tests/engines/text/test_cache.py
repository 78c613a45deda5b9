"""Slots and libllama's cache stay in step, whatever comes and goes."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from oxlo_local.calls import TextOptions
from oxlo_local.engines.text.batcher import Piece
from oxlo_local.engines.text.cache import Cache
from oxlo_local.engines.text.llama import Llama
from oxlo_local.engines.text.prefix import Place, Slot
from oxlo_local.random_model import Architecture


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mamba", "jamba"])
@pytest.mark.parametrize("layout", ["streams", "unified"])
def test_the_account_is_libllamas_own(
    model_path: Callable[[Architecture], Path], kind: Architecture, layout: str
) -> None:
    options = TextOptions(ctx=2048, parallel=5, batch=128, threads=1, kv_layout=layout)  # type: ignore[arg-type]
    llama = Llama(model_path(kind), options, lambda _: None)
    cache = Cache(llama)
    dice = random.Random(3)
    heads = [dice.choices(range(10, 400), k=90) for _ in range(3)]
    running: list[tuple[Slot, list[int]]] = []
    kept = 0
    for _ in range(120):
        tokens = [
            *dice.choice(heads)[: dice.randint(1, 90)],
            *dice.choices(range(10, 400), k=dice.randint(1, 20)),
        ]
        where = cache.place(tokens, reuse=dice.random() < 0.9)
        if isinstance(where, Place):
            slot = cache.enter(where, tokens)
            kept += len(slot.tokens)
            assert tokens[: len(slot.tokens)] == slot.tokens
            llama.decode(
                [Piece(slot.index, len(slot.tokens), len(tokens) - len(slot.tokens), "last")],
                {slot.index: tokens}.__getitem__,
            )
            slot.tokens = list(tokens)
            running.append((slot, tokens))
        if where is None or dice.random() < 0.5:
            slot, _ = running.pop(dice.randrange(len(running)))
            if dice.random() < 0.2:
                cache.rewind(slot)
            cache.leave(slot)
        if dice.random() < 0.1:
            cache.forget_oldest()
        assert cache.strayed() == 0
    assert cache.used() == sum(len(slot.tokens) for slot in cache.slots) <= cache.size
    assert kept > 0 or llama.recurrent, "prefixes were reused on the way"
    llama.close()


def test_a_decode_that_failed_half_way_is_undone(model_path: Callable[[Architecture], Path]) -> None:
    for kind in ("llama", "mamba"):
        options = TextOptions(ctx=512, parallel=2, threads=1)
        llama = Llama(model_path(kind), options, lambda _: None)
        cache = Cache(llama)
        tokens = list(range(20, 60))
        where = cache.place(tokens, reuse=True)
        assert isinstance(where, Place)
        slot = cache.enter(where, tokens)
        llama.decode([Piece(slot.index, 0, 30, "none")], [tokens].__getitem__)
        slot.tokens = tokens[:30]
        llama.decode(
            [Piece(slot.index, 30, 5, "none")], [tokens].__getitem__
        )  # computed, and never accounted for
        cache.rewind(slot)
        assert cache.strayed() == 0
        assert len(slot.tokens) == (30 if kind == "llama" else 0), "a state cannot be cut, so it starts over"
        llama.close()
