"""Image requests as they are read: every field, every way to get it wrong, and what the model's facts allow."""

import json
import math
import time

import pytest
from msgspec.structs import replace

from oxlo_local.calls import ImageFacts, Lora
from oxlo_local.errors import BadRequest, OxloError, Unavailable, UnknownParameter, UnsupportedValue
from oxlo_local.protocol.images.request import (
    Asked,
    ImageRequest,
    Task,
    check_files,
    check_model,
    decode,
    decode_form,
    steps_of,
    to_call,
)

GUIDED = ImageFacts(
    modes=["draw", "redraw", "inpaint"],
    sizes=[(64, 64), (64, 96)],
    steps=20,
    guidance=5.0,
    guided=True,
    negative=True,
    strength=0.6,
    max_steps=100,
    loras=["ink"],
)
DISTILLED = ImageFacts(
    modes=["draw"], sizes=[(1024, 1024)], steps=4, guidance=0.0, guided=False, negative=False, strength=0.0
)
PNG = "data:image/png;base64,iVBORw0KGgo="


def read(task: Task = "generate", *, strict: bool = True, max_n: int = 128, **fields: object) -> Asked:
    body = {"prompt": "a red circle", **({} if task == "generate" else {"image": PNG}), **fields}
    return decode(json.dumps(body).encode(), task, strict=strict, max_n=max_n)[0]


def asked(**fields: object) -> ImageRequest:
    return read(**fields).request  # type: ignore[arg-type]


def refusal(task: Task = "generate", **fields: object) -> OxloError:
    begun = time.monotonic()
    with pytest.raises(OxloError) as caught:
        read(task, **fields)  # type: ignore[arg-type]
    assert time.monotonic() - begun < 1 and len(caught.value.message) < 400
    return caught.value


# -- what is wrong by itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n\t"}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "x" * (1 << 20)}, "prompt"),
        ({"prompt": ["x"]}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": 1000}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 3, "max_n": 2}, "n"),
        ({"size": "0"}, "size"),
        ({"size": "64"}, "size"),
        ({"size": "64x"}, "size"),
        ({"size": "-64x64"}, "size"),
        ({"size": "64x64x64"}, "size"),
        ({"size": "6٤x64\n"}, "size"),
        ({"size": 64}, "size"),
        ({"width": 0, "height": 64}, "width"),
        ({"width": 64}, "height"),
        ({"height": 64}, "width"),
        ({"width": 64, "height": 64, "size": "64x96"}, "width"),
        ({"width": 1 << 40, "height": 64}, "width"),
        ({"steps": 0}, "steps"),
        ({"steps": 151}, "steps"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"steps": 2, "num_inference_steps": 3}, "num_inference_steps"),
        ({"steps": 2, "quality": "hd"}, "quality"),
        ({"quality": "best"}, "quality"),
        ({"guidance_scale": math.nan}, "guidance_scale"),
        ({"guidance_scale": math.inf}, "guidance_scale"),
        ({"guidance_scale": 31}, "guidance_scale"),
        ({"guidance": -1}, "guidance"),
        ({"guidance": 2, "guidance_scale": 3}, "guidance"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"negative_prompt": "x" * 32_001}, "negative_prompt"),
        ({"response_format": "file"}, "response_format"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 101, "output_format": "jpeg"}, "output_compression"),
        ({"output_compression": 50}, "output_compression"),
        ({"background": "transparent"}, "background"),
        ({"background": "none"}, "background"),
        ({"moderation": "high"}, "moderation"),
        ({"style": "natural"}, "style"),
        ({"svg": {"model": "x"}}, "svg"),
        ({"complexity": "low"}, "complexity"),
        ({"frame_count": 9}, "frame_count"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"partial_images": 1}, "partial_images"),
        ({"progress": True}, "progress"),
        ({"stream": True, "response_format": "url"}, "response_format"),
        ({"loras": ["a", "a"]}, "loras"),
        ({"loras": [{"name": ""}]}, "loras[0].name"),
        ({"loras": [{"name": "a", "weight": 5}]}, "loras[0].weight"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"model": ""}, "model"),
        ({"safety_identifier": "x" * 65}, "safety_identifier"),
    ],
)
def test_every_fault_names_its_field(fields: dict[str, object], param: str) -> None:
    error = refusal(**fields)  # type: ignore[arg-type]
    assert isinstance(error, BadRequest) and error.param == param


