#!/usr/bin/env python3
"""Trains oxlo-demo-image, the embedded image model, on pictures of simple shapes, and scores it.

    scripts/train_demo_image.py                  all steps: autoencoder, latents, decoder, train, export, eval
    scripts/train_demo_image.py eval             the score of the committed folder on held-out combinations
    scripts/train_demo_image.py sheet            docs/demo-image.png: prompts, seeds, image to image, inpainting
    scripts/train_demo_image.py captions         samples of what the model is told
    scripts/train_demo_image.py --check-overlap  shows that no held-out combination is trained on

A run that was stopped goes on from its checkpoints in --work when started again: the same command, the same result.
Needs torch, diffusers, transformers, pillow.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from demo_training import command_line, parsed, say  # noqa: E402  # after the path that leads to it

STEPS = ("autoencoder", "latents", "decoder", "train", "export", "eval")
DEMANDED = 0.85  # of the examination: right colour and shape


def arguments() -> argparse.Namespace:
    """The command line."""
    others = {"sheet": "docs/demo-image.png", "captions": "prints samples"}
    parser = command_line(__doc__, STEPS, others, "oxlo-demo-image")
    parser.add_argument(
        "--autoencoder-steps", type=int, default=1400, help="batches of 32 pictures (default 1400)"
    )
    parser.add_argument(
        "--decoder-steps", type=int, default=1000, help="batches of 32 for the decoder alone (default 1000)"
    )
    parser.add_argument("--scenes", type=int, default=16_000, help="different pictures (default 16000)")
    parser.add_argument(
        "--pictures", type=int, default=450_000, help="pictures to train on in all (default 450000)"
    )
    parser.add_argument(
        "--sheet", type=Path, default=ROOT / "docs" / "demo-image.png", help="the contact sheet"
    )
    parser.add_argument("--samples", type=int, default=200, help="pictures of the examination (default 200)")
    parser.add_argument("--faults", action="store_true", help="print every picture that was wrong")
    parser.add_argument("--check-overlap", action="store_true", help="compare training and examination")
    return parsed(parser)


def check_overlap(given: argparse.Namespace) -> int:
    """Prints what is both trained on and examined; exit code 1 if there is anything."""
    from demo_image.evaluate import examination
    from demo_image.scenes import training_scenes, triples

    trained = {scene.combination for scene in training_scenes(given.seed, given.scenes)}
    asked = {scene.combination for _, scene in examination(given.seed, given.samples)}
    both = (trained & asked) | {one for one in trained if one[:3] in set(triples(examined=True))}
    for combination in sorted(both):
        print(f"{' '.join(combination)!r} is held out and trained on")
    print(f"{len(trained)} training combinations, {len(asked)} examined, of {len(triples(examined=True))} held-out"
          f" triples of colour, shape and background; {len(both)} overlaps")  # fmt: skip
    return 1 if both else 0


def print_captions(seed: int) -> None:
    """A look at the captions."""
    from demo_image.captions import training_caption
    from demo_image.scenes import any_scene

    rng = random.Random(seed)
    print("\n".join(training_caption(rng, any_scene(rng))[0] for _ in range(30)))


def run_training(given: argparse.Namespace, steps: tuple[str, ...]) -> None:
    """The steps that make weights, as far as they are asked for."""
    import numpy as np
    import torch
    from bfloat16 import fast_bfloat16
    from demo_image import autoencoder as eye
    from demo_image import train as hand
    from demo_image.export import write_folder
    from demo_image.scenes import training_scenes
    from demo_image.tokens import learn

    kind = ("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device
    torch.set_num_threads(given.threads or os.cpu_count() or 1)
    device = torch.device(kind)
    half = fast_bfloat16(device)
    given.work.mkdir(parents=True, exist_ok=True)
    first, normal, last = (given.work / f"{name}.pt" for name in ("autoencoder", "normalised", "decoder"))
    latents, checkpoint = given.work / "latents.npy", given.work / "painter.pt"
    scenes = training_scenes(given.seed, given.scenes)
    tokenizer = learn(given.seed)
    if "autoencoder" in steps:
        eye.train(eye.Plan(given.seed, given.autoencoder_steps, device, half), first)
    if "latents" in steps and not latents.exists():
        model = eye.load(first).to(device)
        eye.normalise(model, eye.encoded(model, scenes[:1000]))
        torch.save(model.state_dict(), normal)
        np.save(latents, eye.encoded(model, scenes, half))
        say(f"latents: {len(scenes)} scenes in {latents}")
    if "decoder" in steps:
        plan = eye.Plan(given.seed, given.decoder_steps, device, half)
        eye.train_decoder(plan, eye.load(normal), scenes, np.load(latents), last)
    if "train" in steps:
        course = hand.Plan(given.seed, given.pictures, device, half)
        processes = given.threads or os.cpu_count() or 1 if kind == "cpu" else 1
        hand.train_together(processes, course, tokenizer, scenes, np.load(latents), checkpoint)
    if "export" in steps:
        write_folder(given.out, hand.load(checkpoint, tokenizer), eye.load(last), tokenizer)
        weight = sum(file.stat().st_size for file in given.out.rglob("*") if file.is_file())
        say(f"export: {given.out}, {weight / 1e6:.2f} MB")


def evaluate(given: argparse.Namespace) -> int:
    """Prints the scores; exit code 1 if fewer than 85 % are right or the judge errs on rendered pictures."""
    import torch
    from demo_image import evaluate as exam

    torch.set_num_threads(given.threads or os.cpu_count() or 1)
    truth = exam.judged_truth(given.seed, 500)
    print(f"the judge on {truth.asked} rendered pictures: {100 * truth.accuracy:.1f} % right")
    model = exam.load(given.out)
    print(
        f"one picture alone: {exam.seconds_an_image(model):.2f} s in {exam.STEPS} steps"
        f" on {torch.get_num_threads()} threads"
    )
    away = exam.variety(model, "a red circle", range(8))
    print(f'eight seeds of "a red circle" are {away:.0f}/255 apart in the mean')
    brief = exam.scored(model, exam.brief_examination(given.seed), given.seed)
    print(
        f'"a red circle" and all its like: {brief.right} of {brief.asked} right: {100 * brief.accuracy:.1f} %'
    )
    score = exam.scored(model, exam.examination(given.seed, given.samples), given.seed)
    if given.faults:
        print("\n".join(brief.faults + score.faults))
    print(exam.table(score))
    print(f"held-out combinations: right colour and shape in {score.right} of {score.asked}:"
          f" {100 * score.accuracy:.1f} % (standard error {100 * score.spread:.1f})")  # fmt: skip
    return 0 if score.accuracy >= DEMANDED and truth.accuracy >= 0.99 else 1


def main() -> int:
    """Runs the steps named, in their order."""
    given = arguments()
    if given.check_overlap:
        return check_overlap(given)
    steps = tuple(given.steps) or STEPS
    if "captions" in steps:
        print_captions(given.seed)
    if set(steps) & set(STEPS[:-1]):
        run_training(given, steps)
    if "sheet" in steps:
        from demo_image.evaluate import load
        from demo_image.sheet import write_sheet

        write_sheet(load(given.out), given.sheet)
        say(f"sheet: {given.sheet}")
    return evaluate(given) if "eval" in steps else 0


if __name__ == "__main__":
    sys.exit(main())
