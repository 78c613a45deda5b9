"""Pure: what a call asks of a model, with all that it leaves open filled in, or why the model does not do that.

Nothing is scaled, cut or ignored in silence: a size that the model does not list, guidance that it was distilled to do
without, a prompt longer than its text encoder reads: each is refused in words that name the field and what would do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from oxlo_local.calls import ImageCall, ImageFacts, Lora, Mode
from oxlo_local.errors import BadRequest, ContextLengthExceeded, UnsupportedValue

SEEDS = 2**63
HEAVIEST = 4.0  # weight of a LoRA, either way
LABELS = 60_000  # bytes that a JPEG has room for beside its picture


@dataclass(frozen=True)
class Key:
    """What images drawn in one loop have in common."""

    mode: Mode
    width: int
    height: int
    steps: int
    guidance: float
    negative: bool
    strength: float
    loras: tuple[Lora, ...]
    sources: str  # the call whose images are looked at, where all of a loop look at the same ones


@dataclass(frozen=True)
class Asked:
    """A call that the model does."""

    call: ImageCall
    mode: Mode
    width: int
    height: int
    steps: int
    guidance: float
    strength: float  # 0 = none is given to the pipeline
    negative: str

    def key(self, *, apart: bool) -> Key:
        """With which images its own can be drawn; `apart`: with none of another call."""
        return Key(
            self.mode,
            self.width,
            self.height,
            self.steps,
            self.guidance,
            bool(self.negative),
            self.strength,
            tuple(self.call.loras),
            self.call.id if apart else "",
        )

    def dues(self, of: int) -> list[int]:
        """The steps of `of` after which previews are due, evenly spread; fewer where there are fewer steps."""
        wanted = min(self.call.previews, of - 1)
        return [math.ceil(of * (number + 1) / (wanted + 1)) for number in range(wanted)]


def asked(call: ImageCall, facts: ImageFacts) -> Asked:
    """What the call asks for. Of a call with images the size is a guess until `sized` has seen the first.

    Raises BadRequest or UnsupportedValue.
    """
    mode: Mode = "inpaint" if call.mask is not None else "redraw" if call.images else "draw"
    _check_mode(call, mode, facts)
    _check_amounts(call)
    width, height = _listed(call, facts) or facts.sizes[0]
    guidance = _guidance(call, facts)
    negative = call.negative_prompt or ""
    if negative and not facts.negative:
        raise UnsupportedValue("this model takes no negative_prompt", param="negative_prompt")
    if negative and guidance <= 1:
        raise UnsupportedValue(
            f"a negative_prompt has no effect at a guidance_scale of {guidance:g}: it needs more than 1",
            param="negative_prompt",
        )
    strength = _strength(call, mode, facts)
    steps = _steps(call, strength, facts)
    _check_loras(call, facts)
    return Asked(call, mode, width, height, steps, guidance, strength, negative)


def sized(asked: Asked, facts: ImageFacts, source: tuple[int, int]) -> Asked:
    """The same, in the listed size that is nearest in shape to its first image where the call names none."""
    if asked.call.width is not None:
        return asked
    width, height = nearest(source, facts.sizes)
    return replace(asked, width=width, height=height)


def nearest(size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size itself if it is listed, else the first of those that are nearest in shape."""
    if size in sizes:
        return size
    shape = math.log(size[0] / size[1])
    return min(sizes, key=lambda one: abs(math.log(one[0] / one[1]) - shape))


def check_length(tokens: int, limit: int, param: str, *, whole: bool) -> None:
    """Raises ContextLengthExceeded where a prompt has more tokens than the text encoder reads; `limit` 0 = not known.

    `whole`: these are all of its tokens.
    """
    if limit and tokens > limit:
        more = "" if whole else "more than "
        raise ContextLengthExceeded(
            f"{param} has {more}{tokens:,} tokens, and this model reads {limit:,}: shorten it", param=param
        )


def _check_mode(call: ImageCall, mode: Mode, facts: ImageFacts) -> None:
    if mode == "inpaint" and not call.images:
        raise BadRequest("a mask says where an image is drawn anew: send the image too", param="image")
    if mode not in facts.modes:
        does = {
            "draw": "draw from text",
            "redraw": "draw an image again",
            "inpaint": "draw where a mask allows",
        }
        param = {"draw": "image", "redraw": "image", "inpaint": "mask"}[mode]
        raise UnsupportedValue(
            f"this model cannot {does[mode]}; it can {' and '.join(does[each] for each in facts.modes)}",
            param=param,
        )
    most = 1 if mode == "inpaint" else facts.max_images
    if len(call.images) > most:
        raise BadRequest(f"{len(call.images)} images: this model starts from {most} at most", param="image")


