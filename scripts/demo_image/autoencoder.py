"""Trains the autoencoder on rendered scenes until pictures come back as they were, then turns scenes into latents."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from .muon import new_optimizers
from .parts import new_autoencoder
from .scenes import Pixels, Scene, any_scene, render

BATCH = 32
PEAK_RATE = 1e-3
KL_SHARE = 5e-5  # keeps a little noise in the latents, so that the decoder forgives the denoiser's errors
NOISE = 0.1  # on the latents in the training of the decoder alone
SAVED_EVERY = 50  # steps


@dataclass(frozen=True)
class Plan:
    """How long to train, where, and with what."""

    seed: int
    steps: int
    device: torch.device
    bfloat16: bool


class Roundtrip(nn.Module):
    """Pictures to latents with noise and back."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, pictures: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(pictures again, mean KL divergence of the latents from a unit normal)."""
        posterior = self.autoencoder.encode(pictures).latent_dist
        again = self.autoencoder.decode(posterior.mean + posterior.std * noise).sample
        divergence = posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()
        return again, divergence.mean() / 2


def tensor_of(pictures: list[Pixels]) -> torch.Tensor:
    """Pictures as n x 3 x SIDE x SIDE from -1 to 1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(plan: Plan, checkpoint: Path) -> AutoencoderKL:
    """Trains for plan.steps in all, going on from `checkpoint` where there is one."""
    torch.manual_seed(plan.seed)
    model = Roundtrip(new_autoencoder()).to(plan.device)
    _quieten(model.autoencoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.0, betas=(0.9, 0.99))
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=plan.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizers"][0])
        start = state["step"]
    began, summed = time.monotonic(), 0.0
    for step in range(start, plan.steps):
        rng = random.Random(f"{plan.seed}:autoencoder {step}")
        torch.manual_seed(rng.getrandbits(63))
        pictures = tensor_of([render(any_scene(rng)) for _ in range(BATCH)]).to(plan.device)
        rate = PEAK_RATE * min(1.0, (step + 1) / 50) * min(1.0, 0.01 + 1.6 * (1 - step / plan.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        noise = torch.randn(BATCH, 4, pictures.shape[2] // 4, pictures.shape[3] // 4, device=plan.device)
        with torch.autocast(plan.device.type, torch.bfloat16, enabled=plan.bfloat16):
            again, divergence = model(pictures, noise)
        again = again.float()
        lost = (_weights(pictures) * ((again - pictures).abs() + (again - pictures) ** 2)).mean()
        optimizer.zero_grad(set_to_none=True)
        (lost + KL_SHARE * divergence).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        summed += F.l1_loss(again, pictures).item()
        if (step + 1) % 50 == 0:
            per_second = (step + 1 - start) * BATCH / (time.monotonic() - began)
            say(f"autoencoder: step {step + 1}  off by {summed / 50 * 127.5:.2f}/255  KL {divergence.item():.2f}"
                f"  {per_second:.0f} pictures/s")  # fmt: skip
            summed = 0.0
        if (step + 1) % SAVED_EVERY == 0 or step + 1 == plan.steps:
            _save(checkpoint, model, [optimizer], step + 1)
    return model.autoencoder


def _weights(pictures: torch.Tensor) -> torch.Tensor:
    """How much each pixel counts, n x 1 x SIDE x SIDE: a shape and its edge as much as the whole, however small."""
    painted = (pictures - pictures[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.05
    near = F.max_pool2d(painted.float(), 5, 1, 2)
    return 1 + near / near.mean((1, 2, 3), keepdim=True).clamp(min=0.01)


@torch.no_grad()
def _quieten(autoencoder: AutoencoderKL) -> None:
    """Starts with hardly any noise in the latents: with noise as strong as themselves they are never taken up."""
    autoencoder.quant_conv.weight[4:] = 0
    autoencoder.quant_conv.bias[4:] = -6


def train_decoder(
    plan: Plan,
    autoencoder: AutoencoderKL,
    scenes: list[Scene],
    latents: NDArray[np.float16],
    checkpoint: Path,
) -> None:
    """Trains the decoder alone for plan.steps in all, on latents as little off as the denoiser's will be."""
    model = autoencoder.to(plan.device)
    parts = nn.ModuleDict({"decoder": model.decoder, "post_quant_conv": model.post_quant_conv})
    optimizers = new_optimizers(parts, ("conv_in", "conv_out", "quant_conv"))
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=plan.device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, old in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(old)
        start = state["step"]
    summed = 0.0
    for step in range(start, plan.steps):
        rng = random.Random(f"{plan.seed}:decoder {step}")
        torch.manual_seed(rng.getrandbits(63))
        chosen = [rng.randrange(len(scenes)) for _ in range(BATCH)]
        pictures = tensor_of([render(scenes[number]) for number in chosen]).to(plan.device)
        given = torch.from_numpy(latents[chosen].astype(np.float32)).to(plan.device)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / 20) * (1.01 - step / plan.steps)
        with torch.autocast(plan.device.type, torch.bfloat16, enabled=plan.bfloat16):
            again = model.decode(given + NOISE * torch.randn_like(given)).sample
        off = (again.float() - pictures).abs()
        parts.zero_grad(set_to_none=True)
        (_weights(pictures) * (off + off**2)).mean().backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        summed += off.mean().item()
        if (step + 1) % SAVED_EVERY == 0 or step + 1 == plan.steps:
            say(f"decoder: step {step + 1}  off by {summed / SAVED_EVERY * 127.5:.2f}/255")
            summed = 0.0
            _save(checkpoint, model, optimizers, step + 1)


def _save(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], step: int) -> None:
    """Writes the checkpoint whole or not at all."""
    part = path.with_suffix(".part")
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"model": model.state_dict(), "optimizers": states, "step": step}, part)
    part.replace(path)


def load(checkpoint: Path) -> AutoencoderKL:
    """The autoencoder of a training's checkpoint, or of its bare weights."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    weights = state.get("model", state)
    model = new_autoencoder()
    model.load_state_dict({name.removeprefix("autoencoder."): weight for name, weight in weights.items()})
    return model.eval()


@torch.inference_mode()
def encoded(autoencoder: AutoencoderKL, scenes: list[Scene], bfloat16: bool = False) -> NDArray[np.float16]:
    """The latents of scenes, n x 4 x 16 x 16."""
    device = next(autoencoder.parameters()).device
    made = []
    for start in range(0, len(scenes), 256):
        pictures = tensor_of([render(scene) for scene in scenes[start : start + 256]]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            means = autoencoder.encode(pictures).latent_dist.mean
        made.append(means.float().cpu().numpy().astype(np.float16))
    return np.concatenate(made)


@torch.no_grad()
def normalise(autoencoder: AutoencoderKL, latents: NDArray[np.float16]) -> None:
    """Gives each channel of the latents mean 0 and deviation 1 by changing the 1 x 1 convolutions around them."""
    means = torch.from_numpy(latents.astype(np.float32).mean((0, 2, 3)))
    deviations = torch.from_numpy(latents.astype(np.float32).std((0, 2, 3)))
    before, after = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = len(means)
    before.bias[:channels] -= means
    before.weight[:channels] /= deviations[:, None, None, None]
    before.bias[:channels] /= deviations
    before.bias[channels:] -= 2 * deviations.log()
    after.bias += after.weight[:, :, 0, 0] @ means
    after.weight *= deviations[None, :, None, None]


def say(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)
