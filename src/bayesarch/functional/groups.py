"""Automatic relevance of groups of weights: the evidence of BayesNAS's switches, for what leaves a network together.

Reference: Zhou, Yang, Wang and Pan, BayesNAS, ICML 2019, and the tables of its companion on recurrent networks. Every
weight W_i has the prior N(0, s_i); it may belong to several groups, whose precisions add up:

    1 / s_i = sum over groups g of i: 1 / gamma_g

With h_i >= 0 the curvature of the mean loss divided by lambda, the concave part sum_i log(1 + s_i h_i) is linearised:

    alpha_g = sum over i in g: d log(1 + s_i h_i) / d gamma_g = sum_i (s_i / gamma_g)^2 h_i / (1 + s_i h_i)
    omega_g = sqrt(alpha_g),   R(W) = sum_g omega_g ||W_g||,   gamma_g = ||W_g|| / omega_g

A public code divides alpha by the size of the group (`group_sizes`); then gamma is no variance of a weight and no
lambda turns one form into the other. s in alpha is the combined one: with gamma in its place alpha is too large where
groups overlap.

`groups` are the memberships of one tensor of weights: numbers of groups, one index for each type of group, each of a
shape that broadcasts to the tensor's (`group_index` makes them by name). Groups that reach over several tensors add up:
sums of squares and of slopes are taken tensor by tensor.

A tensor's weights may count c times each (`counts`), as c copies of one value that share its curvature evenly: with c
the number of times a weight is used on one image, the prior charges for multiplications and not for weights. A group of
one curvature then dies where sum h W^2 < sum c. Ours; with c = 1 the above.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "GROUP_TYPES",
    "combined_variance",
    "group_bound",
    "group_fixed_point",
    "group_index",
    "group_sizes",
    "group_slopes",
    "group_squares",
    "group_update",
    "quadratic_optimum",
    "saliency",
    "shrink",
    "switch_slope",
]


GROUP_TYPES: dict[str, tuple[int, ...]] = {
    "filters": (0,),
    "channels": (1,),
    "shapes": (1, 2, 3),
    "kernels": (0, 1),
    "kernel-rows": (0, 1, 2),
    "kernel-columns": (0, 1, 3),
    "weights": (0, 1, 2, 3),
}
"""Types of groups on a weight (O, I, k, k), by the dimensions whose places tell one group from another. On a linear
layer's (O, I), read as 1 x 1 kernels, filters are rows, channels (and shapes) columns, all others single weights."""


def group_index(kind: str, shape: Sequence[int], first: int = 0) -> Tensor:
    """Return a tensor's memberships for one type of group, numbered from `first`; broadcasts to `shape`.

    Args:
        kind: a key of `GROUP_TYPES`.
        shape: of the weight, (O, I) or (O, I, k, ...).
        first: number of its first group.
    """
    sizes = [n if d in GROUP_TYPES[kind] else 1 for d, n in enumerate(shape)]
    return first + torch.arange(math.prod(sizes)).view(sizes)


