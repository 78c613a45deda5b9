"""What a call asks of a model: what it leaves open is filled in, what the model does not do is refused by name."""

import math
from typing import Any

import pytest
from msgspec.structs import replace

from oxlo_local.calls import ImageCall, ImageFacts, Lora
from oxlo_local.engines.image.asking import asked, check_length, nearest, sized
from oxlo_local.errors import BadRequest, ContextLengthExceeded, UnsupportedValue
from tests.engines.image.conftest import asking

FACTS = ImageFacts(
    modes=["draw", "redraw", "inpaint"],
    sizes=[(512, 512), (768, 512), (512, 768)],
    steps=20,
    guidance=7.5,
    guided=True,
    negative=True,
    strength=0.8,
    loras=["ink", "clay"],
)
DISTILLED = replace(FACTS, guidance=0.0, guided=False, negative=False, steps=4)
LOOKING = replace(DISTILLED, strength=0.0, max_images=4, modes=["draw", "redraw"])


def test_what_is_left_open_is_the_models() -> None:
    found = asked(asking(), FACTS)
    assert (found.mode, found.width, found.height) == ("draw", 512, 512)
    assert (found.steps, found.guidance, found.strength, found.negative) == (20, 7.5, 0.0, "")
    again = asked(asking(images=["a"]), FACTS)
    assert (again.mode, again.strength) == ("redraw", 0.8)
    assert asked(asking(images=["a"], mask="m", strength=0.5), FACTS).mode == "inpaint"
    assert asked(asking(images=["a", "b"]), LOOKING).strength == 0.0


@pytest.mark.parametrize(
    ("more", "facts", "param", "words"),
    [
        ({"width": 513, "height": 512}, FACTS, "size", "does not draw 513x512; it draws 512x512, 768x512, 512x768"),
        ({"width": 0, "height": 0}, FACTS, "size", "0x0"),
        ({"width": 4097, "height": 4097}, FACTS, "size", "4097x4097"),
        ({"width": 512}, FACTS, "size", "go together"),
        ({"steps": 0}, FACTS, "steps", "1 to 150"),
        ({"steps": 151}, FACTS, "steps", "1 to 150"),
        ({"guidance": math.nan}, FACTS, "guidance_scale", "0 to 100, not nan"),
        ({"guidance": math.inf}, FACTS, "guidance_scale", "0 to 100"),
        ({"guidance": -1.0}, FACTS, "guidance_scale", "0 to 100"),
        ({"guidance": 7.5}, DISTILLED, "guidance_scale", "leave it out"),
        ({"guidance": math.nan}, DISTILLED, "guidance_scale", "leave it out"),
        ({"negative_prompt": "fog"}, DISTILLED, "negative_prompt", "takes no negative_prompt"),
        ({"negative_prompt": "fog", "guidance": 1.0}, FACTS, "negative_prompt", "needs more than 1"),
        ({"n": 0}, FACTS, "n", "at least one"),
        ({"seed": -1}, FACTS, "seed", "0 to"),
        ({"seed": 2**63 - 1}, FACTS, "seed", "0 to"),
        ({"quality": 101}, FACTS, "quality", "0 to 100"),
        ({"strength": 0.5}, FACTS, "strength", "drawn from noise"),
        ({"images": ["a"], "strength": 0.5}, LOOKING, "strength", "looks at images"),
        ({"images": ["a"], "strength": 0.0}, FACTS, "strength", "more than 0"),
        ({"images": ["a"], "strength": math.nan}, FACTS, "strength", "more than 0"),
        ({"images": ["a"], "strength": 1.01}, FACTS, "strength", "at most 1"),
        ({"images": ["a"], "strength": 0.2, "steps": 4}, FACTS, "strength", "none of 4 steps: take 0.25"),
        ({"images": ["a", "b"]}, FACTS, "image", "2 images: this model starts from 1"),
        ({"images": ["a"] * 5}, LOOKING, "image", "4 at most"),
        ({"mask": "m"}, FACTS, "image", "send the image too"),
        ({"images": ["a"], "mask": "m"}, LOOKING, "mask", "cannot draw where a mask allows; it can draw from text"),
        ({"loras": [Lora("oil")]}, FACTS, "loras", "no LoRA 'oil'; it has ink, clay"),
        ({"loras": [Lora("ink", math.nan)]}, FACTS, "loras", "weight"),
        ({"loras": [Lora("ink"), Lora("ink")]}, FACTS, "loras", "once"),
        ({"format": "jpeg", "labels": {"prompt": "x" * 70_000}}, FACTS, "prompt", "do not fit into a jpeg"),
    ],
)  # fmt: skip
def test_what_the_model_does_not_do_is_refused(
    more: dict[str, Any], facts: ImageFacts, param: str, words: str
) -> None:
    with pytest.raises(BadRequest, match=words) as caught:
        asked(asking(**more), facts)
    assert caught.value.param == param


