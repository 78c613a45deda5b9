"""Linear layers whose weights are kept in 8 or 4 bits, for models that do not fit otherwise.

Each row of a weight matrix (8 bits), or each group of 64 numbers of one (4 bits), has one scale; a layer makes its
matrix whole again whenever it is used. That costs little beside a product with the thousands of tokens of an image,
and works on every device.
"""

from typing import Literal

import torch
from torch import Tensor, nn

GROUP = 64  # numbers with one scale
LEAST = 65_536  # numbers in a matrix that is worth it


class Shrunk(nn.Module):  # type: ignore[misc]  # torch is not read by mypy
    """A linear layer with its weights in `bits` 8 or 4."""

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.in_features, self.out_features = linear.in_features, linear.out_features
        whole = (
            linear.weight.detach()
            .float()
            .view(linear.out_features, -1, GROUP if bits == 4 else linear.in_features)
        )
        most = 7 if bits == 4 else 127
        scale = whole.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8) / most
        whole = (whole / scale).round_().clamp_(-most, most).to(torch.int8).view(linear.out_features, -1)
        if bits == 4:  # two numbers a byte
            whole = ((whole[:, ::2] + 8) | ((whole[:, 1::2] + 8) << 4)).view(torch.uint8)
        self.register_buffer("numbers", whole.contiguous())
        self.register_buffer("scale", scale.to(linear.weight.dtype))
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The matrix, whole again."""
        numbers = self.numbers
        if self.bits == 4:
            numbers = torch.stack((numbers & 15, numbers >> 4), dim=-1).to(self.scale.dtype) - 8
        groups = numbers.to(self.scale.dtype).view(self.out_features, self.scale.shape[1], -1)
        return (groups * self.scale).view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer that it was made of."""
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)


def shrink(module: nn.Module, kind: Literal["int8", "int4"]) -> None:
    """Replace the large linear layers in a module, at any depth, each freed before the next is looked at."""
    bits = 4 if kind == "int4" else 8
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear and child.weight.numel() >= LEAST and child.in_features % GROUP == 0:
            setattr(module, name, Shrunk(child, bits))
        else:
            shrink(child, kind)
