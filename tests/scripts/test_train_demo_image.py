"""oxlo-demo-image: nothing held out is trained on, captions are true, the judge knows right from wrong."""

import itertools
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("PIL")
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from demo_image import autoencoder, captions, train  # noqa: E402
from demo_image.evaluate import examination, judged_truth  # noqa: E402
from demo_image.export import write_folder  # noqa: E402
from demo_image.judge import judge  # noqa: E402
from demo_image.parts import new_autoencoder, new_scheduler  # noqa: E402
from demo_image.scenes import (  # noqa: E402
    BACKGROUNDS,
    PALETTE,
    SHAPES,
    SIDE,
    any_scene,
    render,
    training_scenes,
    triples,
)
from demo_image.tokens import POSITIONS, learn  # noqa: E402

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_demo_image.py"


def test_held_out_triples_are_in_no_training_scene_and_every_name_is_on_both_sides() -> None:
    kept, trained = set(triples(examined=True)), set(triples(examined=False))
    assert not kept & trained and len(kept) + len(trained) == len(PALETTE) * len(SHAPES) * 8
    assert 0.08 < len(kept) / len(kept | trained) < 0.2
    for place, names in enumerate((PALETTE, SHAPES, BACKGROUNDS)):
        assert {one[place] for one in kept} == {one[place] for one in trained} == set(names)
    assert not {scene.combination[:3] for scene in training_scenes(7, 20_000)} & kept
    assert all(scene.combination[:3] in kept for _, scene in examination(7, 200))


def test_the_script_finds_no_overlap() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--check-overlap", "--scenes", "5000"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0 and "200 examined" in done.stdout and "; 0 overlaps" in done.stdout


@pytest.mark.parametrize("arguments", [["paint"], ["--samples", "many"]])
def test_a_wrong_command_line_is_refused(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 2 and arguments[-1] in done.stderr


def test_a_caption_says_what_it_names_and_nothing_that_is_not_so() -> None:
    rng = random.Random(3)
    lengths = []
    for _ in range(2000):
        scene = any_scene(rng)
        text, naming = captions.training_caption(rng, scene)
        lengths.append(len(text))
        for named, true, table in (
            (naming.colour or naming.background, {scene.colour, scene.background}, captions.COLOURS),
            (naming.shape, {scene.shape}, captions.SHAPES),
            (naming.size, {scene.size}, captions.SIZES),
        ):
            words = set(text.replace(",", " ").replace(".", " ").split())
            said = {name for name, ways in table.items() for way in ways if set(way.split()) <= words}
            assert said <= true
            assert not named or said
    assert max(lengths) > 60 and min(lengths) < 15


def test_the_judge_is_right_about_rendered_pictures() -> None:
    score = judged_truth(11, 200)
    assert score.right == 200 and all(right >= 198 for right in score.facts.values()), score.faults


def test_the_judge_finds_nothing_on_pictures_of_nothing() -> None:
    rng = np.random.default_rng(1)
    plain = np.full((SIDE, SIDE, 3), 130, np.uint8)
    noise = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    slope = np.broadcast_to(np.linspace(0, 255, SIDE).astype(np.uint8)[:, None], (SIDE, SIDE))
    stripes = plain.copy()
    stripes[::8] = 0
    for picture in (plain, noise, np.repeat(slope[:, :, None], 3, axis=2), stripes):
        assert judge(picture) is None


def test_the_judge_finds_nothing_where_shapes_are_two_or_torn() -> None:
    judged = 0
    for scene in training_scenes(5, 12_000):
        if scene.size != "medium" or scene.x + scene.radius + 2 > SIDE // 2:
            continue
        picture = render(scene)
        two = picture.copy()
        two[:, SIDE // 2 :] = picture[:, SIDE // 2 - 1 :: -1]
        torn = picture.copy()
        torn[int(scene.y) - 4 : int(scene.y) + 4] = scene.ground
        assert judge(two) is None and judge(torn) is None
        judged += 1
    assert judged > 10


def test_the_judge_calls_a_shape_of_another_colour_or_outline_by_its_own_name() -> None:
    for scene in training_scenes(9, 60):
        seen = judge(render(scene))
        assert seen is not None and (seen.colour, seen.shape) == (scene.colour, scene.shape)
        assert seen.likeness > 0.85
        wrong = judge(render(scene)[:, :, ::-1])  # red and blue exchanged
        if scene.colour in ("red", "blue"):
            assert wrong is None or wrong.colour != scene.colour


def test_every_prompt_has_tokens_and_known_words_are_one_each() -> None:
    tokenizer = learn(1)
    ids = tokenizer("A large CRIMSON circle on a blue background").input_ids
    assert len(ids) == 8 + 2
    for prompt in ("", "xylophone", "🟥🟦 рисуй", "x " * 5000):
        got = tokenizer(prompt, padding="max_length", truncation=True).input_ids
        assert len(got) == POSITIONS and max(got) < len(tokenizer)
    assert learn(1).get_vocab() == tokenizer.get_vocab()


def test_latents_are_normalised_without_changing_a_picture() -> None:
    torch.manual_seed(1)
    model = new_autoencoder().eval()
    scenes = training_scenes(1, 16)
    pictures = autoencoder.tensor_of([render(scene) for scene in scenes])
    with torch.inference_mode():
        before = model.decode(model.encode(pictures).latent_dist.mean).sample
        autoencoder.normalise(model, autoencoder.encoded(model, scenes))
        again = model.encode(pictures).latent_dist.mean
        after = model.decode(again).sample
    assert torch.allclose(before, after, atol=2e-3)
    assert again.mean((0, 2, 3)).abs().max() < 0.01 and (again.std((0, 2, 3)) - 1).abs().max() < 0.01


def test_the_noisiest_time_is_noise_alone_and_v_gives_back_the_latents() -> None:
    noise = train.Noise(torch.device("cpu"))
    assert new_scheduler().alphas_cumprod[-1] == 0
    latents = torch.randn(64, 4, 4, 4)
    noisy, times, v = noise.added(latents)
    level = noise.levels[times][:, None, None, None]
    assert torch.allclose(level.sqrt() * noisy - (1 - level).sqrt() * v, latents, atol=1e-4)


def test_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, scenes = learn(1), training_scenes(1, 8)
    latents = np.random.default_rng(1).normal(size=(8, 4, 16, 16)).astype(np.float16)
    plan = train.Plan(1, 4, torch.device("cpu"), bfloat16=False, batch=2)
    monkeypatch.setattr(train, "WORDS_FIRST", 2)
    whole, _ = train.train(plan, tokenizer, scenes, latents, tmp_path / "whole.pt")

    monkeypatch.setattr(train, "SAVED_EVERY", 2)
    monkeypatch.setattr(train, "average", interrupted_at(3, train.average))
    with pytest.raises(KeyboardInterrupt):
        train.train(plan, tokenizer, scenes, latents, tmp_path / "parted.pt")
    parted, progress = train.train(plan, tokenizer, scenes, latents, tmp_path / "parted.pt")

    assert progress.step == 4
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parted.parameters(), strict=True))


def interrupted_at(call: int, act: Callable[..., None]) -> Callable[..., None]:
    """`act`, but somebody presses Ctrl-C in its `call`th call."""
    calls = itertools.count(1)

    def acting(*given: object) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt
        act(*given)

    return acting


def test_the_export_loads_with_every_part_as_wide_as_the_other(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    tokenizer = learn(1)
    write_folder(tmp_path / "folder", train.Painter(tokenizer), new_autoencoder(), tokenizer)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
