"""The selection split cut in two: what chooses, and what calibrates."""

import numpy as np

__all__ = ["halves"]


def halves(labels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return indices of two halves of a split, every class halved: what chooses, and what calibrates."""
    rng, first = np.random.default_rng(seed), []
    for k in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == k))
        first.append(members[: -(-len(members) // 2)])
    chosen = np.sort(np.concatenate(first))
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen)
