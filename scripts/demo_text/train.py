"""The training loop: conversations by number, batches by length, a learning rate by the clock.

The schedule follows the minutes given, not a count of steps, so the same command ends in time on two cores and on
a GPU. A checkpoint every few minutes holds everything needed to go on.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bfloat16 import fast_bfloat16
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from .conversations import conversation
from .held_out import Exam, held_out
from .model import Llama, Shape
from .rendering import render
from .tokens import answer_mask

QUESTION_SHARE = (
    0.12  # of the tokens that are not the model's own, this many are learnt too: they teach the words
)


@dataclass(frozen=True)
class Plan:
    """What to train and for how long; `batch_tokens` counts padding."""

    seed: int
    minutes: float
    device: torch.device
    batch_tokens: int = 3072
    peak_rate: float = 3e-3
    checkpoint_minutes: float = 3.0


@dataclass
class Progress:
    """How far a run is; saved in the checkpoint."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    conversations: int = 0


def batches(
    seed: int, start: int, tokenizer: Tokenizer, plan: Plan, context: int
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """(ids, which the model says itself, number of the next conversation) from conversation `start`, without end.

    512 conversations at a time are sorted by length, so that little is padding.
    """
    exam = Exam(held_out())
    while True:
        rows = []
        for number in range(start, start + 512):
            made = conversation(seed, number)
            if exam.gives_away(made):  # a rare chain of synonyms may still come near to a held-out question
                continue
            ids = tokenizer.encode(render(made.messages, made.tools)).ids[:context]
            rows.append((ids, answer_mask(ids, tokenizer)))
        start += 512
        rows.sort(key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = []
        group: list[tuple[list[int], list[bool]]] = []
        for row in rows:
            if group and len(row[0]) * (len(group) + 1) > plan.batch_tokens:
                groups.append(group)
                group = []
            group.append(row)
        groups.append(group)
        rng = random.Random(f"{seed}:{start}")
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in group])
            own = torch.tensor([mask + [False] * (width - len(mask)) for _, mask in group])
            yield ids, own, start


def learning_rate(plan: Plan, progress: Progress) -> float:
    """Rises over 100 steps, stays, and falls to a twentieth over the last 45 % of the time."""
    share = min(1.0, progress.seconds / (plan.minutes * 60))
    fall = 1.0 if share < 0.55 else 1.0 - 0.95 * (share - 0.55) / 0.45
    return plan.peak_rate * min(1.0, (progress.step + 1) / 100) * fall


def new_optimizers(model: Llama, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices (it needs about half of AdamW's steps here), AdamW for embeddings and norms."""
    matrices = [
        weight for name, weight in model.named_parameters() if weight.dim() == 2 and name.startswith("blk.")
    ]
    others = [
        weight
        for name, weight in model.named_parameters()
        if weight.dim() == 1 or not name.startswith("blk.")
    ]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]


def save(path: Path, model: Llama, optimizers: Sequence[torch.optim.Optimizer], progress: Progress) -> None:
    """Writes the checkpoint whole or not at all."""
    part = path.with_suffix(".part")
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"model": model.state_dict(), "optimizers": states, "progress": vars(progress)}, part)
    part.replace(path)


def train(plan: Plan, shape: Shape, tokenizer: Tokenizer, checkpoint: Path) -> tuple[Llama, Progress]:
    """Trains up to plan.minutes in all, going on from `checkpoint` where there is one."""
    torch.manual_seed(plan.seed)
    model = Llama(shape).to(plan.device)
    optimizers = new_optimizers(model, plan.peak_rate)
    progress = Progress()
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=plan.device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        progress = Progress(**state["progress"])
        print(f"going on from step {progress.step} after {progress.seconds / 60:.1f} min", file=sys.stderr)
    half = fast_bfloat16(plan.device)
    saved, loss_sum = progress.seconds, 0.0
    last = time.monotonic()
    for ids, own, after in batches(plan.seed, progress.conversations, tokenizer, plan, shape.context):
        if progress.seconds >= plan.minutes * 60:
            break
        rate = learning_rate(plan, progress)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        loss_sum += _step(model, optimizers, ids.to(plan.device), own.to(plan.device), half)
        now = time.monotonic()
        progress = Progress(
            progress.step + 1, progress.seconds + now - last, progress.tokens + int((ids != 0).sum()), after
        )
        last = now
        if progress.step % 50 == 0:
            print(
                f"step {progress.step}  loss {loss_sum / 50:.4f}  rate {rate:.5f}  {progress.tokens / 1e6:.2f} M tokens"
                f"  {progress.tokens / progress.seconds:.0f}/s  {progress.seconds / 60:.1f} of {plan.minutes:.0f} min",
                file=sys.stderr,
                flush=True,
            )
            loss_sum = 0.0
        if progress.seconds - saved > plan.checkpoint_minutes * 60:
            save(checkpoint, model, optimizers, progress)
            saved = progress.seconds
    save(checkpoint, model, optimizers, progress)
    return model, progress


def _step(
    model: Llama, optimizers: Sequence[torch.optim.Optimizer], ids: Tensor, own: Tensor, half: bool
) -> float:
    """One step; returns the mean loss of the model's own tokens."""
    words = torch.rand(ids.shape, device=ids.device) < QUESTION_SHARE
    chosen = (own | (words & (ids != 0)))[:, 1:]
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=half):
        stream = model(ids[:, :-1])
        logits = model.logits(stream[chosen])
    losses = F.cross_entropy(logits.float(), ids[:, 1:][chosen], reduction="none")
    losses.mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(losses.detach()[own[:, 1:][chosen]].mean())
