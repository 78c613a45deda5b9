"""Contact sheets: prompts downwards, seeds across; at the end what img2img and inpainting make of a picture."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from .evaluate import GUIDANCE, STEPS, STRENGTH, draw
from .scenes import SIDE, Pixels

PROMPTS = (
    "a large red circle on a blue background",
    "a small yellow star in the top left on a purple background",
    "a big green heart at the centre of a white background",
    "a medium black cross in the bottom right corner on an orange background",
    "a white triangle on black",
    "a purple square",
    "a heart",
    "please draw a huge orange disc against gray",
)
SEEDS = range(6)
CELL, GAP, TEXT = 2 * SIDE, 6, 300  # pixels


def strength_steps(strength: float) -> int:
    """Steps to ask of img2img so that about STEPS of them are done."""
    return round(STEPS / strength)


def redrawn(
    pipeline: StableDiffusionPipeline, picture: Pixels, prompt: str, seed: int, strength: float = STRENGTH
) -> Pixels:
    """`picture` changed by img2img."""
    made = AutoPipelineForImage2Image.from_pipe(pipeline)(
        prompt=prompt,
        image=Image.fromarray(picture),
        strength=strength,
        num_inference_steps=strength_steps(strength),
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images[0]
    return (made * 255).round().astype(np.uint8)


def filled_in(
    pipeline: StableDiffusionPipeline, picture: Pixels, mask: Pixels, prompt: str, seed: int
) -> Pixels:
    """`picture` drawn anew where `mask` (SIDE x SIDE) is white."""
    made = AutoPipelineForInpainting.from_pipe(pipeline)(
        prompt=prompt,
        image=Image.fromarray(picture),
        mask_image=Image.fromarray(mask),
        strength=1.0,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images[0]
    return (made * 255).round().astype(np.uint8)


def _rows(pipeline: StableDiffusionPipeline) -> list[tuple[str, list[Pixels]]]:
    """Every line of the sheet: what is said beside it, and its pictures."""
    rows = [(f'"{prompt}"', draw(pipeline, [prompt] * len(SEEDS), list(SEEDS))) for prompt in PROMPTS]
    first = rows[0][1][0]
    prompt = "a large yellow star on a blue background"
    changed = [redrawn(pipeline, first, prompt, 1, strength) for strength in (0.5, 0.6, 0.7, 0.8, 0.9)]
    rows.append((f'image to image, strength 0.5 to 0.9, from the first: "{prompt}"', [first, *changed]))
    corner = np.zeros((SIDE, SIDE), np.uint8)
    corner[:, SIDE // 2 :] = 255
    scene = draw(pipeline, ["a small red circle at the left on a blue background"], [1])[0]
    prompt = "a small white star at the right on a blue background"
    filled = [filled_in(pipeline, scene, corner, prompt, seed) for seed in range(5)]
    rows.append((f'inpainting of the right half: "{prompt}"', [scene, *filled]))
    return rows


def write_sheet(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """Draws the sheet into `path` (PNG)."""
    rows = _rows(pipeline)
    sheet = Image.new(
        "RGB", (TEXT + len(SEEDS) * (CELL + GAP) + GAP, len(rows) * (CELL + GAP) + GAP), "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for down, (text, pictures) in enumerate(rows):
        top = GAP + down * (CELL + GAP)
        pen.multiline_text((GAP, top + 20), "\n".join(textwrap.wrap(text, 36)), "black", font)
        for across, picture in enumerate(pictures):
            large = Image.fromarray(picture).resize((CELL, CELL), Image.Resampling.NEAREST)
            sheet.paste(large, (TEXT + GAP + across * (CELL + GAP), top))
    sheet.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
