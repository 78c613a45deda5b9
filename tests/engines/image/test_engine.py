"""The image engine behind its three verbs: what goes up, in which order, who shares a loop, what company changes."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageChops

from oxlo_local.calls import (
    Denoised,
    Done,
    Drawn,
    Event,
    Failed,
    ImageCall,
    Preview,
    Started,
    TextCall,
)
from oxlo_local.engines.image.engine import ImageEngine
from tests.engines.driving import end, run
from tests.engines.image.conftest import OPTIONS, asking, drawn, pixels
from tests.engines.image_files import NOISE, file_of

TOO_MUCH = 1 << 50  # bytes, which no machine has
COMPANY = 2  # of 255 a channel: by so much an image may differ that was drawn in company


def furthest(one: Image.Image, other: Image.Image) -> int:
    """The largest difference in any channel."""
    return max(high for _, high in ImageChops.difference(one, other).getextrema())  # type: ignore[misc]


def saved(folder: Path, name: str, image: Image.Image, form: str = "PNG") -> str:
    path = folder / name
    path.write_bytes(file_of(image, form))
    return str(path)


def test_the_order_of_events(engine: ImageEngine) -> None:
    events = run(engine, asking(n=2, steps=5, previews=2, labels={"prompt": "a red circle"}))["c"]
    assert isinstance(events[0], Started) and events[0].prompt_tokens == len("aredcircle") + 2
    told = [(one.index, one.step, one.of) for one in events if isinstance(one, Denoised)]
    assert told == [(0, step, 5) for step in range(1, 6)]
    previews = [one for one in events if isinstance(one, Preview)]
    assert [(one.index, one.number) for one in previews] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    made = drawn(events)
    assert [(one.index, one.seed, one.width, one.height) for one in made] == [(0, 7, 64, 64), (1, 8, 64, 64)]
    assert max(events.index(one) for one in previews) < events.index(made[0])
    ended = end(events)
    assert isinstance(ended, Done)
    assert (ended.usage.images, ended.usage.steps, ended.usage.prompt_tokens) == (2, 5, 12)
    for one in made:
        seen = Image.open(io.BytesIO(one.data))
        assert seen.size == (64, 64) and seen.format == "PNG"
        assert seen.info == {"prompt": "a red circle", "seed": str(one.seed)}


def test_it_draws_what_the_bare_pipeline_draws(engine: ImageEngine, tiny_folder: Path) -> None:
    bare = StableDiffusionPipeline.from_pretrained(tiny_folder, local_files_only=True)
    bare.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    theirs = bare(["a red circle"] * 2, num_inference_steps=3, guidance_scale=4.0, generator=noise).images
    ours = pixels(run(engine, asking(n=2))["c"])
    assert [furthest(one, other) for one, other in zip(ours, theirs, strict=True)] == [0, 0]


def test_a_seed_draws_the_same_bytes_again(engine: ImageEngine) -> None:
    first, second = (run(engine, asking(n=3))["c"] for _ in range(2))
    assert [one.data for one in drawn(first)] == [one.data for one in drawn(second)]
    assert len({one.data for one in drawn(first)}) == 3
    third = drawn(run(engine, asking(seed=8))["c"])[0]
    assert furthest(pixels([third])[0], pixels(first)[1]) <= COMPANY  # image 1 of seed 7 is image 0 of seed 8


def test_company_changes_next_to_nothing(engine: ImageEngine) -> None:
    alone = run(engine, asking())["c"]
    others = [asking(f"o{n}", prompt=f"another {n}", seed=100 + n) for n in range(3)]
    steps = engine.gauges().steps
    together = run(engine, *others[:2], asking(), others[2])
    assert engine.gauges().steps - steps < 8  # one loop for all
    assert furthest(pixels(alone)[0], pixels(together["c"])[0]) <= COMPANY
    for other in others:
        assert furthest(pixels(alone)[0], pixels(together[other.id])[0]) > 8 * COMPANY


def test_calls_take_turns(engine: ImageEngine) -> None:
    """Six images of one call do not keep a later call of one waiting, and go up in their order."""
    before = engine.gauges().steps
    engine.submit(asking("many", n=6))
    found: list[Event] = engine.step()
    engine.submit(asking("one"))
    while engine.busy():
        found += engine.step()
    order = [one.index for one in found if isinstance(one, Drawn) and one.id == "many"]
    assert order == [0, 1, 2, 3, 4, 5]
    assert engine.gauges().steps - before == 2 * (
        3 + 1
    )  # the second loop has the late one and the rest of the other
    starts = [one.id for one in found if isinstance(one, Started)]
    assert starts == ["many", "one"]
    loops = [one.index for one in found if isinstance(one, Denoised) and one.id == "many"]
    assert sorted(set(loops)) == [0, 4]
    assert engine.gauges().running == 0


def test_a_call_of_many_does_not_keep_one_of_another_kind_waiting_to_its_end(engine: ImageEngine) -> None:
    engine.submit(asking("many", n=12, steps=1))
    found: list[Event] = engine.step()
    engine.submit(asking("other", steps=2))
    while engine.busy():
        found += engine.step()
    other = next(place for place, one in enumerate(found) if isinstance(one, Denoised) and one.id == "other")
    loops = [place for place, one in enumerate(found) if isinstance(one, Denoised) and one.id == "many"]
    assert len(loops) == 3 and loops[1] < other < loops[2]


def test_other_steps_or_sizes_wait_for_a_loop_of_their_own(engine: ImageEngine) -> None:
    found = run(engine, asking("a"), asking("b", width=96, height=64), asking("c", steps=2), asking("d"))
    assert [image.size for image in pixels(found["b"])] == [(96, 64)]
    assert all(isinstance(end(events), Done) for events in found.values())
    assert [one.of for one in found["c"] if isinstance(one, Denoised)] == [2, 2]


def test_a_cancelled_call_ends_between_steps_and_the_loop_with_the_last(engine: ImageEngine) -> None:
    engine.submit(asking("a", steps=50))
    engine.submit(asking("b", steps=50, n=2))
    engine.step()
    engine.cancel("a")
    events = engine.step()
    assert [type(one) for one in events if one.id == "a"] == [Failed]
    assert engine.gauges().running == 1
    engine.cancel("b")
    before = engine.gauges().steps
    (ended,) = [one for one in engine.step() if isinstance(one, Failed)]
    assert (ended.id, ended.code, ended.usage.steps) == ("b", "cancelled", 50)
    assert not engine.busy() and engine.gauges().steps == before
    engine.cancel("nobody")
    assert isinstance(end(run(engine, asking())["c"]), Done)


@pytest.mark.parametrize(
    ("call", "code", "param"),
    [
        (TextCall("c", prompts=["hello"]), "unsupported_value", "model"),
        (asking(width=65, height=64), "invalid_value", "size"),
        (asking(prompt="x" * 76), "context_length_exceeded", "prompt"),
        (asking(prompt="x " * 500_000), "context_length_exceeded", "prompt"),
        (asking(prompt=" " * 1_000_000 + "x" * 80), "context_length_exceeded", "prompt"),
        (asking(negative_prompt="y" * 100), "context_length_exceeded", "negative_prompt"),
    ],
)
def test_what_it_does_not_do_fails_alone_and_at_once(
    call: ImageCall, code: str, param: str, engine: ImageEngine
) -> None:
    found = run(engine, call)["c"]
    (failed,) = found
    assert isinstance(failed, Failed) and (failed.code, failed.param) == (code, param)


@pytest.mark.parametrize("prompt", ["", "x" * 75, "\N{ROCKET}\N{FIRE}" * 9, "  "])
def test_prompts_that_are_read_whole_are_drawn(prompt: str, engine: ImageEngine) -> None:
    assert isinstance(end(run(engine, asking(prompt=prompt, steps=1))["c"]), Done)


# -- from images ------------------------------------------------------------------------------------------------------


def test_an_image_is_drawn_again_as_much_as_strength_says(engine: ImageEngine, tmp_path: Path) -> None:
    picture = saved(tmp_path, "noise.png", NOISE)
    little, much = (
        run(engine, asking(images=[picture], steps=10, strength=strength))["c"] for strength in (0.1, 1.0)
    )
    assert [one.of for one in little if isinstance(one, Denoised)] == [1]
    assert [one.of for one in much if isinstance(one, Denoised)] == [10] * 10
    assert end(little).usage.steps == 1
    other = saved(tmp_path, "red.png", Image.new("RGB", (64, 64), "red"))
    again, company = (run(engine, *calls) for calls in (
        [asking(images=[picture], strength=0.5)],
        [asking("o", images=[other], strength=0.5), asking(images=[picture], strength=0.5)],
    ))  # fmt: skip
    assert furthest(pixels(again["c"])[0], pixels(company["c"])[0]) <= COMPANY
    assert furthest(pixels(company["o"])[0], pixels(company["c"])[0]) > 8 * COMPANY


def test_without_a_size_it_is_drawn_in_the_listed_shape_that_is_nearest(
    engine: ImageEngine, tmp_path: Path
) -> None:
    wide = saved(tmp_path, "wide.jpg", NOISE.resize((300, 190)), "JPEG")
    assert [image.size for image in pixels(run(engine, asking(images=[wide]))["c"])] == [(96, 64)]
    told = asking(images=[wide], width=64, height=64)
    assert [image.size for image in pixels(run(engine, told)["c"])] == [(64, 64)]


def test_a_mask_lets_only_its_white_be_drawn(engine: ImageEngine, tmp_path: Path) -> None:
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    picture = saved(tmp_path, "noise.png", NOISE)
    calls = [asking("c", images=[picture], mask=saved(tmp_path, "mask.png", mask), n=2), asking("whole")]
    found = pixels(run(engine, *calls)["c"])
    for image in found:
        assert image.crop((32, 0, 64, 64)).tobytes() == NOISE.crop((32, 0, 64, 64)).tobytes()
        assert furthest(image.crop((0, 0, 32, 64)), NOISE.crop((0, 0, 32, 64))) > 8 * COMPANY
    assert furthest(*found) > COMPANY


def test_files_that_are_no_images_fail_their_call_alone(engine: ImageEngine, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<svg/>")
    small = saved(tmp_path, "small.png", Image.new("L", (8, 8), 255))
    good = saved(tmp_path, "noise.png", NOISE)
    found = run(
        engine,
        asking("svg", images=[str(bad)]),
        asking("mask", images=[good], mask=small),
        asking("fine", images=[good]),
    )
    svg, mask = end(found["svg"]), end(found["mask"])
    assert isinstance(svg, Failed) and (svg.code, svg.param) == ("undecodable_file", "image")
    assert isinstance(mask, Failed) and (mask.code, mask.param) == ("invalid_value", "mask")
    assert isinstance(end(found["fine"]), Done)


def test_a_call_can_be_cancelled_while_it_is_read(engine: ImageEngine, tmp_path: Path) -> None:
    engine.submit(asking(images=[saved(tmp_path, "noise.png", NOISE)]))
    engine.cancel("c")
    assert [type(one) for one in engine.step()] == [Failed]
    assert not engine.busy()


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(engine: ImageEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Lets the network run out of memory with more rows than that (an image that is guided has two)."""
    unet = engine._diffusion._loaded.first.unet
    forward = unet.forward

    def limit(rows: int) -> None:
        def limited(sample: torch.Tensor, *more: object, **named: object) -> object:
            if len(sample) > rows:
                torch.empty(TOO_MUCH, dtype=torch.uint8)  # the allocator's own refusal
            return forward(sample, *more, **named)

        monkeypatch.setattr(unet, "forward", limited)

    yield limit
    engine._room.clear()


