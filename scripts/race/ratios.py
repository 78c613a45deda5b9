"""Paired comparisons: what two servers' figures, taken turn by turn, say about their ratio. Pure arithmetic.

A machine that drifts by a factor of two from minute to minute makes every absolute figure worthless, but it drifts
under both servers alike when they take turns. So each round gives one ratio, and only ratios are compared: their
geometric mean, with Student's 95 % interval of the mean logarithm (for five rounds a bootstrap interval is too
narrow). One round has no interval; its bounds are the ratio itself.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

# Student's t, 97.5 %, by degrees of freedom from 1 on; beyond 30 the normal distribution's.
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
NORMAL = 1.960
PARITY, PARITY_LOWER = 1.0, 0.97  # "as fast as" holds when the lower bound of the ratio reaches this

Kind = Literal["at_least", "at_most", "extra", "own_at_most"]
Against = Literal["peer", "floor"]


class Bar(Struct, frozen=True):
    """What a figure is held against.

    at_least and at_most: the ratio ours / other's. extra: the difference ours - other's, in the figure's unit.
    own_at_most: our figure itself. `value` None: nothing is demanded, the figure is only shown.
    """

    figure: str
    kind: Kind
    value: float | None
    against: Against = "peer"


class Estimate(Struct, frozen=True):
    """A mean with its 95 % interval, over `rounds` rounds."""

    mean: float
    low: float
    high: float
    rounds: int


class Verdict(Struct, frozen=True):
    """A bar, and what came of it. `holds` None where nothing is demanded, or where a figure is missing."""

    bar: Bar
    estimate: Estimate | None
    holds: bool | None
    unsure: bool = False  # the interval reaches across the bar


def interval(values: Sequence[float]) -> Estimate:
    """Mean of at least one value and its 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean, mean, mean, 1)
    freedom = len(values) - 1
    student = STUDENT[freedom - 1] if freedom <= len(STUDENT) else NORMAL
    half = student * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


def ratio(ours: Sequence[float], others: Sequence[float]) -> Estimate | None:
    """Geometric mean of the paired ratios ours / others'; None when there is no pair of positive numbers."""
    logs = [math.log(a / b) for a, b in zip(ours, others, strict=True) if a > 0 and b > 0]
    if not logs:
        return None
    found = interval(logs)
    return Estimate(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.rounds)


def judge(bar: Bar, ours: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]]) -> Verdict:
    """Hold the rounds of both against a bar. A round in which either lacks the figure does not count."""
    if bar.kind == "own_at_most":
        values = [each[bar.figure] for each in ours if bar.figure in each]
        estimate = interval(values) if values else None
    else:
        pairs = [
            (a[bar.figure], b[bar.figure])
            for a, b in zip(ours, others, strict=True)
            if bar.figure in a and bar.figure in b
        ]
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        if bar.kind == "extra":
            estimate = interval([a - b for a, b in pairs]) if pairs else None
        else:
            estimate = ratio(first, second)
    if estimate is None:
        return Verdict(bar, None, None if bar.value is None else False)
    if bar.value is None:
        return Verdict(bar, estimate, None)
    return Verdict(bar, estimate, _holds(bar.kind, bar.value, estimate), _unsure(bar, estimate))


def _holds(kind: Kind, value: float, found: Estimate) -> bool:
    if kind == "at_least":
        return found.low >= PARITY_LOWER if value == PARITY else found.mean >= value
    return found.mean <= value


def _unsure(bar: Bar, found: Estimate) -> bool:
    return bar.value is not None and bar.value != PARITY and found.low < bar.value < found.high


def merge(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures of one round: medians over its turns."""
    keys = {key for turn in turns for key in turn}
    return {
        key: round(statistics.median(turn[key] for turn in turns if key in turn), 4) for key in sorted(keys)
    }
