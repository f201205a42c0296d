"""Generalised Gauss-Newton curvature of the mean cross-entropy from per-example gradients of the logits.

With batch norm in eval mode examples do not touch one another, so that gates expanded per example give the gradient
of every example's logit in one backward pass per class.

    J   d logits / d scalars, shape (B, K, P): examples, classes, scalars
    p   softmax of the logits, shape (B, K)

Reference: Botev, Ritter and Barber, "Practical Gauss-Newton Optimisation for Deep Learning", ICML 2017; Martens, "New
Insights and Perspectives on the Natural Gradient Method", JMLR 2020.
"""

import torch
from torch import Tensor

__all__ = ["fisher_draw", "ggn_diagonal", "ggn_matrix"]


def ggn_diagonal(jacobian: Tensor, probabilities: Tensor) -> Tensor:
    """Return the sum over examples of diag(J' (diag p - p p') J), shape (P,): the variance of J under p.

    Computed around the mean, so that it is never negative.
    """
    mean = torch.einsum("bk,bkp->bp", probabilities, jacobian)
    return torch.einsum("bk,bkp->p", probabilities, (jacobian - mean.unsqueeze(1)).square())


def ggn_matrix(jacobian: Tensor, probabilities: Tensor) -> Tensor:
    """Return the sum over examples of J' (diag p - p p') J, shape (P, P)."""
    mean = torch.einsum("bk,bkp->bp", probabilities, jacobian)
    centred = jacobian - mean.unsqueeze(1)
    return torch.einsum("bk,bkp,bkq->pq", probabilities, centred, centred)


def fisher_draw(probabilities: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return labels drawn from the model, shape (B,): the squared gradient of their loss has the GGN for its mean."""
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
