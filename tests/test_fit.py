"""Does it fit, and how would it run: the arithmetic, the choices, the refusals."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxlo_local import fit
from oxlo_local.calls import TextOptions
from oxlo_local.errors import ModelDoesNotFit
from oxlo_local.gguf import Geometry
from oxlo_local.hardware import Gpu, Machine

GB = 1_000_000_000
EIGHT_B = Geometry(
    weights=5 * GB, layers=36, kv_per_token=2 * 36 * 8 * 128, vocab=151_936, embd=4096, context=40_960
)
TINY = Geometry(weights=8_000_000, layers=6, kv_per_token=2 * 6 * 2 * 32, vocab=4096, embd=192, context=2048)
LAPTOP = Machine(8, 16 * GB, 12 * GB)
BIG = Machine(32, 256 * GB, 250 * GB)
CARD = Machine(16, 64 * GB, 60 * GB, (Gpu("RTX 4090", 24 * GB, 23 * GB, "8.9"),), gpu_engine=True)


def test_the_sum_is_weights_cache_buffers_and_process() -> None:
    plan = fit.plan("m", EIGHT_B, BIG, TextOptions(ctx=8192, parallel=2))
    assert plan.weights == 5 * GB
    assert plan.kv == 2 * 8192 * 2 * 36 * 8 * 128 * 2
    assert plan.buffers == 4 * 512 * (151_936 + 10 * 4096 + 8192)
    assert plan.total == plan.weights + plan.kv + plan.buffers + plan.process == plan.ram
    assert plan.arithmetic == (
        "weights 5.0 GB + KV cache 2.4 GB (2 sequences x 8,192 tokens, f16) + buffers 412 MB + process 200 MB = 8.0 GB"
    )


def test_a_cache_in_q8_0_takes_little_more_than_half() -> None:
    whole = fit.plan("m", EIGHT_B, BIG, TextOptions(ctx=8192, parallel=2))
    half = fit.plan("m", EIGHT_B, BIG, TextOptions(ctx=8192, parallel=2, kv_type="q8_0"))
    assert half.kv / whole.kv == pytest.approx(34 / 64)


def test_context_is_rounded_as_the_engine_rounds_it() -> None:
    odd = fit.plan("m", EIGHT_B, BIG, TextOptions(ctx=1000, parallel=1))
    even = fit.plan("m", EIGHT_B, BIG, TextOptions(ctx=1024, parallel=1))
    assert (odd.ctx, odd.kv) == (1000, even.kv)


def test_a_state_is_kept_once_a_sequence() -> None:
    stateful = msgspec.structs.replace(EIGHT_B, state_bytes=1_000_000)
    options = TextOptions(ctx=4096, parallel=3)
    assert fit.plan("m", stateful, BIG, options).kv == fit.plan("m", EIGHT_B, BIG, options).kv + 3_000_000


@pytest.mark.parametrize(
    ("geometry", "machine", "ctx", "parallel"),
    [
        (TINY, LAPTOP, 2048, 16),  # cheap: many sequences, never more context than the model was made for
        (EIGHT_B, BIG, 8192, 16),  # roomy
        (EIGHT_B, Machine(8, 64 * GB, 60 * GB), 8192, 4),  # comfortable
        (EIGHT_B, LAPTOP, 8192, 4),  # four sequences, although they are not cheap any more
        (EIGHT_B, Machine(8, 16 * GB, 8 * GB), 8192, 1),  # fewer sequences before less context
        (EIGHT_B, Machine(8, 8 * GB, 6_600_000_000), 4096, 1),  # then less context
    ],
)
def test_what_is_left_open_follows_the_memory(
    geometry: Geometry, machine: Machine, ctx: int, parallel: int
) -> None:
    plan = fit.plan("m", geometry, machine)
    assert (plan.ctx, plan.parallel) == (ctx, parallel)


def test_context_grows_where_it_is_cheap() -> None:
    long = msgspec.structs.replace(TINY, context=131_072)
    assert fit.plan("m", long, BIG).ctx == 131_072


def test_gpus_take_all_layers_or_some_or_none() -> None:
    on_card = fit.plan("m", EIGHT_B, CARD)
    assert (on_card.gpu_layers, on_card.parallel) == (-1, 8)
    assert on_card.vram <= 23 * GB and on_card.ram == fit.PROCESS

    large = msgspec.structs.replace(EIGHT_B, weights=40 * GB, layers=80)
    split = fit.plan("m", large, CARD)
    assert 0 < split.gpu_layers < 80
    assert split.vram <= 23 * GB and split.ram <= 60 * GB
    assert split.vram + split.ram >= split.weights + split.kv
    assert "layers on the GPU" in split.placement

    unused = msgspec.structs.replace(CARD, gpu_engine=False)
    assert fit.plan("m", EIGHT_B, unused).gpu_layers == 0
    assert fit.plan("m", EIGHT_B, CARD, TextOptions(gpu_layers=0)).gpu_layers == 0
    assert fit.plan("m", EIGHT_B, CARD, TextOptions(gpu_layers=10)).gpu_layers == 10


def test_a_refusal_shows_the_sum_and_what_there_is() -> None:
    large = msgspec.structs.replace(EIGHT_B, weights=40 * GB)
    with pytest.raises(ModelDoesNotFit) as refused:
        fit.plan("giant", large, LAPTOP)
    assert refused.value.message == (
        "giant does not fit: weights 40.0 GB + KV cache 151 MB (1 sequence x 1,024 tokens, f16) + buffers 397 MB + "
        "process 200 MB = 40.7 GB; free are 12.0 GB of 16.0 GB RAM. A smaller model or quantisation is needed"
    )
    with pytest.raises(ModelDoesNotFit, match="on RTX 4090"):
        fit.plan("giant", msgspec.structs.replace(EIGHT_B, weights=400 * GB), CARD)


def test_a_refusal_names_what_would_fit_instead() -> None:
    with pytest.raises(ModelDoesNotFit, match=r"It fits with 4 sequences of 8,192 tokens in RAM"):
        fit.plan("m", EIGHT_B, LAPTOP, TextOptions(ctx=40_960, parallel=16))
    with pytest.raises(ModelDoesNotFit, match="It fits with a KV cache in q8_0"):
        fit.plan("m", msgspec.structs.replace(EIGHT_B, kv_per_token=4_000_000), LAPTOP)


def test_memory_that_nobody_knows_refuses_nothing() -> None:
    assert fit.plan("m", EIGHT_B, Machine(4, None, None)).gpu_layers == 0


def test_options_keep_what_was_given() -> None:
    given_options = TextOptions(ctx=3000, threads=3)
    filled = fit.plan("m", TINY, LAPTOP, given_options).options(given_options)
    assert (filled.ctx, filled.parallel, filled.gpu_layers, filled.kv_type, filled.threads) == (
        3000,
        16,
        0,
        "f16",
        3,
    )


def test_models_side_by_side_share_the_memory() -> None:
    first = fit.plan("a", EIGHT_B, CARD)
    left = fit.less(CARD, first)
    assert left.vram_free == CARD.vram_free - first.vram
    assert left.ram_available == 60 * GB - first.ram
    second = fit.plan("b", EIGHT_B, left)
    assert second.vram + first.vram <= CARD.vram_free


@given(
    weights=st.integers(1_000_000, 500 * GB),
    layers=st.integers(1, 128),
    per_token=st.integers(0, 600_000),
    context=st.integers(0, 1_000_000),
    ram=st.integers(0, 512 * GB),
    cards=st.lists(st.integers(0, 90 * GB), max_size=4),
    ctx=st.none() | st.integers(1, 200_000),
    parallel=st.none() | st.integers(1, 256),
)
def test_a_plan_never_promises_more_than_there_is(
    weights: int,
    layers: int,
    per_token: int,
    context: int,
    ram: int,
    cards: list[int],
    ctx: int | None,
    parallel: int | None,
) -> None:
    geometry = Geometry(weights=weights, layers=layers, kv_per_token=per_token, context=context)
    gpus = tuple(Gpu("card", free, free, "9.0") for free in cards)
    machine = Machine(8, ram, ram, gpus, gpu_engine=True)
    try:
        plan = fit.plan("m", geometry, machine, TextOptions(ctx=ctx, parallel=parallel))
    except ModelDoesNotFit:
        return
    assert plan.ram <= ram or plan.gpu_layers == -1
    assert plan.vram <= sum(cards)
    assert plan.ram + plan.vram >= plan.weights + plan.kv
    assert ctx is None or plan.ctx == ctx
    assert parallel is None or plan.parallel == parallel
    assert ctx is not None or not context or plan.ctx <= context
