"""Trains text encoder and denoiser together on latents of rendered scenes, with captions made anew each time.

The denoiser learns v-prediction at all noise levels down to noise alone; one caption in ten is empty, so that guidance
has something to compare with. The text encoder is also asked what its last token knows of the scene, at first nothing
but that: it binds "red" to "circle" and "blue" to "background" in a minute, where pictures alone would take most of
the hour.
Nothing looks at a clock, so that a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import copy
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from .autoencoder import say
from .captions import Naming, training_caption
from .muon import new_optimizers
from .parts import WIDTH, new_scheduler, new_text_encoder, new_unet
from .scenes import BACKGROUNDS, COLUMNS, PALETTE, ROWS, SHAPES, SIZES, Scene

FACTS = (
    tuple(PALETTE),
    SHAPES,
    tuple(BACKGROUNDS),
    tuple(SIZES),
    ROWS,
    COLUMNS,
)  # in the order of a combination
UNNAMED = -100
EMPTY_SHARE = 0.1  # of the captions
FACTS_SHARE = 0.05  # of the loss
KEPT = 0.998  # of the averaged weights at each step
WORDS_FIRST = 500  # steps in which only the text encoder learns
SAVED_EVERY, SAID_EVERY = 50, 25  # steps


@dataclass(frozen=True)
class Plan:
    """How long to train (`pictures` in all, repeats counted), where, and with what."""

    seed: int
    pictures: int
    device: torch.device
    bfloat16: bool
    batch: int = 48
    peak_rate: float = 2e-3


class Painter(nn.Module):
    """What is trained: the two parts of the pipeline, and the heads that ask the text encoder for facts."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text = new_text_encoder(tokenizer)
        self.unet = new_unet()
        self.heads = nn.Linear(WIDTH, sum(len(names) for names in FACTS))

    def forward(
        self, ids: torch.Tensor, noisy: torch.Tensor, times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(v, scores of all facts side by side) for batch x tokens, batch x 4 x 16 x 16, batch."""
        words = self.text(input_ids=ids).last_hidden_state
        return self.unet(noisy, times, encoder_hidden_states=words).sample, self.heads(words[:, -1])

    def facts(self, ids: torch.Tensor) -> torch.Tensor:
        """Only the scores."""
        scores: torch.Tensor = self.heads(self.text(input_ids=ids).last_hidden_state[:, -1])
        return scores


def load(checkpoint: Path, tokenizer: CLIPTokenizer) -> Painter:
    """The averaged weights of a training's checkpoint."""
    painter = Painter(tokenizer)
    painter.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["kept"])
    return painter


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    pictures: int = 0
    seconds: float = 0.0


def learning_rate(plan: Plan, progress: Progress) -> float:
    """Rises over 100 steps, of words and again of pictures, stays, and falls to a hundredth over the last 40 %."""
    share = min(1.0, progress.pictures / plan.pictures)
    fall = 1.0 if share < 0.6 else 1.0 - 0.99 * (share - 0.6) / 0.4
    since = progress.step - (WORDS_FIRST if progress.step >= WORDS_FIRST else 0)
    return plan.peak_rate * min(1.0, (since + 1) / 100) * fall


def facts_of(scene: Scene, naming: Naming) -> list[int]:
    """The number of each fact in its table, UNNAMED where the caption does not say it."""
    named = (naming.colour, naming.shape, naming.background, naming.size, naming.place, naming.place)
    return [
        names.index(fact) if said else UNNAMED
        for names, fact, said in zip(FACTS, scene.combination, named, strict=True)
    ]


@dataclass(frozen=True)
class Batch:
    """Tensors of one step."""

    ids: torch.Tensor
    latents: torch.Tensor
    facts: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids.to(device), self.latents.to(device), self.facts.to(device))


def batch_of(
    rng: random.Random,
    tokenizer: CLIPTokenizer,
    scenes: Sequence[Scene],
    latents: NDArray[np.float16],
    size: int,
) -> Batch:
    """`size` scenes by chance with captions."""
    chosen = [rng.randrange(len(scenes)) for _ in range(size)]
    texts, facts = [], []
    for number in chosen:
        text, naming = training_caption(rng, scenes[number])
        if rng.random() < EMPTY_SHARE:
            text = ""
        texts.append(text)
        facts.append(facts_of(scenes[number], naming) if text else [UNNAMED] * len(FACTS))
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return Batch(ids, torch.from_numpy(latents[chosen].astype(np.float32)), torch.tensor(facts))


