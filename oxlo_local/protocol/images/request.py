"""A request for images, as JSON or as a form: its fields read and checked, and what the engine is told of it.

What depends on the model (sizes, guidance, what it can start from) is checked here too, by the facts of the worker, so
that such a request is refused before it is reserved; the engine checks it again, since a worker that is still loading
has told none.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from oxlo_local.calls import ImageCall, ImageFacts, Lora
from oxlo_local.errors import BadRequest, Unavailable, UnsupportedValue
from oxlo_local.protocol import forms, parts
from oxlo_local.protocol.fields import Field, refuse_unhonoured
from oxlo_local.protocol.images import sources
from oxlo_local.protocol.images.fields import EDITS, GENERATIONS, VARIATIONS
from oxlo_local.protocol.images.sources import MOST, ImageRef, Sent

Task = Literal["generate", "edit", "vary"]
Quality = Literal["auto", "standard", "low", "medium", "high", "hd"]
Format = Literal["png", "jpeg", "webp"]

IMAGE, MASK = "image", "mask"
PROMPT_CHARACTERS: Final = 32_000
_TABLES: Final[dict[Task, tuple[Field, ...]]] = {"generate": GENERATIONS, "edit": EDITS, "vary": VARIATIONS}
_KINDS: Final = forms.Kinds(lists=frozenset(("loras",)), objects=frozenset(("metadata", "svg")))
_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})")
_SHARES: Final = {"low": 0.5, "high": 2.0, "hd": 2.0}  # of the model's own steps

_Prompt = Annotated[str, Meta(max_length=PROMPT_CHARACTERS)]
_Side = Annotated[int, Meta(ge=1, le=16_384)]
_Steps = Annotated[int, Meta(ge=1, le=150)]
_Guidance = Annotated[float, Meta(ge=0, le=30)]
_LoraName = Annotated[str, Meta(min_length=1, max_length=200)]


class LoraAsked(Struct, frozen=True, forbid_unknown_fields=True):
    """Low-rank weights by name, and how much of them."""

    name: _LoraName
    weight: Annotated[float, Meta(ge=-4, le=4)] = 1.0


class ImageRequest(Struct, frozen=True, kw_only=True):
    """A request whose fields have the right types and ranges; None = not given. Files of a form are kept apart."""

    prompt: _Prompt | None = None
    image: str | ImageRef | list[str | ImageRef] | None = None
    images: list[str | ImageRef] | None = None
    mask: str | ImageRef | None = None
    model: parts.ModelName | None = None
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    size: str | None = None
    width: _Side | None = None
    height: _Side | None = None
    quality: Quality | None = None
    steps: _Steps | None = None
    num_inference_steps: _Steps | None = None
    guidance_scale: _Guidance | None = None
    guidance: _Guidance | None = None
    negative_prompt: _Prompt | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 11)] | None = None
    strength: Annotated[float, Meta(gt=0, le=1)] | None = None
    loras: Annotated[list[_LoraName | LoraAsked], Meta(max_length=16)] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Format | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    moderation: Literal["low", "auto"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Meta(ge=0, le=3)] | None = None
    progress: bool | None = None
    embed_metadata: bool | None = None
    user: str | None = None
    safety_identifier: Annotated[str, Meta(max_length=64)] | None = None
    metadata: dict[str, str] | None = None

    @property
    def count(self) -> int:
        """Images asked for."""
        return self.n or 1

    @property
    def format(self) -> Format:
        """Of the files."""
        return self.output_format or "png"

    @property
    def by_url(self) -> bool:
        """Whether the answer says where the files are, instead of bringing them."""
        return self.response_format == "url"

    @property
    def own_steps(self) -> int | None:
        """The steps that are asked for by number. Raises BadRequest where two names differ."""
        return parts.one_of(self.steps, self.num_inference_steps, "steps", "num_inference_steps")

    @property
    def own_guidance(self) -> float | None:
        """The guidance asked for. Raises BadRequest where two names differ."""
        return parts.one_of(self.guidance_scale, self.guidance, "guidance_scale", "guidance")

    @property
    def share(self) -> float:
        """How many of the model's own steps the quality stands for: 1 = all of them."""
        return _SHARES.get(self.quality or "auto", 1.0)

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height; None = the model's own. Raises BadRequest for what is none, or half of one."""
        sides = None
        if self.size is not None and self.size != "auto":
            found = _SIZE.fullmatch(self.size)
            if found is None:
                raise BadRequest(
                    f"'size' is {parts.printable(self.size)}; write it as 1024x1024, or auto.", param="size"
                )
            sides = int(found[1]), int(found[2])
        if (self.width is None) != (self.height is None):
            missing = "width" if self.width is None else "height"
            raise BadRequest(f"'width' and 'height' belong together: '{missing}' is missing.", param=missing)
        if self.width is None or self.height is None:
            return sides
        if sides not in (None, (self.width, self.height)):
            raise BadRequest("'size' differs from 'width' and 'height'; send one of them.", param="width")
        return self.width, self.height


