"""Muon for matrices and convolutions: steps of momentum made orthogonal; it needs about half as many as AdamW."""

from __future__ import annotations

from collections.abc import Iterable

import torch

MOMENTUM, DECAY = 0.95, 0.01
QUINTIC = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, as Muon's author gives them


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """About the nearest matrix with orthonormal rows or columns, in five iterations; 16 bits are enough."""
    a, b, c = QUINTIC
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / (x.norm() + 1e-7)).bfloat16()
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    x = x.to(matrix.dtype)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """torch's own takes matrices only; here a convolution is the matrix of its output channels."""

    def __init__(self, weights: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(weights, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step; its root mean square is AdamW's at the same rate."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
                ahead = weight.grad.lerp(state["momentum"], MOMENTUM).flatten(1)
                scale = 0.2 * max(ahead.shape) ** 0.5
                weight.mul_(1 - group["lr"] * DECAY)
                weight.add_(orthogonal(ahead).view_as(weight), alpha=-group["lr"] * scale)


def new_optimizers(model: torch.nn.Module, outer: tuple[str, ...]) -> list[torch.optim.Optimizer]:
    """Muon for all matrices and convolutions without one of `outer` in their names, AdamW for all else."""
    named = list(model.named_parameters())
    inner = [one for name, one in named if one.dim() > 1 and not any(part in name for part in outer)]
    others = [one for name, one in named if one.dim() < 2 or any(part in name for part in outer)]
    return [Muon(inner, 0.0), torch.optim.AdamW(others, 0.0, weight_decay=0.0, betas=(0.9, 0.98))]
