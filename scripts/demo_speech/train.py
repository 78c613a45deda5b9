"""The training loop: windows by blocks, batches by length, a learning rate by the windows seen.

Nothing looks at a clock, so that a run that was stopped and goes on gives what it would have given in one piece.
Short windows come first: the alignment of words and sound is found soonest there.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from .lessons import IGNORED, Batch, collate, gives_away
from .model import Shape, Whisper
from .tokens import Vocabulary
from .windows import Heard, read_shard

SHARES = {"tokens": 1.0, "phonemes": 0.3, "words": 1.0, "before": 1.0, "looks": 1.0}  # of the loss
SHARDS_A_BLOCK = 2
SHORT, SHORT_SHARE = 350, 0.3  # frames: the longest window in the first so much of the training


@dataclass(frozen=True)
class Plan:
    """What to train: `windows` in all; `batch_frames` counts padding."""

    seed: int
    windows: int
    device: torch.device
    batch_frames: int = 4000
    peak_rate: float = 2e-3
    bfloat16: bool = False


@dataclass
class Progress:
    """How far a run is; saved in the checkpoint after every block."""

    block: int = 0
    step: int = 0
    windows: int = 0
    seconds: float = 0.0


def groups(plan: Plan, block: int, heard: list[Heard], share: float) -> list[tuple[list[Heard], int]]:
    """The windows of a block as (batch, frames to fill it to); `share` of the training is done."""
    rng = random.Random(f"{plan.seed}:{block}")
    chosen = [
        one for one in heard if not gives_away(one) and (share > SHORT_SHARE or one.mel.shape[1] <= SHORT)
    ]
    chosen.sort(key=lambda one: one.mel.shape[1])
    made: list[tuple[list[Heard], int]] = []
    group: list[Heard] = []
    for one in chosen:
        if group and one.mel.shape[1] * (len(group) + 1) > plan.batch_frames:
            made.append((group, group[-1].mel.shape[1]))
            group = []
        group.append(one)
    if group:
        made.append((group, group[-1].mel.shape[1]))
    rng.shuffle(made)
    return [(group, (frames + rng.randint(0, 120) + 1) // 2 * 2) for group, frames in made]


def learning_rate(plan: Plan, progress: Progress) -> float:
    """Rises over 150 steps, stays, and falls to a fiftieth over the last half."""
    share = min(1.0, progress.windows / plan.windows)
    fall = 1.0 if share < 0.5 else 1.0 - 0.98 * (share - 0.5) / 0.5
    return plan.peak_rate * min(1.0, (progress.step + 1) / 150) * fall


def new_optimizers(model: Whisper, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices (it needs about half of AdamW's steps), AdamW for all else."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    inner = [weight for name, weight in named if weight.dim() == 2 and ".layers." in name]
    outer = [weight for name, weight in named if not (weight.dim() == 2 and ".layers." in name)]
    return [
        torch.optim.Muon(inner, lr=rate, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def losses(model: Whisper, batch: Batch, bfloat16: bool) -> dict[str, torch.Tensor]:
    """What the model is bad at, by name."""

    def mistaken(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(scores.float().flatten(0, 1), right.flatten(), ignore_index=IGNORED)

    def astray(logs: torch.Tensor, looks: torch.Tensor) -> torch.Tensor:
        return -(logs * looks[:, None]).sum() / (looks.sum() * logs.shape[1] + 1e-6)

    with torch.autocast(batch.mel.device.type, torch.bfloat16, enabled=bfloat16):
        scores = model(batch.mel, batch.given, batch.empty)
    return {
        "tokens": mistaken(scores.tokens, batch.due),
        "phonemes": mistaken(scores.phonemes, batch.phonemes),
        "words": mistaken(scores.words, batch.words),
        "before": astray(scores.before, batch.before),
        "looks": astray(scores.due, batch.looks),
    }


def save(
    path: Path, model: Whisper, optimizers: Sequence[torch.optim.Optimizer], progress: Progress, plan: Plan
) -> None:
    """Writes the checkpoint whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(
        {
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "progress": vars(progress),
            "windows": plan.windows,
        },
        part,
    )
    part.replace(path)


def blocks(plan: Plan, shards: Sequence[Path], start: int) -> Iterator[tuple[int, list[Heard]]]:
    """(number, windows) of every block from `start` on; each round over the shards has an order of its own."""
    in_round = len(shards) // SHARDS_A_BLOCK
    block = start
    while True:
        order = list(shards)
        random.Random(f"{plan.seed}:round {block // in_round}").shuffle(order)
        at = block % in_round * SHARDS_A_BLOCK
        yield block, [one for path in order[at : at + SHARDS_A_BLOCK] for one in read_shard(path)]
        block += 1


def train(
    plan: Plan, shape: Shape, phonemes: dict[str, int], shards: Sequence[Path], checkpoint: Path
) -> tuple[Whisper, Progress]:
    """Trains on plan.windows in all, going on from `checkpoint` where there is one."""
    torch.manual_seed(plan.seed)
    vocabulary = Vocabulary()
    model = Whisper(shape).to(plan.device)
    optimizers = new_optimizers(model, plan.peak_rate)
    progress = Progress()
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=plan.device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        progress = Progress(**state["progress"])
        _say(f"going on from block {progress.block}, {progress.windows} windows")
    for block, heard in blocks(plan, shards, progress.block):
        if progress.windows >= plan.windows:
            break
        rng = random.Random(f"{plan.seed}:lessons {block}")
        sums, summed, began = dict.fromkeys(SHARES, 0.0), 0, time.monotonic()
        batches = groups(plan, block, heard, progress.windows / plan.windows)
        for number, (group, frames) in enumerate(batches, 1):
            rate = learning_rate(plan, progress)
            batch = collate(rng, vocabulary, phonemes, group, frames)
            for name, loss in _step(model, optimizers, batch, rate, plan).items():
                sums[name] += loss
            progress.step, progress.windows, summed = (
                progress.step + 1,
                progress.windows + len(group),
                summed + 1,
            )
            if number % 25 == 0 or number == len(batches):
                means = "  ".join(f"{name} {loss / summed:.3f}" for name, loss in sums.items())
                minutes = (progress.seconds + time.monotonic() - began) / 60
                _say(
                    f"block {block} {number}/{len(batches)}  step {progress.step}  windows {progress.windows}"
                    f"  {means}  rate {rate:.5f}  {minutes:.1f} min"
                )
                sums, summed = dict.fromkeys(SHARES, 0.0), 0
        progress.block, progress.seconds = block + 1, progress.seconds + time.monotonic() - began
        save(checkpoint, model, optimizers, progress, plan)
    return model, progress


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _step(
    model: Whisper, optimizers: Sequence[torch.optim.Optimizer], batch: Batch, rate: float, plan: Plan
) -> dict[str, float]:
    """One step; the losses before it."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = rate
    parts = losses(model, Batch(*(tensor.to(plan.device) for tensor in vars(batch).values())), plan.bfloat16)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    torch.stack([SHARES[name] * loss for name, loss in parts.items()]).sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return {name: loss.item() for name, loss in parts.items()}