class Asked(Struct, frozen=True):
    """A request and the files that came in its JSON."""

    request: ImageRequest
    images: list[Sent] = []
    mask: Sent | None = None


# -- reading ----------------------------------------------------------------------------------------------------------


def decode(body: bytes, task: Task, *, strict: bool, max_n: int) -> tuple[Asked, list[str]]:
    """The request in a JSON body and one warning for each unknown field. Raises BadRequest and its kinds, TooLarge."""
    members = parts.read_object(body)
    request, warnings = _decode(members, task, strict=strict, max_n=max_n, texts=False)
    if task == "generate":
        return Asked(request), warnings
    if request.image is not None and request.images is not None:
        raise BadRequest("'image' and 'images' are two names of one thing; send one.", param="images")
    name = "images" if request.images is not None else IMAGE
    images = sources.read_all(request.images if request.images is not None else request.image, name)
    mask = None if request.mask is None else sources.read(request.mask, MASK)
    # Only the files are kept: their texts are as long again.
    return Asked(replace(request, image=None, images=None, mask=None), images, mask), warnings


def decode_form(
    fields: Sequence[tuple[str, str]], task: Task, *, strict: bool, max_n: int
) -> tuple[Asked, list[str]]:
    """The request in a form's text fields, as `decode` has it. Its files are none of them."""
    members = forms.members_of(fields, _KINDS)
    for name in members:
        stem = name.partition("[")[0]
        if stem in (IMAGE, MASK, "images"):
            raise BadRequest(f"'{stem}' must be a file: a part of the form with a filename.", param=stem)
    request, warnings = _decode(members, task, strict=strict, max_n=max_n, texts=True)
    return Asked(request), warnings


def _decode(
    members: Mapping[str, object], task: Task, *, strict: bool, max_n: int, texts: bool
) -> tuple[ImageRequest, list[str]]:
    table = _TABLES[task]
    known = frozenset(field.name for field in table)
    refuse_unhonoured(members, table)
    request = parts.convert({k: v for k, v in members.items() if k in known}, ImageRequest, strict=not texts)
    _check(request, task, max_n)
    return request, parts.warn_unknown(parts.unknown_names(members, known), known, strict=strict)


def _check(request: ImageRequest, task: Task, max_n: int) -> None:
    """Rules that types cannot say. Raises BadRequest."""
    parts.check_metadata(request.metadata)
    _check_prompt(request, task)
    if request.count > max_n:
        raise BadRequest(f"'n' is {request.n}, and this server allows at most {max_n}.", param="n")
    _ = request.pixels, request.own_guidance
    _check_numbers(request)
    _check_output(request)
    if request.own_steps is not None and request.share != 1:
        raise BadRequest(
            f"'quality' {request.quality} and 'steps' both say how many steps; send one of them.",
            param="quality",
        )
    names = [each.name for each in loras_of(request)]
    if len(set(names)) < len(names):
        raise BadRequest("'loras' names the same weights twice.", param="loras")


def _check_prompt(request: ImageRequest, task: Task) -> None:
    if task == "vary":
        return
    if request.prompt is None:
        raise BadRequest("Missing required parameter: 'prompt'.", param="prompt")
    if not request.prompt.strip():
        raise BadRequest("'prompt' is empty; say what to draw.", param="prompt")


def _check_numbers(request: ImageRequest) -> None:
    """NaN is neither below nor above a limit, and comes as text in forms."""
    numbers = {
        "guidance_scale": request.guidance_scale,
        "guidance": request.guidance,
        "strength": request.strength,
        **{f"loras[{at}].weight": lora.weight for at, lora in enumerate(loras_of(request))},
    }
    for name, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise BadRequest(f"'{name}' must be a number.", param=name)


def _check_output(request: ImageRequest) -> None:
    if request.background == "transparent":
        raise UnsupportedValue(
            "'background' transparent is not supported: models here draw every pixel; leave it out, or send opaque.",
            param="background",
        )
    if request.format == "png" and request.output_compression not in (None, 100):
        raise UnsupportedValue(
            "'output_compression' is for jpeg and webp; a png loses nothing. Leave it out, or send another "
            "'output_format'.",
            param="output_compression",
        )
    if request.stream and request.by_url:
        raise UnsupportedValue(
            "A stream brings the images themselves; send 'response_format' b64_json, or no 'stream'.",
            param="response_format",
        )
    for name in ("partial_images", "progress"):
        if getattr(request, name) and not request.stream:
            raise BadRequest(f"'{name}' is only allowed with 'stream': true.", param=name)


def loras_of(request: ImageRequest) -> list[Lora]:
    """The low-rank weights asked for."""
    return [
        Lora(each) if isinstance(each, str) else Lora(each.name, each.weight) for each in request.loras or ()
    ]


# -- by the model -----------------------------------------------------------------------------------------------------


