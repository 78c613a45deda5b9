"""Drawing a token in numpy, for the requests that most clients send: temperature with top_k, top_p and min_p.

libllama's chain copies every logit into a candidate of 12 bytes and walks over all of them once a filter: 0.6 to 1.0 ms
a token at a 150 k vocabulary, one sequence after the other. The same distribution by whole-array operations takes 0.05
to 0.3 ms. The filters, their order (top_k, top_p, min_p, then temperature) and their edges are llama.cpp's; a test
compares the two. Penalties, biases, typical_p and mirostat stay with the C chain (sampling.py).

The draw inverts the cumulative distribution at one uniform number, so a seed decides the text.
"""

import math

import numpy as np
from numpy.typing import NDArray

from oxlo_local.calls import Sampling

F32 = NDArray[np.float32]
Ids = NDArray[np.intp]

COLUMN = 32  # values of which one maximum is compared first
BLOCK = 256  # weights that are summed at once, so that only one block needs a running sum
FIRST_NUCLEUS = 512  # candidates that are sorted at first; four times as many each time they are too few


def draws(sampling: Sampling) -> bool:
    """Whether this room can draw for such a request."""
    moved = sampling.logit_bias or sampling.frequency_penalty or sampling.presence_penalty
    plain = not moved and sampling.repeat_penalty == 1.0
    return plain and sampling.temperature > 0 and sampling.typical_p >= 1 and sampling.mirostat == 0


def draw(logits: F32, sampling: Sampling, uniform: float) -> int:
    """The token at `uniform` (0 <= uniform < 1) of the distribution over `logits`, shape (n_vocab,)."""
    ids, values = candidates(logits, sampling)
    weights = values - values.max()
    weights *= 1 / sampling.temperature
    np.exp(weights, out=weights)
    place = pick(weights, uniform)
    if not weights[place]:  # sums in two precisions may part at a block's end; what is forbidden weighs 0
        place = int(weights.argmax())
    return place if ids is None else int(ids[place])


def candidates(logits: F32, sampling: Sampling) -> tuple[Ids | None, F32]:
    """The tokens that the filters leave, and their logits. None = all, in order."""
    ids: Ids | None = None
    values = logits
    if 0 < sampling.top_k < len(values):
        ids = largest(values, sampling.top_k)
        values = values[ids]
    if sampling.top_p < 1:
        ids, values = _select(ids, values, _nucleus(values, sampling.top_p))
    if sampling.min_p > 0:
        least = values.max() + np.float32(math.log(sampling.min_p))
        ids, values = _select(ids, values, np.flatnonzero(values >= least))
    return ids, values


def largest(values: F32, count: int) -> Ids:
    """Indices of the `count` largest values, in no order.

    The values are cut into columns of `COLUMN`: those that hold the largest `count` maxima hold the largest values too,
    and only these columns are partitioned. At 150 k values and 40 of them that is five times as fast as all.
    """
    width = len(values) // COLUMN
    if count >= width // 2:
        return np.argpartition(values, len(values) - count)[-count:]
    grid = values[: width * COLUMN].reshape(COLUMN, width)
    columns = np.argpartition(np.maximum.reduce(grid, axis=0), width - count)[-count:]
    rest = np.arange(width * COLUMN, len(values))  # fewer than a column
    ids = np.concatenate([(np.arange(0, width * COLUMN, width)[:, None] + columns).ravel(), rest])
    few = values[ids]
    return ids[np.argpartition(few, len(few) - count)[-count:]]


def pick(weights: F32, uniform: float) -> int:
    """Index at which the running sum of `weights` passes `uniform` of their whole."""
    if len(weights) <= 2 * BLOCK:
        return _pass(np.cumsum(weights, dtype=np.float64), uniform)
    sums = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), BLOCK)), dtype=np.float64)
    target = uniform * sums[-1]
    block = _at(sums, target)
    before = sums[block - 1] if block else 0.0
    inside = np.cumsum(weights[block * BLOCK : (block + 1) * BLOCK], dtype=np.float64)
    return block * BLOCK + _at(inside, target - before)


def _pass(sums: NDArray[np.float64], uniform: float) -> int:
    return _at(sums, uniform * sums[-1])


def _at(sums: NDArray[np.float64], target: float) -> int:
    """First index whose sum is above the target; rounding may put the target at the very end."""
    return min(int(np.searchsorted(sums, target, side="right")), len(sums) - 1)


def _select(ids: Ids | None, values: F32, keep: Ids) -> tuple[Ids, F32]:
    return (keep if ids is None else ids[keep]), values[keep]


def _nucleus(values: F32, top_p: float) -> Ids:
    """Indices of the likeliest tokens that together reach `top_p`, the one that reaches it included."""
    weights = np.exp(values - values.max())
    goal = top_p * float(weights.sum(dtype=np.float64))
    count = min(FIRST_NUCLEUS, len(weights))
    while True:
        best = largest(weights, count) if count < len(weights) else np.arange(count)
        best = best[np.argsort(-weights[best], kind="stable")]
        sums = np.cumsum(weights[best], dtype=np.float64)
        if sums[-1] >= goal or count == len(weights):
            return best[: int(np.searchsorted(sums, goal, side="left")) + 1]
        count = min(4 * count, len(weights))
