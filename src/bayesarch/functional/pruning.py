"""BPNAS: when to prune, what to prune, and what a pruning says about the prior.

Reference: BPNAS, poster at the ICML 2024 workshop "Differentiable Almost Everything". The joint target is
pi(alpha, W, Gamma) ~ exp(-L) prod_m exp(-c |gamma_m|) 1{|gamma_m| > 0}; symbols:

    gamma_m    live options of choice m, |gamma_m| their number
    theta_m    mixing weights of choice m, Dirichlet with concentration beta_m
    delta      threshold on || theta_m - 1/|gamma_m| ||_2
    c          prior cost of one live option, nats

What the poster leaves open is resolved as documented at each function.
"""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

__all__ = ["fires", "implied_cost", "log_joint", "log_prior", "prune_order", "relative_delta"]


def relative_delta(delta: float, n_live: int) -> float:
    """Return delta sqrt(1 - 1/n): the threshold as a share of the largest possible distance.

    The norm is not scale-free in the number of live options; the poster's fixed threshold is the default and this is
    the ablation.
    """
    return delta * math.sqrt(1.0 - 1.0 / n_live) if n_live > 1 else math.inf


def fires(
    distances: Sequence[float], n_live: Sequence[int], delta: float, *, scale: Literal["fixed", "relative"]
) -> int | None:
    """Return the choice whose distance passes its threshold by most, or None if none does.

    The loop header of the poster leaves the choice free; any choice with at least two live options may fire
    ("all choices" would stall on flat ones).

    Args:
        distances: || theta_m - 1/|gamma_m| ||_2 per choice.
        n_live: |gamma_m| per choice.
        delta: threshold > 0.
        scale: `fixed` as printed, or `relative` to the largest possible distance.
    """
    best, margin = None, 0.0
    for position, (distance, n) in enumerate(zip(distances, n_live, strict=True)):
        if n < 2:
            continue
        threshold = delta if scale == "fixed" else relative_delta(delta, n)
        if distance >= threshold and (best is None or distance - threshold > margin):
            best, margin = position, distance - threshold
    return best


def prune_order(scores: Tensor, live_columns: Sequence[Sequence[int]]) -> list[int]:
    """Return the flat options that may be pruned, lowest score first (the first is the poster's argmin).

    The argmin is global, over all live options, but only of choices with at least two: the prior forbids empty
    choices. Scores of different choices are comparable because a full reset keeps all trained equally long.

    Args:
        scores: shape (G,).
        live_columns: for each choice, its live flat options.
    """
    candidates = [g for group in live_columns if len(group) > 1 for g in group]
    values = scores.tolist()
    return sorted(candidates, key=lambda g: (values[g], g))


def log_prior(n_live: Sequence[int], c: float) -> float:
    """Return log of prod_m exp(-c |gamma_m|) 1{|gamma_m| > 0}, in nats, up to its constant."""
    if any(n < 1 for n in n_live):
        return -math.inf
    return -c * sum(n_live)


def log_joint(mean_loss: float, n_examples: int, n_live: Sequence[int], c: float) -> float:
    """Return log pi(alpha, W, Gamma) up to a constant, in nats: -n L + log prior, L the mean cross-entropy."""
    return -n_examples * mean_loss + log_prior(n_live, c)


def implied_cost(loss_before: float, loss_after: float, n_examples: int) -> float:
    """Return the prior cost c above which the joint posterior rises by this pruning, in nats.

    Removing one option changes log pi by c - n (L_after - L_before), so a MAP step removes it iff
    c > n (L_after - L_before).
    """
    return n_examples * (loss_after - loss_before)
