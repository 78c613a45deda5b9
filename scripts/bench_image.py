"""Measures images: what the engine costs beside the bare diffusers pipeline, and what a batch gains.

1. rate: the same prompts, seeds, steps and batch through the engine and through the pipeline, called directly in this
   process with the same weights, number format and threads, turn by turn (A, B, A, B, ...). The engine writes PNG files
   of what it draws, the pipeline writes none. The bar is 3 % more seconds an image at most, by the medians.
2. batch: seconds an image of four images in one loop against four loops of one, through the engine.

Of `oxlo-demo-image` where it is here, of a Stable Diffusion of 256 pixels of random numbers, and of --model, any folder
or file in diffusers' form. Every figure comes from this run on this machine. Exit status 1 when the bar is missed.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from oxlo_local import random_diffuser  # noqa: E402  # after the path that leads to this checkout
from oxlo_local.calls import Done, ImageCall, ImageOptions, Load  # noqa: E402
from oxlo_local.catalogue import Catalogue  # noqa: E402
from oxlo_local.engines.image.engine import ImageEngine  # noqa: E402

import torch  # isort: skip  # noqa: E402
import diffusers  # isort: skip  # noqa: E402

DEMO = "oxlo-demo-image"
BAR = 1.03
BATCH = 4
PROMPT = "a large red circle on a blue background"
RANDOM = ROOT / "build" / "random-diffuser-small"


@dataclass(frozen=True)
class Subject:
    """A model to measure."""

    name: str
    path: Path
    options: ImageOptions


@dataclass(frozen=True)
class Figures:
    """Seconds an image, each the median over rounds."""

    model: str
    device: str
    size: str
    steps: int
    batch: int
    engine: float
    pipeline: float
    ratio: float
    alone: float
    gain: float


def subjects(arguments: argparse.Namespace) -> list[Subject]:
    """The demo and the random one, or what was named."""
    options = ImageOptions(
        device=arguments.device, threads=arguments.threads, batch=BATCH, steps=arguments.steps
    )
    if arguments.model is not None:
        return [Subject(arguments.model.name, arguments.model, options)]
    found = []
    demo = Catalogue.load(None, installed={}).models.get(DEMO)
    if demo is not None and demo.path is not None:
        found.append(Subject(DEMO, demo.path, options))
    if not (RANDOM / "model_index.json").exists():
        random_diffuser.write(RANDOM, random_diffuser.SHAPES["small"])
    steps = arguments.steps or 6
    shape = ImageOptions(device=arguments.device, threads=arguments.threads, batch=BATCH, steps=steps)
    return [*found, Subject("random, 256 px", RANDOM, shape)]


def through_engine(engine: ImageEngine, n: int, seed: int) -> float:
    """Seconds an image of one call of n, from its submission to its end."""
    begun = time.perf_counter()
    engine.submit(ImageCall("c", PROMPT, seed, n=n))
    ended = []
    while engine.busy():
        ended += engine.step()
    assert isinstance(ended[-1], Done), ended[-1]
    return (time.perf_counter() - begun) / n


def through_pipeline(pipeline: Any, arguments: dict[str, object], n: int, seed: int) -> float:
    """Seconds an image of one call of the library with n prompts."""
    noise = [torch.Generator().manual_seed(seed + place) for place in range(n)]
    begun = time.perf_counter()
    images = pipeline(prompt=[PROMPT] * n, generator=noise, **arguments).images
    assert len(images) == n
    return (time.perf_counter() - begun) / n


def in_turn(rounds: int, *ways: Callable[[int], float]) -> list[float]:
    """The median of each, measured A, B, A, B; a first round of each is not counted."""
    times: list[list[float]] = [[] for _ in ways]
    for number in range(rounds + 1):
        for way, kept in zip(ways, times, strict=True):
            seconds = way(number)
            kept += [seconds] * (number > 0)
    return [statistics.median(each) for each in times]


def measure(subject: Subject, rounds: int) -> Figures:
    """All figures of one model."""
    engine = ImageEngine(
        Load("image", subject.name, str(subject.path), subject.options), lambda fraction: None
    )
    facts = engine.facts.image
    assert facts is not None
    dtype = getattr(torch, engine.facts.compute_type)
    bare = diffusers.DiffusionPipeline.from_pretrained(
        subject.path, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    bare.to("cpu" if engine.facts.device == "cpu" else "cuda")
    bare.set_progress_bar_config(disable=True)
    (width, height), *_ = facts.sizes
    asked: dict[str, object] = {"width": width, "height": height, "num_inference_steps": facts.steps}
    guidance = "true_cfg_scale" if "QwenImage" in type(bare).__name__ else "guidance_scale"
    asked[guidance] = facts.guidance
    ours, theirs, alone = in_turn(
        rounds,
        lambda seed: through_engine(engine, BATCH, seed),
        lambda seed: through_pipeline(bare, asked, BATCH, seed),
        lambda seed: through_engine(engine, 1, seed),
    )
    engine.close()
    return Figures(
        subject.name,
        engine.facts.device,
        f"{width}x{height}",
        facts.steps,
        BATCH,
        round(ours, 4),
        round(theirs, 4),
        round(ours / theirs, 4),
        round(alone, 4),
        round(alone / ours, 3),
    )


def report(figures: Sequence[Figures]) -> None:
    """The table."""
    heads = (f"{head:>10}" for head in ("engine", "pipeline", "ratio", "alone", "batch"))
    print(f"{'model':<18}{'size':>10}{'steps':>6}{''.join(heads)}")
    for each in figures:
        print(
            f"{each.model:<18}{each.size:>10}{each.steps:>6}{each.engine:>8.3f} s{each.pipeline:>8.3f} s"
            f"{each.ratio:>10.3f}{each.alone:>8.3f} s{each.gain:>8.2f} x"
        )


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    parser.add_argument("--json", action="store_true", help="the figures as JSON, and nothing else")
    parser.add_argument("--model", type=Path, help="a folder in diffusers' form")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    figures = [measure(subject, 3 if arguments.quick else 9) for subject in subjects(arguments)]
    if arguments.json:
        print(json.dumps([asdict(each) for each in figures], indent=2))
    else:
        report(figures)
    return int(any(each.ratio > BAR for each in figures))


if __name__ == "__main__":
    sys.exit(main())