def combined_variance(gamma: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """Return s, of the shape the memberships broadcast to: prior variance of each weight; 0 where a group is dead.

    Args:
        gamma: variances of the groups, >= 0, shape (G,).
        groups: memberships.
    """
    precision = 1.0 / gamma[groups[0]]
    for index in groups[1:]:
        precision = precision + 1.0 / gamma[index]
    return 1.0 / precision


def group_slopes(gamma: Tensor, h: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """Return this tensor's part of alpha, shape (G,).

    Args:
        gamma: variances of the groups, shape (G,).
        h: curvature of each weight, >= 0, the tensor's shape.
        groups: memberships.
    """
    s, total = combined_variance(gamma, groups), torch.zeros_like(gamma)
    each = h / (1.0 + s * h)
    for index in groups:
        own = gamma[index]
        share = torch.where(own > 0, s / own, torch.zeros_like(s))
        total = _added(total, share.square() * each, index)
    return total


def group_squares(weights: Tensor, groups: Sequence[Tensor], count: int) -> Tensor:
    """Return this tensor's part of ||W_g||^2, shape (G,).

    Args:
        weights: the tensor.
        groups: memberships.
        count: G.
    """
    total, squares = weights.new_zeros(count), weights.square()
    for index in groups:
        total = _added(total, squares, index)
    return total


def group_sizes(weights: Tensor, groups: Sequence[Tensor], count: int) -> Tensor:
    """Return how many of this tensor's weights each group holds, shape (G,); arguments as in `group_squares`."""
    return group_squares(torch.ones_like(weights), groups, count)


def _added(total: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """Return `total`, shape (G,), with each of `values` added where its index says."""
    index = index.reshape(*[1] * (values.ndim - index.ndim), *index.shape)
    over = [d for d in range(values.ndim) if index.shape[d] == 1 and values.shape[d] != 1]
    summed = values.sum(over, keepdim=True) if over else values
    return total.index_add(0, index.expand_as(summed).flatten(), summed.flatten())


def group_update(norms: Tensor, slopes: Tensor, gamma: Tensor) -> Tensor:
    """Return the next gamma, ||W_g|| / sqrt(alpha_g), shape (G,); where alpha is 0, as it was."""
    return torch.where(slopes > 0, norms / slopes.clamp(min=torch.finfo(slopes.dtype).tiny).sqrt(), gamma)


def group_bound(loss: Tensor, weights: Tensor, gamma: Tensor, h: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """Return 2 E + sum_i W_i^2 / s_i + sum_i log(1 + s_i h_i), shape (): never rises under exact updates.

    Args:
        loss: E.
        weights: the tensor; 0 where a group is dead.
        gamma: variances of the groups, shape (G,).
        h: curvature, the tensor's shape.
        groups: memberships.
    """
    s = combined_variance(gamma, groups)
    ratio = torch.where(weights != 0, weights.square() / s, torch.zeros_like(s))
    return 2.0 * loss + ratio.sum() + torch.log1p(s * h).sum()


def group_fixed_point(squares: Tensor, h: Tensor, size: int) -> Tensor:
    """Return max(0, ||W_ML||^2 / n - 1 / h): where updates end for a group of n weights of one curvature, alone.

    Args:
        squares: squared norm of the unpenalised optimum, shape (...).
        h: their curvature, shape (...).
        size: n.
    """
    return (squares / size - 1.0 / h).clamp(min=0.0)


def switch_slope(h: Tensor, counts: Tensor) -> Tensor:
    """Return the penalty's slope at a switch of value 1 that is charged for c weights, sqrt(c min(c, h)), shape (U,).

    Its variance ends at max(0, 1 - c / h), `group_fixed_point` of c tied copies: it dies where h < c.

    Args:
        h: curvature in the switch over lambda, >= 0, shape (U,).
        counts: c, shape (U,).
    """
    return (counts * torch.minimum(counts, h)).sqrt()


def shrink(norms: Tensor, slopes: Tensor, amount: float) -> Tensor:
    """Return what the weights of each group are multiplied by in a proximal step, shape (G,), in [0, 1].

    max(0, 1 - amount omega / ||W||), the exact proximal operator of one group; 0 for a group that is 0. For weights
    of several groups the factors are multiplied, which never passes 0 and is the exact step to first order in `amount`.

    Args:
        norms: ||W_g||, shape (G,).
        slopes: alpha, shape (G,).
        amount: step size times lambda.
    """
    tiny = torch.finfo(norms.dtype).tiny
    return (1.0 - amount * slopes.sqrt() / norms.clamp(min=tiny)).clamp(min=0.0)


def saliency(
    weights: Sequence[Tensor],
    h: Sequence[Tensor],
    groups: Sequence[Sequence[Tensor]],
    count: int,
    counts: Sequence[float] | None = None,
) -> Tensor:
    """Return sum h W^2 / sum c of each group, shape (G,): for one curvature and W the optimum, below 1 it dies.

    Args:
        weights: the tensors.
        h: their curvature, >= 0, of the same shapes.
        groups: memberships of each tensor.
        count: G.
        counts: c of each tensor; None: 1.
    """
    zero, each = torch.zeros(count, device=h[0].device), counts or [1.0] * len(weights)
    pairs = list(zip(weights, h, groups, each, strict=True))
    cost = sum((group_squares(w * k.sqrt(), g, count) for w, k, g, _ in pairs), zero)
    size = sum((c * group_sizes(w, g, count) for w, _, g, c in pairs), zero)
    return cost / torch.where(size > 0, size, torch.ones_like(size))


def quadratic_optimum(
    weights: Sequence[Tensor],
    h: Sequence[Tensor],
    groups: Sequence[Sequence[Tensor]],
    free: Tensor,
    *,
    counts: Sequence[float] | None = None,
    rounds: int = 40,
    inner: int = 3,
) -> tuple[Tensor, Tensor]:
    """Return where updates and re-optimised weights end if the loss is sum h/2 (W - W_ML)^2, with W_ML given.

    The convex-concave procedure to its end in the quadratic model of the loss, where the weights' part is solved as
    ridge regressions whose penalties are reweighted. What SGD would need many epochs for where the loss is flat. Ours.

    Args:
        weights: W_ML, the tensors.
        h: curvature of the loss divided by lambda, of the same shapes.
        groups: memberships of each tensor.
        free: which groups may die, bool, shape (G,); the others' priors are flat.
        counts: c of each tensor; None: 1.
        rounds: updates of the variances.
        inner: solves between two of them.

    Returns:
        gamma, shape (G,), and what is left of each group's squared norm, shape (G,), in [0, 1].
    """
    count, tiny, times = len(free), 1e-30, counts or [1.0] * len(weights)
    best, curved = [w.detach().double() for w in weights], [k.double() / c for k, c in zip(h, times, strict=True)]
    zero = torch.zeros(count, dtype=torch.float64, device=free.device)

    def squares(values: Sequence[Tensor]) -> Tensor:
        return sum((c * group_squares(v, g, count) for v, g, c in zip(values, groups, times, strict=True)), zero)

    start = squares(best)
    sizes = sum((c * group_sizes(w, g, count) for w, g, c in zip(best, groups, times, strict=True)), zero)
    flat = torch.full_like(zero, 1e10)
    sizes = torch.where(sizes > 0, sizes, torch.ones_like(sizes))
    gamma = torch.where(free, (start / sizes).clamp(1e-12, 1e10), flat)
    now = best
    for _ in range(rounds):
        slopes = sum((c * group_slopes(gamma, k, g) for k, g, c in zip(curved, groups, times, strict=True)), zero)
        omega = torch.where(free, slopes, zero).sqrt()
        for _ in range(inner):
            pull = omega / squares(now).sqrt().clamp(min=1e-12)
            now = [
                k * w / (k + sum((pull[index] for index in g), torch.zeros_like(pull[g[0]])) + tiny)
                for w, k, g in zip(best, curved, groups, strict=True)
            ]
        gamma = torch.where(free, group_update(squares(now).sqrt(), omega.square(), gamma).clamp(1e-12, 1e10), flat)
    return gamma, squares(now) / start.clamp(min=tiny)
