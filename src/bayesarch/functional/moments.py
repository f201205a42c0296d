"""Batch normalisation over several groups of examples as if they were one batch: joint moments, and the gradient.

For one search on several processes: each holds a part of a batch and knows its own mean and variance. Joint moments by
Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979; the gradient
is that of Ioffe and Szegedy, "Batch Normalization", ICML 2015, section 3, with sums over all groups.
"""

from torch import Tensor

__all__ = ["joint_moments", "norm_input_gradient", "norm_sums"]


def joint_moments(means: Tensor, variances: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance (divided by n, not n - 1) of the union of W groups, each of shape (C,).

    Args:
        means: per group, shape (W, C).
        variances: per group, divided by its own count, shape (W, C).
        counts: numbers per group, shape (W,).
    """
    share = (counts / counts.sum())[:, None]
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)


def norm_sums(x: Tensor, gradient: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum dy and sum dy (x - mean) scale over all but the channels, each of shape (C,).

    Args:
        x: what is normalised, shape (B, C, ...).
        gradient: dy, of the normalised values, shape of `x`.
        mean: shape (C,).
        scale: 1 / sqrt(variance + eps), shape (C,).
    """
    over, shape = _others(x), _shape(x)
    return gradient.sum(over), (gradient * (x - mean.view(shape))).sum(over) * scale


def norm_input_gradient(
    x: Tensor, gradient: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None, sums: tuple[Tensor, Tensor], n: int
) -> Tensor:
    """Return dx = w s (dy - mean(dy) - z mean(dy z)) with z = (x - mean) s, for one group's part, shape of `x`.

    Args:
        x: one group's part of what is normalised, shape (B, C, ...).
        gradient: dy for that part.
        mean: joint mean, shape (C,).
        scale: s, shape (C,).
        weight: w, shape (C,); None: 1.
        sums: `norm_sums`, added over all groups.
        n: numbers per channel in all groups.
    """
    shape = _shape(x)
    factor = scale if weight is None else scale * weight
    inner = gradient - (sums[0] / n).view(shape) - (x - mean.view(shape)) * (scale * sums[1] / n).view(shape)
    return inner * factor.view(shape)


def _others(x: Tensor) -> list[int]:
    return [d for d in range(x.ndim) if d != 1]


def _shape(x: Tensor) -> list[int]:
    return [1, -1, *[1] * (x.ndim - 2)]
