"""Is a posterior calibrated? Predictions of independent runs against what the other runs found. numpy only.

A run's table of weights says how likely each option is. Read as probabilities, an option given .8 must be found by 80 %
of independent runs of the same search. Each run's weights are therefore compared with the share of the *other* runs
that found the option; a posterior is calibrated where the two agree on average, bin by bin (a reliability diagram).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Bin", "calibration_error", "others_share", "predictive_coverage", "reliability", "tempered"]

Table = Sequence[np.ndarray]
"""Per choice, the weights of its options, summing to 1."""


class Bin(NamedTuple):
    """One bar of a reliability diagram: mean prediction, mean outcome, and how many pairs are in it."""

    predicted: float
    observed: float
    n: int


def others_share(found: np.ndarray) -> np.ndarray:
    """Return, for each run and option, the share of the other runs that found it, shape (R, G).

    Args:
        found: whether run r found flat option g, shape (R, G), R >= 2.
    """
    counts = found.sum(0, keepdims=True) - found
    share: np.ndarray = counts / (len(found) - 1)
    return share


def reliability(predicted: np.ndarray, observed: np.ndarray, *, bins: int = 10) -> list[Bin]:
    """Return the bars of a reliability diagram over equal-width bins of the prediction; empty bins are left out.

    Args:
        predicted: in 0..1, any shape.
        observed: of the same shape.
        bins: number of bins.
    """
    p, y = predicted.ravel(), observed.ravel()
    place = np.minimum((p * bins).astype(int), bins - 1)
    return [
        Bin(float(p[place == b].mean()), float(y[place == b].mean()), int((place == b).sum()))
        for b in range(bins)
        if (place == b).any()
    ]


def calibration_error(predicted: np.ndarray, observed: np.ndarray, *, bins: int = 10) -> float:
    """Return the expected calibration error: the mean of |predicted - observed| over bins, weighted by their size.

    Reference: Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI
    2015, with shares in place of single outcomes.
    """
    rows = reliability(predicted, observed, bins=bins)
    total = sum(row.n for row in rows)
    return sum(row.n * abs(row.predicted - row.observed) for row in rows) / total


def tempered(log_weights: np.ndarray, temperature: float) -> np.ndarray:
    """Return weights^(1/T), scaled to sum to 1, along the last axis; T > 1 flattens.

    Args:
        log_weights: up to a constant; -inf excludes.
        temperature: T > 0.
    """
    scaled = log_weights / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    weights: np.ndarray = powers / powers.sum(-1, keepdims=True)
    return weights


def predictive_coverage(found: np.ndarray, *, splits: int, level: float, rng: np.random.Generator) -> float:
    """Return how often the intervals made from one half of the runs hold what the other half finds.

    For an option found k times in n runs, the count in m further runs has a beta-binomial law under the Jeffreys
    posterior Beta(k + 1/2, n - k + 1/2); the interval is its central one of `level`. Counts are whole numbers, so a
    sound procedure covers at least `level`.

    Args:
        found: whether run r found flat option g, shape (R, G), R >= 4.
        splits: random halvings.
        level: probability inside.
        rng: draws the halvings.
    """
    from scipy.stats import betabinom  # scikit-learn brings it

    runs, hits = len(found), []
    n, tail = runs // 2, (1 - level) / 2
    for _ in range(splits):
        order = rng.permutation(runs)
        k, later = found[order[:n]].sum(0), found[order[n:]].sum(0)
        law = betabinom(runs - n, k + 0.5, n - k + 0.5)
        hits.append((law.ppf(tail) <= later) & (later <= law.ppf(1 - tail)))
    return float(np.mean(hits))
