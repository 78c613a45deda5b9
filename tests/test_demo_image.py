"""oxlo-demo-image: the shipped folder draws combinations that it was not trained on, anew for each seed."""

import random
import re
from functools import cache
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("PIL")
pytest.importorskip("diffusers")

from demo_image import evaluate  # noqa: E402
from demo_image.judge import judge  # noqa: E402
from demo_image.scenes import SIDE, Scene, any_scene, render  # noqa: E402
from demo_image.sheet import filled_in, redrawn  # noqa: E402

FOLDER = Path(__file__).resolve().parent.parent / "oxlo_local" / "embedded" / "oxlo-demo-image"


@cache
def model() -> evaluate.StableDiffusionPipeline:
    return evaluate.load(FOLDER)


def test_the_folder_is_small_and_all_weights_are_safetensors() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert sum(file.stat().st_size for file in files) <= 12_000_000
    assert model().text_encoder.dtype == model().unet.dtype == model().vae.dtype


def test_it_draws_combinations_that_it_was_not_trained_on() -> None:
    score = evaluate.scored(model(), evaluate.examination(7, 20), 7)
    assert score.accuracy >= 0.75, score.faults  # 0.9 and more of 200; of 20 chance takes its share
    assert score.facts["background"] >= 15


def test_one_seed_gives_one_picture_and_others_give_others() -> None:
    first, again, other = (evaluate.draw(model(), ["a red circle"], [seed], steps=8)[0] for seed in (1, 1, 2))
    assert first.shape == (SIDE, SIDE, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5


def test_a_negative_prompt_is_avoided() -> None:
    avoided, bare = (
        [judge(one) for one in evaluate.draw(model(), ["a circle"] * 10, list(range(10)), negative=negative)]
        for negative in ("a red shape", "")
    )
    assert [one.colour for one in avoided if one].count("red") == 0
    assert len({one.colour for one in bare if one}) >= 3


def test_image_to_image_paints_what_it_is_given() -> None:
    rng = random.Random(4)
    scene = next(one for one in (any_scene(rng) for _ in range(2000)) if is_large_red_on_blue(one))
    seen = [
        judge(redrawn(model(), render(scene), f"a large yellow {scene.shape} on a blue background", seed))
        for seed in range(3)
    ]
    assert sum(one is not None and (one.colour, one.background) == ("yellow", "blue") for one in seen) >= 2


def is_large_red_on_blue(scene: Scene) -> bool:
    return (scene.colour, scene.background, scene.size) == ("red", "blue", "large")


def test_inpainting_draws_where_the_mask_is_and_keeps_the_rest() -> None:
    plain = np.full((SIDE, SIDE, 3), (40, 90, 220), np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, SIDE // 2 :] = 255
    prompt = "a small white star on the right on a blue background"
    changes = [
        np.abs(filled_in(model(), plain, mask, prompt, seed).astype(int) - plain).max(axis=2)
        for seed in range(3)
    ]
    assert all(np.median(change[:, : SIDE // 2 - 4]) < 16 for change in changes)
    assert sum((change[:, SIDE // 2 :] > 100).sum() > 40 for change in changes) >= 2


def test_the_card_describes_the_shipped_folder() -> None:
    card = FOLDER.with_suffix(".md").read_text("utf-8")
    weight = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    assert f"{weight / 1e6:.1f} MB" in card
    assert "A demonstration, not a general painter" in card
    rate = re.search(r"held-out combinations.*?\*\*([0-9.]+) %\*\*", card)
    assert rate and float(rate[1]) >= 85