def test_too_little_memory_for_several_is_enough_for_fewer(
    engine: ImageEngine, short: Callable[[int], None]
) -> None:
    short(4)
    found = run(engine, asking("a", n=3), asking("b", n=2))
    for id, count in (("a", 3), ("b", 2)):
        assert isinstance(end(found[id]), Done)
        assert [one.index for one in drawn(found[id])] == list(range(count))
    assert engine._room == {(64, 64): 2}


def test_too_little_memory_for_one_fails_it_with_the_numbers_and_no_other(
    engine: ImageEngine, short: Callable[[int], None]
) -> None:
    short(1)
    found = run(engine, asking("large"), asking("small", guidance=1.0))  # without guidance it is one row
    failed = end(found["large"])
    assert isinstance(failed, Failed) and failed.code == "model_does_not_fit"
    assert "an image of 64x64 takes more memory than there is: " in failed.message
    assert str(TOO_MUCH) in failed.message
    assert isinstance(end(found["small"]), Done)


def test_a_gpu_that_is_out_of_memory_is_known_by_its_error(
    engine: ImageEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.5 GiB free"

    def refused(*_: object, **__: object) -> object:
        raise torch.OutOfMemoryError(told)

    monkeypatch.setattr(engine._diffusion._loaded.first.vae, "decode", refused)
    failed = end(run(engine, asking())["c"])
    assert isinstance(failed, Failed) and failed.code == "model_does_not_fit" and told in failed.message


def test_any_other_fault_fails_those_in_the_loop_alone(
    engine: ImageEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = iter([ValueError("a fault of ours")])
    unet = engine._diffusion._loaded.first.unet
    forward = unet.forward

    def faulty(*more: object, **named: object) -> object:
        for fault in faults:
            raise fault
        return forward(*more, **named)

    monkeypatch.setattr(unet, "forward", faulty)
    failed = end(run(engine, asking(n=2))["c"])
    assert isinstance(failed, Failed) and (failed.code, failed.usage.images) == ("server_error", 0)
    assert "a fault of ours" in capsys.readouterr().err
    assert isinstance(end(run(engine, asking())["c"]), Done)


def test_facts_say_what_it_does(engine: ImageEngine) -> None:
    facts = engine.facts
    assert (facts.kind, facts.device, facts.parallel, facts.compute_type) == ("image", "cpu", 16, "float32")
    assert facts.image is not None and facts.parameters > 100_000 and facts.file_bytes > 400_000
    assert facts.image.modes == ["draw", "redraw", "inpaint"]
    assert (facts.image.sizes, facts.image.steps) == (OPTIONS.sizes, 3)
    assert (facts.image.guided, facts.image.negative, facts.image.prompt_tokens) == (True, True, 77)