def test_what_asks_for_nothing_is_accepted() -> None:
    request = asked(
        n=None, size="auto", quality="auto", moderation="low", background="opaque", style="vivid", user="u",
        output_compression=100, partial_images=0, stream=False, progress=False, response_format=None,
    )  # fmt: skip
    assert (request.count, request.format, request.pixels, request.share) == (1, "png", None, 1.0)


def test_prompts_of_any_script_are_prompts() -> None:
    assert asked(prompt="🔴🟦").prompt == "🔴🟦" and asked(prompt="x" * 32_000).prompt


def test_two_forms_of_one_thing_may_agree() -> None:
    request = asked(size="64x96", width=64, height=96, steps=3, num_inference_steps=3, quality="standard")
    assert (request.pixels, request.own_steps) == ((64, 96), 3)


def test_an_unknown_field_is_named() -> None:
    _, warnings = decode(b'{"prompt": "x", "strenght": 1}', "generate", strict=False, max_n=10)
    assert warnings == ['unknown field "strenght" has no effect']
    assert isinstance(refusal(strenght=1), UnknownParameter)


# -- forms -------------------------------------------------------------------------------------------------------------


def test_forms() -> None:
    fields = [("prompt", "x"), ("n", "2"), ("stream", "true"), ("guidance_scale", "7.5"), ("loras[]", "ink")]
    request = decode_form([*fields, ("metadata[a]", "b")], "edit", strict=True, max_n=10)[0].request
    assert (request.n, request.stream, request.guidance_scale, request.loras) == (2, True, 7.5, ["ink"])
    assert request.metadata == {"a": "b"}


@pytest.mark.parametrize(
    ("field", "param"),
    [
        (("image", "abc"), "image"),
        (("image[]", "abc"), "image"),
        (("mask", "abc"), "mask"),
        (("guidance_scale", "nan"), "guidance_scale"),
        (("strength", "NaN"), "strength"),
        (("n", "two"), "n"),
        (("svg[model]", "x"), "svg"),
    ],
)
def test_faults_of_forms(field: tuple[str, str], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_form([("prompt", "x"), field], "edit", strict=True, max_n=10)
    assert caught.value.param == param


def test_a_variation_needs_no_words() -> None:
    body = json.dumps({"image": PNG, "n": 2}).encode()
    found = decode(body, "vary", strict=True, max_n=10)[0]
    assert found.request.prompt is None and len(found.images) == 1
    assert to_call(found.request, "i", seed=1, steps=None, model="m", images=["/a"]).prompt == ""


@pytest.mark.parametrize(
    ("task", "images", "mask", "fine"),
    [
        ("generate", 0, False, True),
        ("edit", 0, False, False),
        ("edit", 0, True, False),
        ("edit", 16, True, True),
        ("edit", 17, False, False),
        ("vary", 1, False, True),
        ("vary", 0, False, False),
        ("vary", 2, False, False),
    ],
)
def test_how_many_files_an_endpoint_takes(task: Task, images: int, mask: bool, fine: bool) -> None:
    if fine:
        check_files(task, images, mask=mask)
        return
    with pytest.raises(BadRequest) as caught:
        check_files(task, images, mask=mask)
    assert caught.value.param == "image"


# -- by the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "images", "mask"),
    [
        ({}, 0, False),
        ({"size": "64x96", "steps": 100, "guidance_scale": 30, "negative_prompt": "blue"}, 0, False),
        ({"width": 64, "height": 64, "loras": ["ink"]}, 1, False),
        ({"negative_prompt": ""}, 1, True),
    ],
)
def test_what_the_model_does(fields: dict[str, object], images: int, mask: bool) -> None:
    check_model(asked(**fields), GUIDED, images, mask=mask)