class Noise:
    """Noisy latents and the v that is due, at any of the scheduler's times."""

    def __init__(self, device: torch.device) -> None:
        self.scheduler = new_scheduler()
        self.levels = self.scheduler.alphas_cumprod.to(device)

    def added(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(noisy latents, times, v)."""
        share = torch.rand(
            len(latents), device=latents.device
        ).sqrt()  # a plain picture shows through much noise
        times = (share * len(self.levels)).long().clamp(max=len(self.levels) - 1)
        kept = self.levels[times].sqrt()[:, None, None, None]
        lost = (1 - self.levels[times]).sqrt()[:, None, None, None]
        noise = torch.randn_like(latents)
        return kept * latents + lost * noise, times, kept * noise - lost * latents


def picture_loss(
    painter: Painter, noise: Noise, batch: Batch, plan: Plan
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean square error of v, mean cross-entropy of the facts)."""
    noisy, times, due = noise.added(batch.latents)
    with torch.autocast(plan.device.type, torch.bfloat16, enabled=plan.bfloat16):
        v, scores = painter(batch.ids, noisy, times)
    return F.mse_loss(v.float(), due), _mistaken(scores, batch.facts)


def word_loss(painter: Painter, batch: Batch, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """(0, mean cross-entropy of the facts)."""
    with torch.autocast(plan.device.type, torch.bfloat16, enabled=plan.bfloat16):
        scores = painter.facts(batch.ids)
    return torch.zeros((), device=plan.device), _mistaken(scores, batch.facts)


def _mistaken(scores: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
    parts = scores.float().split([len(names) for names in FACTS], dim=1)
    wrong = [
        F.cross_entropy(part, facts[:, fact], ignore_index=UNNAMED, reduction="sum")
        for fact, part in enumerate(parts)
    ]
    return torch.stack(wrong).sum() / (facts != UNNAMED).sum().clamp(min=1)


def _rank() -> tuple[int, int]:
    """(number of this process, how many train together)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _share_gradients(painter: Painter) -> None:
    """Makes the gradients the mean of all processes' gradients, in one message."""
    if not dist.is_initialized():
        return
    gradients = [weight.grad for weight in painter.parameters() if weight.grad is not None]
    message = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(message)
    message /= dist.get_world_size()
    for gradient, mean in zip(gradients, message.split([one.numel() for one in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def average(kept: nn.Module, painter: nn.Module, step: int) -> None:
    """Moves the averaged weights towards the painter's, faster in the beginning."""
    share = min(KEPT, (1 + step) / (10 + step))
    for old, new in zip(kept.parameters(), painter.parameters(), strict=True):
        old.lerp_(new, 1 - share)


def train(
    plan: Plan,
    tokenizer: CLIPTokenizer,
    scenes: Sequence[Scene],
    latents: NDArray[np.float16],
    checkpoint: Path,
) -> tuple[Painter, Progress]:
    """Trains on plan.pictures in all, going on from `checkpoint` where there is one; gives the averaged weights."""
    torch.manual_seed(plan.seed)
    painter = Painter(tokenizer).to(plan.device)
    if plan.device.type == "cpu":
        painter.unet.set_attn_processor(
            AttnProcessor()
        )  # the fused ones are slower here, above all backwards
        painter.text.set_attn_implementation("eager")
    kept = copy.deepcopy(painter).requires_grad_(False)
    optimizers = new_optimizers(painter, ("embedding", "conv_in", "conv_out", "heads"))
    progress = Progress()
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=plan.device, weights_only=True)
        painter.load_state_dict(state["painter"])
        kept.load_state_dict(state["kept"])
        for optimizer, old in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(old)
        progress = Progress(**state["progress"])
        say(f"train: going on from step {progress.step}, {progress.pictures} pictures")
    noise, (rank, ranks) = Noise(plan.device), _rank()
    sums, began = torch.zeros(2), time.monotonic()
    while progress.pictures < plan.pictures:
        rng = random.Random(f"{plan.seed}:train {progress.step} {rank}")
        torch.manual_seed(rng.getrandbits(63))
        batch = batch_of(rng, tokenizer, scenes, latents, plan.batch).to(plan.device)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(plan, progress)
        words_only = progress.step < WORDS_FIRST
        error, wrong = (
            word_loss(painter, batch, plan) if words_only else picture_loss(painter, noise, batch, plan)
        )
        painter.zero_grad(set_to_none=True)
        (error + FACTS_SHARE * wrong).backward()
        _share_gradients(painter)
        nn.utils.clip_grad_norm_(painter.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average(kept, painter, progress.step)
        progress.step += 1
        progress.pictures += 0 if words_only else plan.batch * ranks
        sums += torch.tensor([error.item(), wrong.item()])
        if rank == 0 and progress.step % SAID_EVERY == 0:
            progress.seconds, began = progress.seconds + time.monotonic() - began, time.monotonic()
            v_error, fact_error = (sums / SAID_EVERY).tolist()
            say(
                f"train: step {progress.step}  pictures {progress.pictures}  v {v_error:.4f}  facts {fact_error:.3f}"
                f"  rate {learning_rate(plan, progress):.5f}  {progress.seconds / 60:.1f} min"
            )
            sums.zero_()
        if rank == 0 and (progress.step % SAVED_EVERY == 0 or progress.pictures >= plan.pictures):
            _save(checkpoint, painter, kept, optimizers, progress)
    return kept, progress


def _save(
    path: Path,
    painter: Painter,
    kept: Painter,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Progress,
) -> None:
    """Writes the checkpoint whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(
        {
            "painter": painter.state_dict(),
            "kept": kept.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "progress": vars(progress),
        },
        part,
    )
    part.replace(path)


def train_together(
    processes: int,
    plan: Plan,
    tokenizer: CLIPTokenizer,
    scenes: Sequence[Scene],
    latents: NDArray[np.float16],
    checkpoint: Path,
) -> None:
    """train() in so many processes of one thread each, which share gradients once a step.

    On a busy machine threads wait for each other in every operation, hundreds of times a step.
    """
    if processes == 1:
        train(plan, tokenizer, scenes, latents, checkpoint)
        return
    with tempfile.TemporaryDirectory() as scratch:
        meeting = f"file://{scratch}/meeting"
        torch.multiprocessing.spawn(
            _one_of_them, (processes, meeting, plan, tokenizer, scenes, latents, checkpoint), processes
        )


def _one_of_them(
    rank: int,
    processes: int,
    meeting: str,
    plan: Plan,
    tokenizer: CLIPTokenizer,
    scenes: Sequence[Scene],
    latents: NDArray[np.float16],
    checkpoint: Path,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    train(plan, tokenizer, scenes, latents, checkpoint)
    dist.destroy_process_group()
