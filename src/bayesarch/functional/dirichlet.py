"""Dirichlet beliefs: the concentration of a free parameter and the anchor to the flat simplex.

Reference: Chen et al., "DrNAS: Dirichlet Neural Architecture Search", ICLR 2021.
"""

import torch
from torch import Tensor

__all__ = ["concentration", "kl_to_uniform"]


def concentration(a: Tensor) -> Tensor:
    """Return Dirichlet concentrations beta = elu(a) + 1 > 0 of free parameters, same shape.

    a = 0 is beta = 1, the flat simplex. Computed as exp(a) below 0 and a + 1 above, which keeps beta positive in
    float32 down to a = -87 where `elu(a) + 1` is 0 from a = -17 on.
    """
    below = torch.exp(a.clamp(max=0.0))
    return torch.where(a > 0, a + 1.0, below)


def kl_to_uniform(beta: Tensor) -> Tensor:
    """Return KL(Dir(beta) || Dir(1)) in nats, shape (...,).

    log Gamma(sum beta) - sum log Gamma(beta) - log Gamma(K) + sum (beta - 1)(psi(beta) - psi(sum beta)).

    Args:
        beta: concentrations > 0, shape (..., K).
    """
    total = beta.sum(-1)
    k = beta.new_full((), float(beta.shape[-1]))
    excess = ((beta - 1) * (torch.digamma(beta) - torch.digamma(total).unsqueeze(-1))).sum(-1)
    return torch.lgamma(total) - torch.lgamma(beta).sum(-1) - torch.lgamma(k) + excess
