"""What probabilities are worth: scores, calibration, uncertainty split in two, selective prediction, conformal sets.

Pure functions of numpy arrays, in float64. `p` is (n, K): a row of class probabilities per example; `members` is
(M, n, K); `y` is (n,): true classes. Everything in nats.

References: Brier, 1950; Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (ECE, temperature); Depeweg
et al., ICML 2018 (the split of uncertainty); Geifman and El-Yaniv, NeurIPS 2017 (risk against coverage); Romano et al.,
"Classification with Valid and Adaptive Coverage", NeurIPS 2020 (APS); Sadinle et al., JASA 2019 (sets by threshold).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

__all__ = [
    "Bins",
    "accuracy",
    "aps_scores",
    "auroc",
    "average_precision",
    "bootstrap",
    "brier",
    "calibration_error",
    "conformal_threshold",
    "disagreement",
    "entropy",
    "fit_temperature",
    "fpr_at_tpr",
    "mean_probabilities",
    "nll",
    "paired_bootstrap",
    "prediction_sets",
    "reliability",
    "risk_coverage",
    "softmax",
    "split_uncertainty",
]

Array = np.ndarray
TINY = 1e-300


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    """Return probabilities of logits over the last axis, at a temperature > 0."""
    z = np.asarray(logits, dtype=np.float64) / temperature
    e = np.exp(z - z.max(-1, keepdims=True))
    probabilities: Array = e / e.sum(-1, keepdims=True)
    return probabilities


def mean_probabilities(members: Array, weights: Sequence[float] | None = None) -> Array:
    """Return the mixture of members, shape (n, K); `weights` sum to 1, None: equal."""
    w = np.full(len(members), 1 / len(members)) if weights is None else np.asarray(weights, dtype=np.float64)
    mixed: Array = np.tensordot(w, np.asarray(members, dtype=np.float64), 1)
    return mixed


def accuracy(p: Array, y: Array) -> float:
    """Return the share that is right."""
    return float((p.argmax(1) == y).mean())


def nll(p: Array, y: Array, counting: Array | None = None) -> float:
    """Return the mean negative log probability of the true class, nats; a probability of 0 counts as 1e-300.

    `counting` says how much each example counts, shape (n,); None: all the same.
    """
    each = -np.log(np.maximum(p[np.arange(len(y)), y], TINY))
    return float(np.average(each, weights=counting)) + 0.0  # no minus zero


def brier(p: Array, y: Array) -> float:
    """Return the mean squared distance between probabilities and the one-hot truth, summed over classes: 0 to 2."""
    truth = np.eye(p.shape[1])[y]
    return float(((p - truth) ** 2).sum(1).mean())


class Bins(NamedTuple):
    """A reliability diagram: per bin that holds examples, how many, mean confidence, share right."""

    n: Array
    confidence: Array
    accuracy: Array


def reliability(p: Array, y: Array, *, bins: int = 15, equal: str = "width") -> Bins:
    """Return the reliability diagram of the top class.

    Args:
        p: probabilities.
        y: true classes.
        bins: how many.
        equal: `width`, bins (0, 1/B], (1/B, 2/B], ...; `mass`, equally many examples in each, by rank.
    """
    confidence, right = p.max(1), (p.argmax(1) == y).astype(np.float64)
    if equal == "width":
        edges = np.linspace(0, 1, bins + 1)
        index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    elif equal == "mass":
        ranks = np.argsort(np.argsort(confidence, kind="stable"), kind="stable")
        index = ranks * bins // len(confidence)
    else:
        raise ValueError(f"bins of equal 'width' or 'mass'; got {equal!r}")
    count = np.bincount(index, minlength=bins)
    there = count > 0
    sums = [np.bincount(index, weights=values, minlength=bins)[there] for values in (confidence, right)]
    return Bins(count[there], sums[0] / count[there], sums[1] / count[there])


def calibration_error(p: Array, y: Array, *, bins: int = 15, equal: str = "width") -> float:
    """Return the expected calibration error of the top class: mean distance of confidence and accuracy over bins."""
    diagram = reliability(p, y, bins=bins, equal=equal)
    return float((diagram.n * np.abs(diagram.confidence - diagram.accuracy)).sum() / len(y))


def entropy(p: Array) -> Array:
    """Return the entropy of each row, nats."""
    logs = np.log(np.where(p > 0, p, 1.0))
    h: Array = -(p * logs).sum(-1)
    return h


def split_uncertainty(members: Array, weights: Sequence[float] | None = None) -> tuple[Array, Array, Array]:
    """Return total, aleatoric and epistemic uncertainty per example, nats, shape (n,) each.

    Total is the entropy of the mixture, aleatoric the members' mean entropy, epistemic their difference: the mutual
    information of class and member, never negative.
    """
    w = np.full(len(members), 1 / len(members)) if weights is None else np.asarray(weights, dtype=np.float64)
    total = entropy(mean_probabilities(members, weights))
    aleatoric = np.tensordot(w, entropy(np.asarray(members, dtype=np.float64)), 1)
    return total, aleatoric, np.maximum(total - aleatoric, 0.0)


def disagreement(members: Array) -> float:
    """Return how often two different members name different classes, a mean over pairs and examples; 0 for one."""
    said = members.argmax(-1)
    m = len(said)
    pairs = [(said[i] != said[j]).mean() for i in range(m) for j in range(i)]
    return float(np.mean(pairs)) if pairs else 0.0


def fit_temperature(
    negative_log_likelihood: Callable[[float], float], *, low: float = 0.05, high: float = 20.0
) -> float:
    """Return the temperature in [low, high] of the lowest negative log likelihood.

    A golden-section search in log T. For one network the function is convex in 1/T, so it has one minimum there.
    """
    ratio = (math.sqrt(5) - 1) / 2
    a, b = math.log(low), math.log(high)
    c, d = b - ratio * (b - a), a + ratio * (b - a)
    at_c, at_d = negative_log_likelihood(math.exp(c)), negative_log_likelihood(math.exp(d))
    while b - a > 1e-6:
        if at_c <= at_d:
            b, d, at_d = d, c, at_c
            c = b - ratio * (b - a)
            at_c = negative_log_likelihood(math.exp(c))
        else:
            a, c, at_c = c, d, at_d
            d = a + ratio * (b - a)
            at_d = negative_log_likelihood(math.exp(d))
    return math.exp((a + b) / 2)


def risk_coverage(p: Array, y: Array) -> tuple[Array, Array, float]:
    """Return coverage, risk and the area under risk: errors among the most confident, for every share answered.

    Returns:
        coverage (n,) from 1/n to 1, risk (n,), and the mean of risk over coverages (AURC). Equal confidences are
        answered together: within a tie, risk is what it is at its end.
    """
    confidence = p.max(1)
    order = np.argsort(-confidence, kind="stable")
    wrong = (p.argmax(1) != y)[order].astype(np.float64)
    n = len(y)
    risk = np.cumsum(wrong) / np.arange(1, n + 1)
    sorted_confidence = confidence[order]
    last = np.searchsorted(-sorted_confidence, -sorted_confidence, side="right") - 1
    risk = risk[last]
    return np.arange(1, n + 1) / n, risk, float(risk.mean())


def auroc(negatives: Array, positives: Array) -> float:
    """Return the probability that a positive scores above a negative; ties count half."""
    both = np.concatenate([negatives, positives])
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(negatives), len(positives)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def average_precision(negatives: Array, positives: Array) -> float:
    """Return the area under precision against recall, positives being what is to be found."""
    scores = np.concatenate([negatives, positives])
    truth = np.concatenate([np.zeros(len(negatives)), np.ones(len(positives))])
    order = np.argsort(-scores, kind="stable")
    scores, truth = scores[order], truth[order]
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))
    found = np.cumsum(truth)[ends]
    precision, recall = found / (ends + 1), found / len(positives)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def fpr_at_tpr(negatives: Array, positives: Array, *, tpr: float = 0.95) -> float:
    """Return the share of negatives at or above the threshold that at least `tpr` of the positives reach."""
    ranked = np.sort(positives)[::-1]
    threshold = ranked[math.ceil(tpr * len(ranked)) - 1]
    return float((negatives >= threshold).mean())


def aps_scores(p: Array, u: Array) -> Array:
    """Return the APS score of every class, shape (n, K): mass of classes above it and `u` of its own.

    Args:
        p: probabilities.
        u: one uniform draw per example, shape (n,), which makes coverage exact; ones: not randomised.
    """
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.take_along_axis(p, order, 1)
    above = np.cumsum(ranked, axis=1) - ranked
    scores = np.empty_like(p)
    np.put_along_axis(scores, order, above + u[:, None] * ranked, 1)
    return scores


def conformal_threshold(scores: Array, alpha: float) -> float:
    """Return the ceil((n + 1)(1 - alpha))-th smallest score of calibration examples; infinity where n is too small.

    A class whose score does not exceed it is in the set, which then holds the truth of a fresh, exchangeable example
    with a probability of at least 1 - alpha.
    """
    k = math.ceil((len(scores) + 1) * (1 - alpha))
    return math.inf if k > len(scores) else float(np.sort(scores)[k - 1])


def prediction_sets(scores: Array, threshold: float) -> Array:
    """Return which classes are in each set, bool of shape (n, K)."""
    inside: Array = scores <= threshold
    return inside


def bootstrap(
    statistic: Callable[[Array], float], n: int, *, draws: int = 1000, level: float = 0.9, seed: int = 0
) -> tuple[float, float]:
    """Return the central interval of a statistic over resampled examples; it is given indices of shape (n,)."""
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, n, n)) for _ in range(draws)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    a: Callable[[Array], float],
    b: Callable[[Array], float],
    n: int,
    *,
    draws: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return a - b with the central interval over examples resampled together for both."""
    everything = np.arange(n)
    low, high = bootstrap(lambda index: a(index) - b(index), n, draws=draws, level=level, seed=seed)
    return a(everything) - b(everything), low, high
