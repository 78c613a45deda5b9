"""The examination: held-out combinations, drawn by the shipped folder as any user would, seen by the judge alone."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from .captions import full_prompt
from .judge import Sight, judge
from .scenes import PALETTE, SHAPES, Pixels, Scene, any_scene, render

STEPS, GUIDANCE, STRENGTH = 20, 3.0, 0.7  # the model's defaults
TOGETHER = 10  # pictures drawn at once
FACTS = ("colour", "shape", "background", "size", "row", "column")


def load(folder: Path) -> StableDiffusionPipeline:
    """The shipped folder, in float32 on the CPU."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    negative: str = "",
) -> list[Pixels]:
    """One picture a prompt, each from noise of its own seed."""
    made: list[Pixels] = []
    for start in range(0, len(prompts), TOGETHER):
        group = slice(start, start + TOGETHER)
        pictures = pipeline(
            prompt=list(prompts[group]),
            negative_prompt=[negative] * len(prompts[group]),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[group]],
            output_type="np",
        ).images
        made += list((pictures * 255).round().astype(np.uint8))
    return made


@dataclass
class Score:
    """How many of `asked` pictures show what was asked for, by fact; `right` are those of right colour and shape."""

    asked: int = 0
    right: int = 0
    facts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FACTS, 0))
    faults: list[str] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """The share of right colour and shape."""
        return self.right / max(1, self.asked)

    @property
    def spread(self) -> float:
        """The standard error of `accuracy`."""
        return (self.accuracy * (1 - self.accuracy) / max(1, self.asked)) ** 0.5

    def add(self, asked: str, scene: Scene, seen: Sight | None) -> None:
        """Counts one picture."""
        self.asked += 1
        for fact in FACTS:
            self.facts[fact] += seen is not None and getattr(seen, fact) == getattr(scene, fact)
        if seen is not None and (seen.colour, seen.shape) == (scene.colour, scene.shape):
            self.right += 1
        else:
            self.faults.append(f"{asked!r} -> {f'{seen.colour} {seen.shape}' if seen else 'no plain shape'}")


def examination(seed: int, samples: int) -> list[tuple[str, Scene]]:
    """Prompts that name a held-out combination, each with its scene; no combination comes twice."""
    rng = random.Random(f"{seed}:examination")
    chosen: dict[tuple[str, ...], tuple[str, Scene]] = {}
    while len(chosen) < samples:
        scene = any_scene(rng, examined=True)
        chosen.setdefault(scene.combination, (full_prompt(rng, scene), scene))
    return list(chosen.values())


def brief_examination(seed: int) -> list[tuple[str, Scene]]:
    """ "a red circle": each colour with each shape and nothing else named; only these two facts are examined."""
    rng = random.Random(f"{seed}:brief")
    asked = []
    for colour in PALETTE:
        for shape in SHAPES:
            scene = any_scene(rng)
            while (scene.colour, scene.shape) != (colour, shape):
                scene = any_scene(rng)
            article = "an" if colour[0] in "aeiou" else "a"
            asked.append((f"{article} {colour} {shape}", scene))
    return asked


def scored(
    pipeline: StableDiffusionPipeline,
    questions: Sequence[tuple[str, Scene]],
    first_seed: int,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> Score:
    """The score of the pipeline; picture i is drawn from seed first_seed + i."""
    seeds = range(first_seed, first_seed + len(questions))
    pictures = draw(pipeline, [prompt for prompt, _ in questions], seeds, steps, guidance)
    score = Score()
    for (prompt, scene), picture in zip(questions, pictures, strict=True):
        score.add(prompt, scene, judge(picture))
    return score


def judged_truth(seed: int, samples: int) -> Score:
    """The score of rendered pictures themselves: what the judge is worth."""
    rng = random.Random(f"{seed}:truth")
    score = Score()
    for _ in range(samples):
        scene = any_scene(rng, examined=rng.random() < 0.5)
        score.add(" ".join(scene.combination), scene, judge(render(scene)))
    return score


def seconds_an_image(pipeline: StableDiffusionPipeline, pictures: int = 10) -> float:
    """The median time of one picture alone with the defaults."""
    times = []
    for seed in range(pictures):
        began = time.perf_counter()
        draw(pipeline, ["a large red circle on a blue background"], [seed])
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def variety(pipeline: StableDiffusionPipeline, prompt: str, seeds: Iterable[int]) -> float:
    """The mean distance of two pictures of one prompt, in levels of 255."""
    seeds = list(seeds)
    pictures = [picture.astype(float) for picture in draw(pipeline, [prompt] * len(seeds), seeds)]
    return float(np.mean([np.abs(a - b).mean() for at, a in enumerate(pictures) for b in pictures[at + 1 :]]))


def table(score: Score) -> str:
    """One line a fact."""
    return "\n".join(
        f"{fact:12} right in {count:4} of {score.asked} ({100 * count / score.asked:.1f} %)"
        for fact, count in score.facts.items()
    )
