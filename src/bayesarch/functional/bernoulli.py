"""Bernoulli gates on input channels: relaxed draws, the KL of PGNAS, where drop rates settle, how far they only drift.

Reference: Zhou et al., "Posterior-Guided Neural Architecture Search", AAAI 2020. Everywhere phi = logit(pi), and pi is
the probability that a channel is DROPPED: the paper prints p with both meanings, and only this one agrees with its KL.
The paper's entropy is cut to one of its two terms; here it is whole (`docs/pgnas.md`).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "deletion_kl",
    "drift",
    "gate_kl",
    "keep_gates",
    "kept_mask",
    "length_scale",
    "logit_kl",
    "negative_entropy",
    "stationary_logit",
]

EDGE = 1e-6
"""How close a uniform draw may come to 0 or 1, so that its logit stays finite in fp32."""


def keep_gates(phi: Tensor, shape: Sequence[int], *, tau: float, generator: torch.Generator | None) -> Tensor:
    """Return relaxed draws of "this channel is kept", sigmoid(-(phi + logit(u)) / tau) (Eq. 16, in logit form).

    A soft gate is not divided by its mean: the variable is weight times gate, and needs no rescaling.

    Args:
        phi: drop logits, one per channel, shape (C,).
        shape: leading shape of the draws, such as (B,): each example draws its own.
        tau: temperature > 0; to 0 the draws become hard.
        generator: the stream.

    Returns:
        Shape (*shape, C), in (0, 1), differentiable in `phi`.
    """
    u = torch.rand(*shape, phi.shape[-1], generator=generator, device=phi.device, dtype=phi.dtype)
    return torch.sigmoid(-(phi + torch.logit(u.clamp(EDGE, 1 - EDGE))) / tau)


def kept_mask(phi: Tensor, u: Tensor) -> Tensor:
    """Return hard draws: keep where u >= pi, for uniform `u` of shape (..., C). A bool tensor."""
    return u >= torch.sigmoid(phi)


def negative_entropy(phi: Tensor) -> Tensor:
    """Return pi log pi + (1 - pi) log(1 - pi), in nats, finite with finite gradients at any logit; shape of `phi`."""
    return torch.sigmoid(phi) * F.logsigmoid(phi) + torch.sigmoid(-phi) * F.logsigmoid(-phi)


def deletion_kl(phi: Tensor, u: float) -> Tensor:
    """Return KL(Bern(pi) || Bern(u)), u the prior probability that a channel is dropped; shape of `phi`. Ours.

    The published prior has u = 0 and no pressure to delete: its entropy draws a useless channel to pi = 1/2. With
    u = 1/2 this is that entropy plus log 2; u > 1/2 asks for deletion. It is an effective prior: the whole KL of a
    spike and a slab also holds a term that diverges as the components narrow.
    """
    return logit_kl(phi, torch.logit(phi.new_full((), u)))


def logit_kl(phi: Tensor, prior: Tensor) -> Tensor:
    """Return KL(Bern(sigmoid(phi)) || Bern(sigmoid(prior))) in nats, finite at any finite logits; shape of `phi`.

    Args:
        phi: drop logits.
        prior: drop logits of the prior, broadcasting to `phi`: nats that keeping has to be worth.
    """
    return negative_entropy(phi) - torch.sigmoid(phi) * F.logsigmoid(prior) - torch.sigmoid(-phi) * F.logsigmoid(-prior)


def gate_kl(
    phi: Tensor, sqnorm: Tensor, *, l2: float, c: float = 1.0, lambda_d: float = 1.0, u: float | None = None
) -> Tensor:
    """Return the KL of all groups in nats, NOT divided by N: what stands in the brackets of Eq. 15, entropy whole.

        sum over channels of  c l2 (1 - pi) ||m||^2  +  lambda_d (pi log pi + (1 - pi) log(1 - pi))

    Args:
        phi: drop logit of each channel, shape (C,); channels of a group repeat the group's.
        sqnorm: squared norm of each channel's weights, shape (C,).
        l2: squared prior length-scale.
        c: 1/2 in the derivation; 1 in the published code and in the numbers of its tables.
        lambda_d: weight of the entropy.
        u: prior drop probability of our deletion prior, in (0, 1); None: the published entropy.

    Returns:
        Shape ().
    """
    gates = negative_entropy(phi) if u is None else deletion_kl(phi, u)
    return c * l2 * (torch.sigmoid(-phi) * sqnorm).sum() + lambda_d * gates.sum()


def stationary_logit(
    sqnorm: Tensor, *, l2: float, c: float = 1.0, lambda_d: float = 1.0, u: float | None = None
) -> Tensor:
    """Return where a group's drop logit settles if the data say nothing: c l2 ||m||^2 / lambda_d, plus logit(u).

    `sqnorm` is the mean squared norm of the group's channels. A useless group whose weights have gone (0) settles at
    pi = 1/2 and not at 1, and with the deletion prior at u. Shape of `sqnorm`.
    """
    at = c * l2 * sqnorm / lambda_d
    return at if u is None else at + torch.logit(sqnorm.new_full((), u))


def length_scale(weight_decay: float, n: float, *, keep: float = 1.0, c: float = 1.0) -> float:
    """Return the l2 whose KL acts on kept weights as `weight_decay` of an optimiser does: 2 c l2 keep / N equals it.

    Args:
        weight_decay: as optimisers take it, the gradient being weight_decay * w.
        n: N of the objective.
        keep: 1 - pi at which the two agree.
        c: as in `gate_kl`.
    """
    return weight_decay * n / (2 * c * keep)


def drift(
    start: float,
    learning_rates: Sequence[float],
    *,
    channels: int,
    n: float,
    momentum: float = 0.9,
    nesterov: bool = True,
    lambda_d: float = 1.0,
    u: float | None = None,
) -> list[float]:
    """Return the drop rate after each step of SGD on the entropy alone: what a group does that the data ignore.

    A learned rate that lies on this curve was set by learning rate times steps. The published logs lie on it in many
    of their groups.

    Args:
        start: initial drop rate.
        learning_rates: one per step.
        channels: k, size of the group; the gradient grows with it.
        n: N of the objective.
        momentum: of SGD.
        nesterov: whether momentum looks ahead.
        lambda_d: weight of the entropy.
        u: of the deletion prior, if it is used.
    """
    phi, velocity, curve = math.log(start / (1 - start)), 0.0, []
    pull = 0.0 if u is None else math.log(u / (1 - u))
    for lr in learning_rates:
        pi = 1 / (1 + math.exp(-phi))
        gradient = lambda_d * channels * pi * (1 - pi) * (phi - pull) / n
        velocity = momentum * velocity + gradient
        phi -= lr * (gradient + momentum * velocity if nesterov else velocity)
        curve.append(1 / (1 + math.exp(-phi)))
    return curve
