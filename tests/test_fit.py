"""Does it fit, and how would it run: the arithmetic, the choices, the refusals."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxlo_local import fit, gguf, random_model
from oxlo_local.calls import ImageOptions, SpeechOptions, TextOptions
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


def test_a_model_that_makes_vectors_has_one_long_batch_and_no_logits() -> None:
    encoder = msgspec.structs.replace(EIGHT_B, pooled=True, kv_per_token=0)
    plan = fit.plan("m", encoder, BIG, TextOptions(parallel=8))
    assert (plan.ctx, plan.parallel, plan.kv) == (8192, 1, 0)
    assert plan.buffers == 4 * 8192 * (10 * 4096 + 8192)
    short = fit.plan("m", msgspec.structs.replace(encoder, context=256), BIG)
    assert short.ctx == 256 and short.buffers == 4 * 512 * (10 * 4096 + 256)


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


def test_layers_with_a_window_keep_a_window_and_a_batch() -> None:
    sliding = msgspec.structs.replace(EIGHT_B, kv_per_token=1000, window_kv_per_token=5000, window=1024)
    plan = fit.plan("m", sliding, BIG, TextOptions(ctx=8192, parallel=2))
    assert plan.kv == 2 * 2 * (8192 * 1000 + (1024 + 512) * 5000)
    short = fit.plan("m", sliding, BIG, TextOptions(ctx=1024, parallel=2))
    assert short.kv == 2 * 2 * 1024 * 6000


def test_one_pool_for_all_is_counted_once() -> None:
    options = TextOptions(ctx=8192, parallel=8, kv_layout="unified")
    alone = TextOptions(ctx=8192, parallel=1)
    assert fit.plan("m", EIGHT_B, BIG, options).kv == fit.plan("m", EIGHT_B, BIG, alone).kv


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


# Loads a model and says, in bytes, which buffers llama.cpp has allocated: it logs them as MiB.
ALLOCATE = """
import ctypes, json, re, sys
import llama_cpp as C
lines = []
keep = C.llama_log_callback(lambda level, text, _: lines.append(text.decode("utf-8", "replace")))
C.llama_log_set(keep, None)
path, ctx, parallel, kv_type = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
model = C.llama_model_load_from_file(path.encode(), C.llama_model_default_params())
params = C.llama_context_default_params()
params.n_ctx, params.n_seq_max, params.n_batch, params.n_ubatch = ctx * parallel, parallel, 512, 512
params.kv_unified, params.swa_full, params.type_k, params.type_v = False, False, kv_type, kv_type
params.flash_attn_type = 1
assert C.llama_init_from_model(model, params)
log = "".join(lines)
size = lambda what: sum(float(mib) for mib in re.findall(rf"{what} buffer size *= *([0-9.]+) MiB", log)) * 2**20
print(json.dumps({"kv": size("KV") + size("RS"), "buffers": size("compute") + size("output")}))
"""


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mamba", "jamba"])
@pytest.mark.parametrize(
    ("ctx", "parallel", "kv_type"), [(1000, 2, "f16"), (2048, 5, "f16"), (2048, 3, "q8_0")]
)
def test_the_arithmetic_is_llama_cpps(
    tmp_path: Path,
    architecture: random_model.Architecture,
    ctx: int,
    parallel: int,
    kv_type: Literal["f16", "q8_0"],
) -> None:
    pytest.importorskip("llama_cpp")
    path = tmp_path / "m.gguf"
    shape = random_model.Shape(d=256, layers=8, heads=8, kv_heads=4, ff=512, context=8192, window=512)
    random_model.write(path, architecture, shape)
    arguments = [str(path), str(ctx), str(parallel), {"f16": "1", "q8_0": "8"}[kv_type]]
    answer = subprocess.run(
        [sys.executable, "-c", ALLOCATE, *arguments], capture_output=True, text=True, check=True
    )
    allocated = json.loads(answer.stdout)

    geometry = gguf.geometry(gguf.read_header(path), path.stat().st_size)
    plan = fit.plan("m", geometry, BIG, TextOptions(ctx=ctx, parallel=parallel, kv_type=kv_type))

    assert plan.kv == pytest.approx(allocated["kv"], rel=0.01, abs=20_000)  # the log has two decimals
    assert allocated["buffers"] <= plan.buffers <= 2 * allocated["buffers"] + 5_000_000


def test_a_speech_model_goes_to_the_gpu_where_it_fits_else_to_memory() -> None:
    on_gpu = fit.speech("w", 3 * GB, 4.5, CARD, SpeechOptions())
    assert (on_gpu.device, on_gpu.vram) == ("cuda", int(4.5 * GB))
    assert fit.less(CARD, on_gpu).gpus[0].free == CARD.gpus[0].free - on_gpu.vram
    assert on_gpu.options(SpeechOptions()).device is None  # the engine looks whether it can use the GPU
    on_cpu = fit.speech("w", 3 * GB, 4.5, CARD, SpeechOptions(device="cpu"))
    assert (on_cpu.device, on_cpu.vram, on_cpu.ram) == ("cpu", 0, on_cpu.total)
    assert on_cpu.options(SpeechOptions(batch=3)) == SpeechOptions(batch=3, device="cpu")
    assert fit.speech("w", 3 * GB, None, LAPTOP, SpeechOptions()).device == "cpu"


def test_a_speech_model_that_fits_nowhere_is_refused_with_the_sum() -> None:
    small = Machine(2, 4 * GB, 3 * GB)
    with pytest.raises(
        ModelDoesNotFit, match=r"weights 3\.0 GB \+ buffers 600 MB .* = 3\.8 GB; free are 3\.0 GB"
    ):
        fit.speech("w", 3 * GB, None, small, SpeechOptions())
    with pytest.raises(ModelDoesNotFit):
        fit.speech("w", 30 * GB, None, CARD, SpeechOptions(device="cuda"))


# -- images -----------------------------------------------------------------------------------------------------------

KLEIN = {"text_encoder": 4 * GB, "transformer": 4 * GB, "vae": 84_000_000}  # numbers
MEGAPIXEL = 1024 * 1024


def card(free: float, ram: float = 60) -> Machine:
    return Machine(16, 64 * GB, int(ram * GB), (Gpu("a card", 24 * GB, int(free * GB), "8.9"),))


@pytest.mark.parametrize(
    ("free", "weights", "offload"),
    [
        (24, "full", "none"),
        (16, "full", "model"),
        (13.5, "int8", "model"),
        (10.5, "int8", "model"),
        (9, "int4", "model"),
        (6.5, "full", "sequential"),
    ],
)
def test_an_image_model_loses_as_little_as_the_gpu_lets_it(free: float, weights: str, offload: str) -> None:
    plan = fit.image("m", KLEIN, MEGAPIXEL, card(free), ImageOptions())
    assert (plan.device, plan.shrinking, plan.offload) == ("cuda", weights, offload)
    assert plan.vram <= free * GB * fit.USABLE
    assert plan.options(ImageOptions(steps=4)) == ImageOptions(
        steps=4, weights=plan.shrinking, offload=plan.offload
    )
    assert fit.less(card(free), plan).gpus[0].free == card(free).gpus[0].free - plan.vram


def test_what_is_asked_of_an_image_model_is_kept_to() -> None:
    plan = fit.image("m", KLEIN, MEGAPIXEL, card(24), ImageOptions(weights="int8"))
    assert (plan.shrinking, plan.offload) == ("int8", "none") and plan.weights < 10 * GB
    assert fit.image("m", KLEIN, MEGAPIXEL, card(24), ImageOptions(offload="model")).shrinking == "full"
    on_cpu = fit.image("m", KLEIN, MEGAPIXEL, card(24), ImageOptions(device="cpu"))
    assert (on_cpu.device, on_cpu.dtype, on_cpu.vram, on_cpu.ram) == ("cpu", "float32", 0, on_cpu.total)
    assert on_cpu.weights == 4 * sum(KLEIN.values())
    with pytest.raises(ModelDoesNotFit):
        fit.image("m", KLEIN, MEGAPIXEL, card(6), ImageOptions(device="cuda", weights="full", offload="none"))


def test_without_a_gpu_an_image_model_is_in_memory_in_half_the_bits_if_it_must() -> None:
    whole = fit.image("m", KLEIN, MEGAPIXEL, Machine(8, 64 * GB, 60 * GB), ImageOptions())
    assert (whole.device, whole.dtype) == ("cpu", "float32")
    half = fit.image("m", KLEIN, MEGAPIXEL, Machine(8, 32 * GB, 30 * GB), ImageOptions())
    assert (half.dtype, half.weights) == ("bfloat16", 2 * sum(KLEIN.values()))
    assert half.options(ImageOptions()) == ImageOptions(device="cpu", dtype="bfloat16")
    with pytest.raises(
        ModelDoesNotFit,
        match=r"m does not fit: weights 16\.2 GB \(bfloat16\) \+ buffers .* = 2\d\.\d GB; free are 12\.0 GB of RAM",
    ):
        fit.image("m", KLEIN, MEGAPIXEL, LAPTOP, ImageOptions())


def test_a_plan_of_an_image_model_in_words() -> None:
    plan = fit.image("m", KLEIN, MEGAPIXEL, card(16), ImageOptions())
    assert plan.placement.startswith("with the part that computes on the GPU (")
    assert plan.arithmetic.startswith("weights 16.2 GB (bfloat16) + buffers ")
    tiny = fit.image("m", {"unet": 1000}, 64 * 64, LAPTOP, ImageOptions())
    assert tiny.buffers == fit.LEAST_BUFFERS and tiny.placement == f"in RAM ({fit.gigabytes(tiny.ram)})"


@given(st.floats(0.1, 100), st.floats(0.1, 100), st.sampled_from([64 * 64, MEGAPIXEL, 4 * MEGAPIXEL]))
def test_no_plan_of_an_image_model_takes_more_than_there_is(free: float, ram: float, pixels: int) -> None:
    machine = card(free, ram)
    try:
        plan = fit.image("m", KLEIN, pixels, machine, ImageOptions())
    except ModelDoesNotFit:
        return
    assert plan.vram <= machine.gpus[0].free and plan.ram <= (machine.ram_available or 0)