def check_files(task: Task, images: int, *, mask: bool) -> None:
    """Raise BadRequest for a request without its image, or with a mask that belongs to none."""
    if images == 0 and task != "generate":
        what = "a mask is laid over one" if mask else "send the one to start from"
        raise BadRequest(f"Missing required parameter: 'image'; {what}.", param=IMAGE)
    if images > MOST:
        raise BadRequest(f"'image' has {images} files; at most {MOST} are allowed.", param=IMAGE)
    if images > 1 and task == "vary":
        raise BadRequest("A variation has one image to start from.", param=IMAGE)


def check_model(request: ImageRequest, facts: ImageFacts, images: int, *, mask: bool) -> None:
    """Raise BadRequest and its kinds for what this model does not do."""
    if images and "redraw" not in facts.modes:
        raise UnsupportedValue("This model draws from words only; it starts from no image.", param=IMAGE)
    if mask and "inpaint" not in facts.modes:
        raise UnsupportedValue("This model takes no 'mask'.", param=MASK)
    if not images and "draw" not in facts.modes:
        raise UnsupportedValue(
            "This model only draws from an image; ask for it at /v1/images/edits.", param="model"
        )
    most = 1 if mask else facts.max_images
    if images > most:
        beside = " beside a mask" if mask else ""
        raise BadRequest(
            f"{images} images were sent, and this model starts from {most} at most{beside}.", param=IMAGE
        )
    _check_size(request, facts)
    _check_taste(request, facts, images)
    for lora in loras_of(request):
        if lora.name not in facts.loras:
            has = f"has {', '.join(facts.loras)}" if facts.loras else "has none"
            raise UnsupportedValue(
                f"'loras' names {parts.printable(lora.name)}, and this model {has}.", param="loras"
            )


def _check_size(request: ImageRequest, facts: ImageFacts) -> None:
    pixels = request.pixels
    if pixels is not None and pixels not in facts.sizes:
        raise UnsupportedValue(
            f"This model does not draw {named(pixels)}; it draws {', '.join(map(named, facts.sizes))}. Nothing is "
            "scaled.",
            param="size" if request.width is None else "width",
        )


def _check_taste(request: ImageRequest, facts: ImageFacts, images: int) -> None:
    guidance = request.own_guidance
    if guidance not in (None, facts.guidance) and not facts.guided:
        name = "guidance" if request.guidance_scale is None else "guidance_scale"
        raise UnsupportedValue(
            f"'{name}' has no effect on this model, which was distilled to draw without; leave it out.",
            param=name,
        )
    if request.negative_prompt and not facts.negative:
        raise UnsupportedValue(
            "'negative_prompt' has no effect on this model; leave it out.", param="negative_prompt"
        )
    if request.negative_prompt and (facts.guidance if guidance is None else guidance) <= 1:
        raise UnsupportedValue(
            "'negative_prompt' has no effect without guidance; send a 'guidance_scale' above 1.",
            param="negative_prompt",
        )
    steps = request.own_steps
    if steps is not None and steps > facts.max_steps:
        name = "steps" if request.steps is not None else "num_inference_steps"
        raise BadRequest(f"'{name}' is {steps}; this model takes at most {facts.max_steps}.", param=name)
    if request.strength is not None and images and not facts.strength:
        raise UnsupportedValue("'strength' has no effect on this model; leave it out.", param="strength")


def steps_of(request: ImageRequest, facts: ImageFacts | None) -> int | None:
    """Steps to ask of the engine; None = its own.

    Raises Unavailable where the quality is a share of what a model that is still loading (`facts` None) has not told.
    """
    if request.own_steps is not None or request.share == 1:
        return request.own_steps
    if facts is None:
        raise Unavailable(
            f"The model is still loading, and what 'quality' {request.quality} means depends on it.",
            retry_after=1,
        )
    return min(facts.max_steps, max(1, round(facts.steps * request.share)))


def named(pixels: tuple[int, int]) -> str:
    """A size as clients write it."""
    return f"{pixels[0]}x{pixels[1]}"


def to_call(
    request: ImageRequest,
    id: str,
    *,
    seed: int,
    steps: int | None,
    model: str,
    images: Iterable[str] = (),
    mask: str | None = None,
) -> ImageCall:
    """The request in the engine's words; `images` and `mask` are where the files lie."""
    width, height = request.pixels or (None, None)
    labels = {"prompt": request.prompt, "negative_prompt": request.negative_prompt, "model": model}
    return ImageCall(
        id=id,
        prompt=request.prompt or "",
        seed=seed,
        negative_prompt=request.negative_prompt or None,
        n=request.count,
        width=width,
        height=height,
        steps=steps,
        guidance=request.own_guidance,
        images=list(images),
        mask=mask,
        strength=request.strength,
        loras=loras_of(request),
        previews=request.partial_images or 0,
        format=request.format,
        quality=100 if request.output_compression is None else request.output_compression,
        labels={name: text for name, text in labels.items() if text} if request.embed_metadata else {},
    )
