"""Weights in fewer bits: how near they are to the whole ones, and what they save."""

from typing import Literal

import pytest
import torch
from torch import nn

from oxlo_local.engines.image.shrunk import LEAST, Shrunk, shrink


@pytest.mark.parametrize(("bits", "error", "share"), [(8, 0.012, 0.27), (4, 0.15, 0.17)])
def test_a_layer_does_nearly_the_same_in_less(bits: int, error: float, share: float) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(512, 256)
    x = torch.randn(32, 512)
    with torch.no_grad():
        whole, shrunk = linear(x), Shrunk(linear, bits)
        found = shrunk(x)
    assert float((found - whole).norm() / whole.norm()) < error
    stored = sum(each.numel() * each.element_size() for each in shrunk.buffers())
    assert stored < share * linear.weight.numel() * 4
    assert shrunk.weight.shape == linear.weight.shape


def test_a_row_of_zeros_stays_zero() -> None:
    linear = nn.Linear(64, 4, bias=False)
    with torch.no_grad():
        linear.weight.zero_()
    assert all(not Shrunk(linear, bits).weight.any() for bits in (8, 4))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_only_what_is_worth_it_is_replaced(kind: Literal["int8", "int4"]) -> None:
    side = int(LEAST**0.5)
    module = nn.Sequential(
        nn.Linear(side, side), nn.Linear(8, 8), nn.Sequential(nn.Linear(side, 2 * side)), nn.Conv2d(3, 3, 3)
    )
    shrink(module, kind)
    kinds = [type(each).__name__ for each in module.modules() if not isinstance(each, nn.Sequential)]
    assert kinds == ["Shrunk", "Linear", "Shrunk", "Conv2d"]
    assert module[0](torch.randn(1, side, dtype=torch.bfloat16).float()).shape == (1, side)
    assert module.to(torch.bfloat16)[0](torch.randn(1, side, dtype=torch.bfloat16)).dtype == torch.bfloat16