@pytest.mark.parametrize(
    ("facts", "fields", "images", "mask", "param", "words"),
    [
        (GUIDED, {"size": "0x0"}, 0, False, "size", "64x64, 64x96"),
        (GUIDED, {"size": "63x63"}, 0, False, "size", "64x64, 64x96"),
        (GUIDED, {"size": "4097x4097"}, 0, False, "size", "64x64, 64x96"),
        (GUIDED, {"width": 96, "height": 64}, 0, False, "width", "64x64, 64x96"),
        (GUIDED, {"steps": 101}, 0, False, "steps", "at most 100"),
        (GUIDED, {"num_inference_steps": 101}, 0, False, "num_inference_steps", "at most 100"),
        (GUIDED, {"negative_prompt": "x", "guidance": 1}, 0, False, "negative_prompt", "above 1"),
        (GUIDED, {"loras": ["oil"]}, 0, False, "loras", "has ink"),
        (GUIDED, {}, 2, False, "image", "from 1 at most"),
        (replace(GUIDED, max_images=4), {}, 2, True, "image", "beside a mask"),
        (DISTILLED, {"guidance_scale": 7.5}, 0, False, "guidance_scale", "distilled"),
        (DISTILLED, {"guidance": 7.5}, 0, False, "guidance", "distilled"),
        (DISTILLED, {"negative_prompt": "x"}, 0, False, "negative_prompt", "no effect"),
        (DISTILLED, {"loras": ["oil"]}, 0, False, "loras", "has none"),
        (DISTILLED, {}, 1, False, "image", "from words only"),
        (ImageFacts(["redraw"], [(8, 8)], 1, 0, False, False, 0.5), {}, 0, False, "model", "edits"),
        (ImageFacts(["redraw"], [(8, 8)], 1, 0, False, False, 0.5), {}, 1, True, "mask", "no 'mask'"),
    ],
)
def test_what_the_model_does_not(
    facts: ImageFacts, fields: dict[str, object], images: int, mask: bool, param: str, words: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        check_model(asked(**fields), facts, images, mask=mask)
    assert caught.value.param == param and words in caught.value.message


def test_a_distilled_model_may_be_asked_for_its_own_guidance() -> None:
    check_model(asked(guidance_scale=0), DISTILLED, 0, mask=False)


def test_strength_is_for_models_that_have_it() -> None:
    facts = ImageFacts(["redraw"], [(8, 8)], 1, 0, False, False, 0.0)
    with pytest.raises(UnsupportedValue) as caught:
        check_model(read("edit", strength=0.5).request, facts, 1, mask=False)
    assert caught.value.param == "strength"


@pytest.mark.parametrize(
    ("fields", "facts", "steps"),
    [
        ({}, GUIDED, None),
        ({"quality": "standard"}, None, None),
        ({"steps": 7, "quality": "auto"}, None, 7),
        ({"quality": "low"}, GUIDED, 10),
        ({"quality": "hd"}, GUIDED, 40),
        ({"quality": "high"}, replace(GUIDED, steps=90), 100),
        ({"quality": "low"}, replace(GUIDED, steps=1), 1),
    ],
)
def test_quality_is_a_share_of_the_models_steps(
    fields: dict[str, object], facts: ImageFacts | None, steps: int | None
) -> None:
    assert steps_of(asked(**fields), facts) == steps


def test_a_quality_waits_for_a_model_that_is_still_loading() -> None:
    with pytest.raises(Unavailable):
        steps_of(asked(quality="hd"), None)


def test_what_the_engine_is_told() -> None:
    request = asked(
        n=3, size="64x96", guidance=4, negative_prompt="blue", loras=["ink", {"name": "oil", "weight": 0.5}],
        output_format="webp", output_compression=40, stream=True, partial_images=2, embed_metadata=True,
    )  # fmt: skip
    call = to_call(request, "i", seed=9, steps=5, model="m", images=["/a"], mask="/b")
    assert (call.prompt, call.seed, call.n, call.width, call.height) == ("a red circle", 9, 3, 64, 96)
    assert (call.steps, call.guidance, call.negative_prompt, call.previews) == (5, 4.0, "blue", 2)
    assert (call.format, call.quality, call.images, call.mask) == ("webp", 40, ["/a"], "/b")
    assert call.loras == [Lora("ink"), Lora("oil", 0.5)]
    assert call.labels == {"prompt": "a red circle", "negative_prompt": "blue", "model": "m"}
    assert to_call(asked(), "i", seed=9, steps=None, model="m").labels == {}
