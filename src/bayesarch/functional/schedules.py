"""Learning-rate schedules as functions of progress."""

import math

__all__ = ["cosine", "linear"]


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