def _check_amounts(call: ImageCall) -> None:
    if call.n < 1:
        raise BadRequest(f"n = {call.n}: at least one image is drawn", param="n")
    if call.seed < 0 or call.seed + call.n >= SEEDS:
        raise BadRequest(f"a seed is 0 to 2**63 - 1 - n, not {call.seed}", param="seed")
    if not 0 <= call.quality <= 100:
        raise BadRequest(f"a quality is 0 to 100, not {call.quality}", param="quality")
    size = sum(len(text.encode()) for label in call.labels.items() for text in label)
    if call.format != "png" and size > LABELS:
        raise BadRequest(
            f"{size:,} bytes of text do not fit into a {call.format} file: take png, or leave the metadata out",
            param="prompt",
        )


def _listed(call: ImageCall, facts: ImageFacts) -> tuple[int, int] | None:
    if call.width is None and call.height is None:
        return None
    if call.width is None or call.height is None:
        raise BadRequest("width and height go together", param="size")
    if (call.width, call.height) not in facts.sizes:
        known = ", ".join(f"{width}x{height}" for width, height in facts.sizes)
        raise BadRequest(
            f"this model does not draw {call.width}x{call.height}; it draws {known}", param="size"
        )
    return call.width, call.height


def _guidance(call: ImageCall, facts: ImageFacts) -> float:
    guidance = facts.guidance if call.guidance is None else call.guidance
    if not facts.guided and guidance != facts.guidance:
        raise UnsupportedValue(
            "this model was distilled to do without guidance_scale and would ignore it: leave it out",
            param="guidance_scale",
        )
    if not (math.isfinite(guidance) and 0 <= guidance <= 100):
        raise BadRequest(f"a guidance_scale is 0 to 100, not {guidance}", param="guidance_scale")
    return guidance


def _strength(call: ImageCall, mode: Mode, facts: ImageFacts) -> float:
    if call.strength is not None and (mode == "draw" or not facts.strength):
        why = "what is drawn from noise" if mode == "draw" else "this model, which looks at images instead"
        raise UnsupportedValue(f"a strength has no effect on {why}: leave it out", param="strength")
    if mode == "draw" or not facts.strength:
        return 0.0
    strength = facts.strength if call.strength is None else call.strength
    if not (math.isfinite(strength) and 0 < strength <= 1):
        raise BadRequest(f"a strength is more than 0 and at most 1, not {strength}", param="strength")
    return strength


def _steps(call: ImageCall, strength: float, facts: ImageFacts) -> int:
    """As many as are asked for; else the model's own, or so many that some are left of them at this strength."""
    if call.steps is None:
        steps = max(facts.steps, math.ceil(1 / strength) if strength else 1)
    else:
        steps = call.steps
    if not 1 <= steps <= facts.max_steps:
        wanted = f"{steps} steps" if call.steps is not None else f"a strength of {strength:g}"
        param = "steps" if call.steps is not None else "strength"
        raise BadRequest(f"{wanted}: this model takes 1 to {facts.max_steps} steps", param=param)
    if strength and int(steps * strength) < 1:
        least = math.ceil(100 / steps) / 100
        raise BadRequest(
            f"a strength of {strength:g} leaves none of {steps} steps: take {least:g} or more steps",
            param="strength",
        )
    return steps


def _check_loras(call: ImageCall, facts: ImageFacts) -> None:
    names = [lora.name for lora in call.loras]
    for lora in call.loras:
        if lora.name not in facts.loras:
            known = f"it has {', '.join(facts.loras)}" if facts.loras else "it has none"
            raise BadRequest(f"this model has no LoRA {lora.name!r}; {known}", param="loras")
        if not abs(lora.weight) <= HEAVIEST:
            raise BadRequest(
                f"a LoRA's weight is -{HEAVIEST:g} to {HEAVIEST:g}, not {lora.weight}", param="loras"
            )
    if len(set(names)) < len(names):
        raise BadRequest("a LoRA can be named once", param="loras")
