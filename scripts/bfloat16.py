"""Whether training in bfloat16 pays on this machine; the trainers of all three demo models ask."""

from __future__ import annotations

import time

import torch


def fast_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 faster than float32 (GPUs and newer CPUs do): measured."""
    if device.type != "cpu":
        return True
    times = []
    for kind in (torch.float32, torch.bfloat16):
        a, b = torch.randn(4096, 128, dtype=kind), torch.randn(128, 512, dtype=kind)
        a @ b
        began = time.perf_counter()
        for _ in range(20):
            a @ b
        times.append(time.perf_counter() - began)
    return times[1] < 0.7 * times[0]