def test_steps_that_are_left_open_suffice_for_the_strength() -> None:
    turbo = replace(DISTILLED, steps=1, strength=0.5)
    assert asked(asking(), turbo).steps == 1
    assert asked(asking(images=["a"]), turbo).steps == 2
    assert asked(asking(images=["a"], strength=0.1), turbo).steps == 10
    with pytest.raises(BadRequest, match=r"strength of 0\.001: this model takes 1 to 150 steps") as caught:
        asked(asking(images=["a"], strength=0.001), turbo)
    assert caught.value.param == "strength"


def test_neutral_values_are_no_offence() -> None:
    found = asked(asking(guidance=0.0, negative_prompt=""), DISTILLED)
    assert (found.guidance, found.negative) == (0.0, "")
    with pytest.raises(UnsupportedValue):
        asked(asking(guidance=1.0), DISTILLED)


def test_without_a_size_an_image_keeps_its_shape_as_nearly_as_is_listed() -> None:
    call: ImageCall = asking(images=["a"])
    for size, near in (((4000, 3000), (768, 512)), ((1000, 990), (512, 512)), ((512, 768), (512, 768))):
        found = sized(asked(call, FACTS), FACTS, size)
        assert (found.width, found.height) == near == nearest(size, FACTS.sizes)
    told = asked(asking(images=["a"], width=512, height=512), FACTS)
    assert sized(told, FACTS, (4000, 3000)) is told


def test_what_is_drawn_together_has_one_key() -> None:
    key = asked(asking(), FACTS).key(apart=False)
    assert asked(asking("d", prompt="other", seed=9, n=4, previews=2), FACTS).key(apart=False) == key
    others: list[dict[str, Any]] = [
        {"steps": 21}, {"guidance": 7.0}, {"negative_prompt": "x"}, {"width": 768, "height": 512},
        {"loras": [Lora("ink")]}, {"images": ["a"]}, {"images": ["a"], "mask": "m"},
    ]  # fmt: skip
    keys = {asked(asking(**more), FACTS).key(apart=False) for more in others}
    assert len(keys) == len(others) and key not in keys
    assert asked(asking("d"), FACTS).key(apart=True) != asked(asking("c"), FACTS).key(apart=True)


@pytest.mark.parametrize(
    ("previews", "of", "steps"),
    [(0, 20, []), (1, 20, [10]), (3, 20, [5, 10, 15]), (3, 4, [1, 2, 3]), (3, 2, [1]), (3, 1, [])],
)
def test_previews_are_spread_over_the_steps(previews: int, of: int, steps: list[int]) -> None:
    assert asked(asking(previews=previews), FACTS).dues(of) == steps


def test_a_prompt_that_is_too_long_is_told_both_numbers() -> None:
    check_length(77, 77, "prompt", whole=True)
    check_length(10_000, 0, "prompt", whole=True)
    with pytest.raises(ContextLengthExceeded, match="prompt has 78 tokens, and this model reads 77"):
        check_length(78, 77, "prompt", whole=True)
    with pytest.raises(ContextLengthExceeded, match="more than 900 tokens") as caught:
        check_length(900, 77, "negative_prompt", whole=False)
    assert caught.value.param == "negative_prompt"
