"""Learning-rate schedules as functions of progress."""

import math
from collections.abc import Sequence

__all__ = ["cosine", "falling_steps", "linear", "warm_restarts"]


def cosine(step: float, total: float, first: float, last: float) -> float:
    """Return `first` at step 0 and `last` from step `total` on, half a cosine between.

    Args:
        step: steps done.
        total: length of the schedule in steps, > 0.
        first: value at the start.
        last: value at the end.
    """
    progress = min(max(step / total, 0.0), 1.0)
    return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * progress))


def linear(step: float, total: float, first: float, last: float) -> float:
    """Return `first` at step 0 and `last` from step `total` on, a straight line between; `last` where total is 0."""
    return first + (last - first) * (min(max(step / total, 0.0), 1.0) if total > 0 else 1.0)


def warm_restarts(epoch: float, length: float, first: float, last: float) -> float:
    """Return half a cosine from `first` to `last`, begun again at its end and twice as long each time.

    Reference: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, T_mult = 2.

    Args:
        epoch: epochs done.
        length: epochs of the first period, > 0.
        first: value at each beginning.
        last: value at each end.
    """
    while epoch >= length:
        epoch, length = epoch - length, 2 * length
    return cosine(epoch, length, first, last)


def falling_steps(epoch: float, milestones: Sequence[float], first: float, factor: float) -> float:
    """Return `first` times `factor` for each milestone that is reached."""
    return first * factor ** sum(epoch >= milestone for milestone in milestones)
