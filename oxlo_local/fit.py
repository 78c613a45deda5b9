"""Pure: does a model fit this machine, with which context and how many sequences, and the arithmetic of it.

A text model needs memory for four things, and for up to two more:

    weights    its files, mapped into memory
    KV cache   what attention keeps of every token: 2 x layers x KV heads x head size numbers a token, of which each of
               `parallel` sequences may hold `ctx` (in layers with a sliding window: a window and a batch); plus a
               fixed state per sequence in recurrent layers
    buffers    the largest step's intermediate results: the logits of one physical batch (512 tokens x vocabulary,
               f32), its activations, and the attention mask
    process    the worker itself, and a CUDA context on each GPU
    eye        of a model that sees: its image encoder, and what that needs to look at one image
    draft      where a second model drafts: its weights, its cache of as many tokens, its buffers

Layers go to the GPUs as far as these hold them. What the caller leaves open is chosen so: up to 8,192 tokens of
context, as many sequences as cost little (a cache of at most `CHEAP` of the memory), then more context while it stays
cheap. Where little is left, fewer sequences come first, then less context, then fewer layers on the GPU. Estimates err
on the side of too much; what a loaded model takes is measured by its worker.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from oxlo_local.calls import ImageOptions, SpeechOptions, TextOptions
from oxlo_local.errors import ModelDoesNotFit
from oxlo_local.gguf import Geometry
from oxlo_local.hardware import Machine

PHYSICAL_BATCH = 512  # llama.cpp's n_ubatch: tokens computed at once
PROCESS = 200_000_000
GPU_CONTEXT = 500_000_000
USABLE = 0.95  # of what is available: the rest is for whoever else is running
CHEAP = {"cpu": 1 / 8, "gpu": 1 / 2}  # share of the memory that a comfortable KV cache may take
USUAL_CTX = 8192
SMALLER_CTX = (4096, 2048, 1024)
SEQUENCES = (32, 16, 8, 4, 2, 1)
MOST_SEQUENCES_ON_CPU = 16  # more of them only wait for the same cores
FEWEST_COMFORTABLE = 4
KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
HEARING = 600_000_000  # of a batch of chunks in the encoder and the decoder
PIXEL = {
    "cuda": 3_000,
    "cpu": 6_000,
}  # bytes that decoding takes for a pixel, in the number format used there
TENSOR = 400  # and denoising, of each image in a batch
LEAST_BUFFERS = 100_000_000
BYTES = {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "int8": 1.1,
    "int4": 0.65,
}  # of a number, scales included
EYE_BUFFERS = 400_000_000  # of a large encoder at its largest image
CTX_STEP = 256  # llama.cpp rounds each sequence's context up to this


class Plan(Struct, frozen=True):
    """How a model is run here. Sizes in bytes; `ctx` in tokens a sequence; `gpu_layers` -1 = all, 0 = none."""

    model: str
    weights: int
    kv: int
    buffers: int
    process: int
    ctx: int
    parallel: int
    kv_type: str
    layers: int
    gpu_layers: int
    ram: int
    vram: int
    estimated: bool = False
    eye: int = 0
    draft: int = 0

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.kv + self.fixed + self.process

    @property
    def fixed(self) -> int:
        """What lies in one place, however the layers are spread."""
        return self.buffers + self.eye + self.draft

    @property
    def arithmetic(self) -> str:
        """The sum, in words."""
        sequences = "1 sequence" if self.parallel == 1 else f"{self.parallel} sequences"
        return (
            f"weights {gigabytes(self.weights)} + KV cache {gigabytes(self.kv)} ({sequences} x {self.ctx:,} tokens, "
            f"{self.kv_type}) + buffers {gigabytes(self.buffers)} + process {gigabytes(self.process)}"
            f"{f' + image encoder {gigabytes(self.eye)}' if self.eye else ''}"
            f"{f' + draft model {gigabytes(self.draft)}' if self.draft else ''} = {gigabytes(self.total)}"
        )

    @property
    def placement(self) -> str:
        """Where it goes, in words."""
        if self.gpu_layers == 0:
            return f"in RAM ({gigabytes(self.ram)})"
        if self.gpu_layers < 0:
            return f"on the GPU ({gigabytes(self.vram)})"
        split = f"{self.gpu_layers} of {self.layers} layers on the GPU ({gigabytes(self.vram)})"
        return f"{split}, the rest in RAM ({gigabytes(self.ram)})"

    def options(self, given: TextOptions) -> TextOptions:
        """`given`, with what it leaves open filled in."""
        return msgspec.structs.replace(
            given,
            ctx=given.ctx or self.ctx,
            parallel=given.parallel or self.parallel,
            gpu_layers=self.gpu_layers if given.gpu_layers is None else given.gpu_layers,
            kv_type=given.kv_type or ("q8_0" if self.kv_type == "q8_0" else "f16"),
        )


class SpeechPlan(Struct, frozen=True):
    """How a speech model is run here: what its files take, what computing a batch takes. Sizes in bytes."""

    model: str
    weights: int
    buffers: int
    process: int
    device: Literal["cpu", "cuda"]
    ram: int = 0
    vram: int = 0

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.buffers + self.process

    @property
    def arithmetic(self) -> str:
        """The sum, in words."""
        return (
            f"weights {gigabytes(self.weights)} + buffers {gigabytes(self.buffers)} + process "
            f"{gigabytes(self.process)} = {gigabytes(self.total)}"
        )

    def options(self, given: SpeechOptions) -> SpeechOptions:
        """`given`, kept off the GPU where it does not fit there; else the engine uses the GPU if it can."""
        return msgspec.structs.replace(given, device="cpu") if self.device == "cpu" else given


Offload = Literal["none", "model", "sequential"]
Shrinking = Literal["full", "int8", "int4"]
# On a GPU, the one to try first: what loses nothing, then what is fast.
ON_GPU: tuple[tuple[Shrinking, Offload], ...] = (
    ("full", "none"),
    ("full", "model"),
    ("int8", "none"),
    ("int8", "model"),
    ("int4", "none"),
    ("int4", "model"),
    ("full", "sequential"),
)


class ImagePlan(Struct, frozen=True):
    """How an image model is run here. Sizes in bytes; `resident` is what lies where it is computed, at once."""

    model: str
    weights: int
    buffers: int
    process: int
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "float16", "bfloat16"]
    shrinking: Shrinking = "full"
    offload: Offload = "none"
    resident: int = 0
    ram: int = 0
    vram: int = 0

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.buffers + self.process

    @property
    def arithmetic(self) -> str:
        """The sum, in words."""
        form = self.dtype if self.shrinking == "full" else self.shrinking
        return (
            f"weights {gigabytes(self.weights)} ({form}) + buffers {gigabytes(self.buffers)} + process "
            f"{gigabytes(self.process)} = {gigabytes(self.total)}"
        )

    @property
    def placement(self) -> str:
        """Where it goes, in words."""
        if self.device == "cpu":
            return f"in RAM ({gigabytes(self.ram)})"
        if self.offload == "none":
            return f"on the GPU ({gigabytes(self.vram)})"
        what = "the part that computes" if self.offload == "model" else "the layer that computes"
        return f"with {what} on the GPU ({gigabytes(self.vram)}), the rest in RAM ({gigabytes(self.ram)})"

    def options(self, given: ImageOptions) -> ImageOptions:
        """`given`, with what it leaves open filled in; where the GPU does it whole, the engine sees for itself."""
        if self.device == "cpu":
            kind = None if self.shrinking == "full" else self.shrinking
            return msgspec.structs.replace(
                given, device="cpu", dtype=self.dtype, weights=given.weights or kind, offload=None
            )
        return msgspec.structs.replace(given, weights=self.shrinking, offload=self.offload)


def gigabytes(size: int | None) -> str:
    """A size for people, in powers of ten as disks and hubs count; MB below one GB."""
    if size is None:
        return "an unknown amount"
    return f"{size / 1e9:.1f} GB" if size >= 950_000_000 else f"{size / 1e6:.0f} MB"


def plan(name: str, geometry: Geometry, machine: Machine, options: TextOptions | None = None) -> Plan:
    """The way to run a model here that keeps to every option given.

    Raises ModelDoesNotFit with the arithmetic, and with what would fit instead where something does.
    """
    options = options or TextOptions()
    if geometry.pooled:  # its engine packs many texts into one sequence of steps
        options = msgspec.structs.replace(options, parallel=1)
    found = _first(name, geometry, machine, options)
    if found is not None:
        return found
    raise ModelDoesNotFit(_refusal(name, geometry, machine, options), param="model")


def speech(
    name: str, weights: int, vram_gb: float | None, machine: Machine, options: SpeechOptions
) -> SpeechPlan:
    """The way to run a speech model here: on the GPU where it fits, else on the CPU.

    `weights` is the size of its files, `vram_gb` what the catalogue says it takes on a GPU. Raises ModelDoesNotFit
    with the arithmetic.
    """
    on_gpu = max(int((vram_gb or 0) * 1e9), weights + GPU_CONTEXT)
    free = max((gpu.free for gpu in machine.gpus), default=0)
    if options.device != "cpu" and on_gpu <= free * USABLE:
        return SpeechPlan(name, weights, on_gpu - weights, PROCESS, device="cuda", ram=PROCESS, vram=on_gpu)
    plan = SpeechPlan(name, weights, HEARING, PROCESS, device="cpu", ram=weights + HEARING + PROCESS)
    limit = machine.ram_available
    if options.device == "cuda" or (limit is not None and plan.total > limit * USABLE):
        gpus = "".join(f" and {gigabytes(gpu.free)} on {gpu.name}" for gpu in machine.gpus)
        raise ModelDoesNotFit(
            f"{name} does not fit: {plan.arithmetic}; free are {gigabytes(limit)} of RAM{gpus}", param="model"
        )
    return plan


def image(
    name: str, numbers: Mapping[str, int], pixels: int, machine: Machine, options: ImageOptions
) -> ImagePlan:
    """The way to run an image model here that loses least: on a GPU whole, in parts or in fewer bits; else on the CPU.

    `numbers` says how many weights each part has, `pixels` the largest picture. Raises ModelDoesNotFit with the
    arithmetic.
    """
    batch = options.batch or 4
    free = max((gpu.free for gpu in machine.gpus), default=0) * USABLE
    ram = None if machine.ram_available is None else machine.ram_available * USABLE
    for shrinking, offload in ON_GPU if options.device != "cpu" else ():
        if options.weights not in (None, shrinking) or options.offload not in (None, offload):
            continue
        found = _drawing(name, numbers, pixels * (PIXEL["cuda"] + TENSOR * batch), "cuda", shrinking, options)
        resident = {"none": found.weights, "model": found.resident, "sequential": LEAST_BUFFERS}[offload]
        vram = resident + found.buffers + GPU_CONTEXT
        in_ram = PROCESS if offload == "none" else PROCESS + found.weights
        if vram <= free and (ram is None or in_ram <= ram):
            return msgspec.structs.replace(found, offload=offload, resident=resident, vram=vram, ram=in_ram)
    least = None
    for dtype in ("float32", "bfloat16") if options.device != "cuda" else ():
        given = msgspec.structs.replace(options, dtype=options.dtype or dtype)
        buffers = pixels * (PIXEL["cpu"] + TENSOR * batch)
        least = _drawing(name, numbers, buffers, "cpu", options.weights or "full", given)
        if ram is None or least.total <= ram:
            return msgspec.structs.replace(least, ram=least.total)
    least = least or _drawing(
        name, numbers, pixels * PIXEL["cuda"], "cuda", options.weights or "int4", options
    )
    gpus = "".join(f" and {gigabytes(gpu.free)} on {gpu.name}" for gpu in machine.gpus)
    raise ModelDoesNotFit(
        f"{name} does not fit: {least.arithmetic}; free are {gigabytes(machine.ram_available)} of RAM{gpus}",
        param="model",
    )


def _drawing(
    name: str,
    numbers: Mapping[str, int],
    buffers: int,
    device: Literal["cpu", "cuda"],
    shrinking: Shrinking,
    options: ImageOptions,
) -> ImagePlan:
    """The plan in this number format, placed nowhere yet; `resident` is the largest part."""
    dtype = options.dtype or ("bfloat16" if device == "cuda" else "float32")
    each = BYTES[dtype if shrinking == "full" else shrinking]
    return ImagePlan(
        model=name,
        weights=int(sum(numbers.values()) * each),
        buffers=max(buffers, LEAST_BUFFERS),
        process=PROCESS + (GPU_CONTEXT if device == "cuda" else 0),
        device=device,
        dtype=dtype,
        shrinking=shrinking,
        resident=int(max(numbers.values(), default=0) * each),
    )


def less(machine: Machine, plan: Plan | SpeechPlan | ImagePlan) -> Machine:
    """The machine that is left when `plan` runs on it."""
    ram = None if machine.ram_available is None else max(machine.ram_available - plan.ram, 0)
    taken = plan.vram
    gpus = []
    for gpu in machine.gpus:
        share = min(gpu.free, taken)
        taken -= share
        gpus.append(msgspec.structs.replace(gpu, free=gpu.free - share))
    return msgspec.structs.replace(machine, ram_available=ram, gpus=tuple(gpus))


def _first(name: str, geometry: Geometry, machine: Machine, options: TextOptions) -> Plan | None:
    """The first of the candidates, best first, that fits."""
    for where in ("gpu", "split", "cpu"):
        if where != "cpu" and (machine.vram_free == 0 or options.gpu_layers == 0):
            continue
        if where == "gpu" and options.gpu_layers not in (None, -1):
            continue
        if where == "cpu" and options.gpu_layers not in (None, 0) and machine.vram_free > 0:
            continue
        for ctx, parallel, cheap_only in _candidates(geometry, machine, options, where):
            candidate = _placed(name, geometry, machine, options, where, ctx, parallel)
            if candidate is None:
                continue
            if cheap_only and not _cheap(candidate, machine, where):
                continue
            return _roomier(candidate, geometry, machine, options, where)
    return None


def _candidates(
    geometry: Geometry, machine: Machine, options: TextOptions, where: str
) -> Iterator[tuple[int, int, bool]]:
    """(ctx, parallel, only if the cache is cheap), best first."""
    usual = min(geometry.context or USUAL_CTX, USUAL_CTX)
    contexts = [options.ctx] if options.ctx else [usual, *(ctx for ctx in SMALLER_CTX if ctx < usual)]
    most = MOST_SEQUENCES_ON_CPU if where == "cpu" else max(SEQUENCES)
    counts = [options.parallel] if options.parallel else [count for count in SEQUENCES if count <= most]
    for count in counts:
        if count >= FEWEST_COMFORTABLE:
            yield contexts[0], count, options.parallel is None
    for ctx in contexts:
        for count in counts:
            if count <= FEWEST_COMFORTABLE or options.parallel is not None:
                yield ctx, count, False


def _cheap(plan: Plan, machine: Machine, where: str) -> bool:
    memory = machine.ram_available if where == "cpu" else machine.vram_free
    return memory is None or plan.kv <= memory * CHEAP["cpu" if where == "cpu" else "gpu"]


def _roomier(plan: Plan, geometry: Geometry, machine: Machine, options: TextOptions, where: str) -> Plan:
    """The same plan with as much context as stays cheap, up to what the model was made for."""
    if options.ctx is not None or geometry.pooled:
        return plan
    while plan.ctx < geometry.context:
        ctx = min(2 * plan.ctx, geometry.context)
        larger = _placed(plan.model, geometry, machine, options, where, ctx, plan.parallel)
        if larger is None or not _cheap(larger, machine, where):
            break
        plan = larger
    return plan


def _placed(
    name: str, geometry: Geometry, machine: Machine, options: TextOptions, where: str, ctx: int, parallel: int
) -> Plan | None:
    """The plan with these numbers in this place, None if it does not fit."""
    candidate = _sized(name, geometry, options, ctx, parallel)
    ram_limit = None if machine.ram_available is None else int(machine.ram_available * USABLE)
    if where == "cpu":
        fits = ram_limit is None or candidate.total <= ram_limit
        return msgspec.structs.replace(candidate, ram=candidate.total) if fits else None

    contexts = GPU_CONTEXT * len(machine.gpus)
    room = int(machine.vram_free * USABLE) - candidate.fixed - contexts
    layered = candidate.weights + candidate.kv
    if where == "gpu":
        if layered > room:
            return None
        vram = layered + candidate.fixed + contexts
        return msgspec.structs.replace(
            candidate, gpu_layers=-1, vram=vram, ram=PROCESS, process=PROCESS + contexts
        )

    per_layer = -(-layered // (geometry.layers + 1))  # the output matrix counts as one
    on_gpu = min(max(room, 0) // per_layer, geometry.layers)
    if options.gpu_layers not in (None, -1):
        if (options.gpu_layers or 0) > on_gpu:
            return None
        on_gpu = options.gpu_layers or 0
    ram = layered - on_gpu * per_layer + candidate.fixed + PROCESS
    if on_gpu <= 0 or options.gpu_layers == -1 or (ram_limit is not None and ram > ram_limit):
        return None
    vram = on_gpu * per_layer + candidate.fixed + contexts
    return msgspec.structs.replace(
        candidate, gpu_layers=on_gpu, vram=vram, ram=ram, process=PROCESS + contexts
    )


def _sized(name: str, geometry: Geometry, options: TextOptions, ctx: int, parallel: int) -> Plan:
    """The plan with these numbers, placed nowhere yet."""
    kv_type = options.kv_type or "f16"
    padded = _padded(ctx)
    pools = (
        1 if options.kv_layout == "unified" else parallel
    )  # unified: all sequences share one pool of ctx tokens
    windows = geometry.window * (parallel if options.kv_layout == "unified" else 1)
    sliding = _padded(min(padded, windows + PHYSICAL_BATCH))
    numbers = padded * geometry.kv_per_token + sliding * geometry.window_kv_per_token
    kv = int(pools * numbers * KV_BYTES[kv_type]) + parallel * geometry.state_bytes
    # f32 each: logits of a batch; about ten vectors of the model's width a token; one row of mask a token.
    batch, logits = (max(padded, PHYSICAL_BATCH), 0) if geometry.pooled else (PHYSICAL_BATCH, geometry.vocab)
    buffers = 4 * batch * (logits + 10 * geometry.embd + padded)
    return Plan(
        model=name,
        weights=geometry.weights,
        kv=kv,
        buffers=buffers,
        process=PROCESS,
        ctx=ctx,
        parallel=parallel,
        kv_type=kv_type,
        layers=geometry.layers,
        gpu_layers=0,
        ram=0,
        vram=0,
        estimated=geometry.estimated,
        eye=geometry.eye + min(geometry.eye, EYE_BUFFERS),
        draft=0 if geometry.draft is None else _drafting(geometry.draft, options, ctx, parallel),
    )


def _drafting(geometry: Geometry, options: TextOptions, ctx: int, parallel: int) -> int:
    """Bytes of a model that drafts, whose windows are kept whole."""
    whole = geometry.kv_per_token + geometry.window_kv_per_token
    drafting = msgspec.structs.replace(geometry, kv_per_token=whole, window_kv_per_token=0)
    sized = _sized("", drafting, options, ctx, parallel)
    return sized.weights + sized.kv + sized.buffers


def _padded(tokens: int) -> int:
    return -(-tokens // CTX_STEP) * CTX_STEP


def _refusal(name: str, geometry: Geometry, machine: Machine, options: TextOptions) -> str:
    """Why nothing fits: the smallest sum that keeps to the options, against what there is."""
    smallest = min(geometry.context or SMALLER_CTX[-1], SMALLER_CTX[-1])
    least = _sized(name, geometry, options, options.ctx or smallest, options.parallel or 1)
    ram = f"{gigabytes(machine.ram_available)} of {gigabytes(machine.ram_total)} RAM"
    gpus = "".join(
        f" and {gigabytes(gpu.free)} of {gigabytes(gpu.total)} on {gpu.name}" for gpu in machine.gpus
    )
    if machine.gpus and not machine.gpu_engine:
        gpus = " (the installed engine does not use the GPU)"
    text = f"{name} does not fit: {least.arithmetic}; free are {ram}{gpus}"
    relaxed = msgspec.structs.replace(options, ctx=None, parallel=None, gpu_layers=None)
    other = _first(name, geometry, machine, relaxed) if relaxed != options else None
    if other is not None:
        return f"{text}. It fits with {other.parallel} sequences of {other.ctx:,} tokens {other.placement}"
    if options.kv_type != "q8_0":
        halved = _first(name, geometry, machine, msgspec.structs.replace(relaxed, kv_type="q8_0"))
        if halved is not None:
            return f"{text}. It fits with a KV cache in q8_0"
    return f"{text}. A smaller model or quantisation is needed"
