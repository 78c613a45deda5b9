"""Pipelines of random numbers are pipelines: diffusers itself loads and runs them."""

from pathlib import Path

from diffusers import AutoPipelineForInpainting, DiffusionPipeline
from PIL import Image

from oxlo_local.random_diffuser import POSITIONS, SHAPES, Shape, write


def test_the_library_runs_it(tmp_path: Path) -> None:
    write(tmp_path / "a", Shape(vae=(8, 16)))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "a", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a", num_inference_steps=1).images[0].size == (64, 64)
    assert pipeline.tokenizer("ab \N{ROCKET}").input_ids == pipeline.tokenizer("AB  \N{ROCKET}").input_ids
    assert pipeline.tokenizer.model_max_length == POSITIONS
    painter = AutoPipelineForInpainting.from_pipe(pipeline)
    white = Image.new("RGB", (64, 64), "white")
    again = painter("a", image=white, mask_image=white.convert("L"), num_inference_steps=2)
    assert again.images[0].size == (64, 64)


def test_the_same_seed_is_the_same_model(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(tmp_path / folder, SHAPES["tiny"], seed=seed)
    a, b, c = (
        (tmp_path / folder / "unet/diffusion_pytorch_model.safetensors").read_bytes() for folder in "abc"
    )
    assert a == b != c
