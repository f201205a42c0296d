"""Which of the trained candidates are members, and with what weights: decided on the selection split.

References: Caruana et al., "Ensemble Selection from Libraries of Models", ICML 2004; Zaidi et al., "Neural Ensemble
Search for Uncertainty Estimation and Dataset Shift", NeurIPS 2021 (greedy without replacement is its default).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from bayesarch.functional.uncertainty import nll

__all__ = ["SELECTIONS", "Chosen", "Selection", "stacked_weights"]

Selection = Literal["forward", "forward-replace", "top", "all"]


class Chosen(NamedTuple):
    """Members by index, and weights that sum to 1."""

    members: tuple[int, ...]
    weights: tuple[float, ...]


def _uniform(members: list[int]) -> Chosen:
    return Chosen(tuple(members), (1 / len(members),) * len(members))


def forward(pool: np.ndarray, y: np.ndarray, size: int) -> Chosen:
    """Return the greedy ensemble without replacement: the best, then again and again whoever lowers the loss most.

    Args:
        pool: probabilities of all candidates, shape (P, n, K).
        y: true classes, shape (n,).
        size: members; all candidates where there are no more.
    """
    chosen: list[int] = []
    total = np.zeros_like(pool[0], dtype=np.float64)
    while len(chosen) < min(size, len(pool)):
        rest = [i for i in range(len(pool)) if i not in chosen]
        best = min(rest, key=lambda i: (nll((total + pool[i]) / (len(chosen) + 1), y), i))
        chosen.append(best)
        total = total + pool[best]
    return _uniform(chosen)


def forward_replace(pool: np.ndarray, y: np.ndarray, size: int) -> Chosen:
    """Return the greedy ensemble in which a candidate may come several times; weights are multiplicities."""
    counts = np.zeros(len(pool), dtype=int)
    total = np.zeros_like(pool[0], dtype=np.float64)
    for drawn in range(size):
        best = min(range(len(pool)), key=lambda i: (nll((total + pool[i]) / (drawn + 1), y), i))
        counts[best] += 1
        total = total + pool[best]
    members = np.flatnonzero(counts)
    return Chosen(tuple(members.tolist()), tuple((counts[members] / size).tolist()))


def top(pool: np.ndarray, y: np.ndarray, size: int) -> Chosen:
    """Return the candidates of the lowest loss each by itself."""
    order = sorted(range(len(pool)), key=lambda i: (nll(pool[i], y), i))
    return _uniform(order[:size])


def everyone(pool: np.ndarray, y: np.ndarray, size: int) -> Chosen:
    """Return the first `size` candidates: nothing is chosen."""
    return _uniform(list(range(min(size, len(pool)))))


SELECTIONS: dict[str, Callable[[np.ndarray, np.ndarray, int], Chosen]] = {
    "forward": forward,
    "forward-replace": forward_replace,
    "top": top,
    "all": everyone,
}
"""Every way to choose members, by name."""


def stacked_weights(
    members: np.ndarray, y: np.ndarray, *, iterations: int = 2000, tolerance: float = 1e-10
) -> list[float]:
    """Return the mixture weights of the lowest loss, by expectation-maximisation; the problem is convex.

    Args:
        members: probabilities, shape (M, n, K).
        y: true classes, shape (n,).
        iterations: at most.
        tolerance: change of the mean log likelihood at which it ends.
    """
    likelihood = np.maximum(members[:, np.arange(len(y)), y], 1e-300)  # (M, n)
    weights = np.full(len(members), 1 / len(members))
    before = -np.inf
    for _ in range(iterations):
        mixture = weights @ likelihood
        now = float(np.log(mixture).mean())
        if now - before < tolerance:
            break
        before = now
        weights = weights * (likelihood / mixture).mean(1)
    return [float(w) for w in weights / weights.sum()]
