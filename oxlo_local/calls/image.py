"""A call for images, and the events that answer it. Structs only; imports nothing of ours."""

from typing import Literal

from msgspec import Struct, field

Mode = Literal["draw", "redraw", "inpaint"]  # from noise; from an image; from an image where a mask allows it


class Lora(Struct, frozen=True, omit_defaults=True):
    """Low-rank weights added for one call: a name from the model's `loras`, and how much of them."""

    name: str
    weight: float = 1.0


class ImageCall(Struct, frozen=True, omit_defaults=True, tag="image"):
    """`n` images of one prompt. The worker reads `images` and `mask`, paths; whoever submits removes them.

    Answered by `Denoised` after each step, `Preview`s as asked for, one `Drawn` an image in order of their index, then
    `Done`, whose usage says how many were drawn and by how many steps. Image i is drawn from the noise of `seed` + i.
    Without `images` it is drawn from noise; with one it is drawn again from it, as much as `strength` says; with a
    mask, only where that lets it.
    """

    id: str
    prompt: str
    seed: int  # 0 to 2**63 - 1 - n
    negative_prompt: str | None = None
    n: int = 1
    width: int | None = (
        None  # pixels; None = the model's own, or with `images` the nearest in shape to the first
    )
    height: int | None = None
    steps: int | None = None  # None = the model's own
    guidance: float | None = None  # None = the model's own
    images: list[str] = field(default_factory=list)
    mask: str | None = None  # a transparent, or in a mask without alpha a white, pixel is drawn anew
    strength: float | None = None  # 0 to 1: how much of `images` is lost; None = the model's own
    loras: list[Lora] = field(default_factory=list)
    previews: int = 0  # of each image, spread over its steps
    format: Literal["png", "jpeg", "webp"] = "png"
    quality: int = 100  # of jpeg and webp, 0 to 100
    labels: dict[str, str] = field(default_factory=dict)  # written into the file, beside `seed`, where given


class Denoised(Struct, frozen=True, tag="denoised", array_like=True):
    """Progress: `step` of `of` denoising steps of the images under way are done; `index` = the first of these."""

    id: str
    index: int
    step: int
    of: int


class Preview(Struct, frozen=True, tag="preview", array_like=True):
    """What image `index` looks like so far; `number` counts its previews from 0."""

    id: str
    index: int
    number: int
    data: bytes  # a file of the call's format


class Drawn(Struct, frozen=True, tag="drawn", array_like=True):
    """Image `index`, complete."""

    id: str
    index: int
    data: bytes  # a file of the call's format
    width: int
    height: int
    seed: int


class ImageFacts(Struct, frozen=True, omit_defaults=True):
    """What a loaded image model can do, and does where a call leaves it open."""

    modes: list[Mode]
    sizes: list[tuple[int, int]]  # width and height that it draws well; the first is the default
    steps: int
    guidance: float
    guided: bool  # it takes `guidance`
    negative: bool  # it takes `negative_prompt`
    strength: float  # of redraw and inpaint; 0 = it takes none
    max_steps: int = 150
    max_images: int = 1  # that one call may start from
    prompt_tokens: int = 0  # of the longest prompt; 0 = not said
    loras: list[str] = field(default_factory=list)


class ImageOptions(Struct, frozen=True, omit_defaults=True, tag="image"):
    """How the image engine runs a model; None = as its files or the machine suggest."""

    pipeline: str | None = None  # the diffusers class; None = what model_index.json names
    modes: dict[Mode, str] | None = None  # classes of modes that do not follow from that one's name
    config: str | None = None  # folder of the configuration that a single file lacks
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    device: Literal["cpu", "cuda"] | None = None
    offload: Literal["none", "model", "sequential"] | None = None
    weights: Literal["full", "int8", "int4"] | None = None
    threads: int | None = None
    batch: int | None = None  # images in one denoising loop
    sizes: list[tuple[int, int]] | None = None
    steps: int | None = None
    guidance: float | None = None
    guided: bool | None = None
    negative: bool | None = None
    strength: float | None = None
    compile: bool | None = None  # torch.compile, for `sizes` only, while the model is warmed
    loras: dict[str, str] | None = None  # name: path of a safetensors file
    fused: list[str] | None = None  # LoRAs that are part of the model, not of single calls
    spacing: Literal["leading", "trailing", "linspace"] | None = None  # of the scheduler's timesteps
