"""BayesNAS: hierarchical automatic-relevance priors on switches, their evidence, and what it says of each option.

Reference: Zhou, Yang, Wang and Pan, "BayesNAS: A Bayesian Approach for Neural Architecture Search", ICML 2019. Each
(edge, operation) has a real switch w that multiplies the operation's output; the zero option's switch w_0 is a gate in
series with all operations of its edge. Symbols, all per flat option (G of them), copies of a cell first where they
differ (L, G):

    gamma   free prior variances, >= 0
    s       prior variances of the switches: gamma under the dependency (`prior_variances`)
    h       curvature of the negative log likelihood in the switches (GGN, divided by lambda), >= 0
    W       squared norm of a switch over the copies of its cell, which share gamma
    alpha   sum over copies of h / (1 + s h): the slope of the concave part log(1 + s h) in s

What is ours: the update for any dependency. s is the conductance of a network of resistors 1/gamma (some of them
standing in several places), so that by Thomson's principle 1/s_i <= sum_k Q_ik / gamma_k with Q_ik the squared unit
flow through resistor k, tight at the old gamma; and Q_ik = (gamma_k / s_i)^2 J_ik with J = ds/dgamma. With the concave
part linearised, minimising over gamma gives gamma_k = sqrt(B_k / A_k), B = Q' W and A = J' alpha, and minimising the
weights' loss plus the penalty sum_k sqrt(A_k B_k) is the step in between. Without dependency that is the paper's
reweighted l1; with gates alone it is a sparse group lasso.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "ENTROPY_THRESHOLD",
    "Dependency",
    "Edge",
    "Penalty",
    "break_even",
    "concave_slope",
    "evidence_bound",
    "exact_update",
    "frozen_fixed_point",
    "inclusion",
    "joint_fixed_point",
    "log_bayes_factor",
    "newton_optimum",
    "penalty",
    "penalty_of",
    "posterior_variance",
    "prior_variances",
    "proximal",
    "published_penalty",
    "published_update",
    "relative_lambda",
    "support",
    "switch_entropy",
    "variance_jacobian",
]

Dependency = Literal["none", "gate", "full"]
"""`none`: s = gamma. `gate`: an operation is in series with the gate of its edge. `full`: with what enters its source
as well, all predecessors in parallel."""

ENTROPY_THRESHOLD = 1.0 / (2.0 * math.pi * math.e)
"""Variance at which a Gaussian's entropy is 0 nats, about 0.05855."""


@dataclass(frozen=True)
class Edge:
    """One edge of a cell, as the prior sees it; edges are listed so that sources come before targets.

    Attributes:
        gate: flat index of its gate, or None.
        operations: flat indices of its operations.
        feeds: positions, in the list of edges, of the edges that enter its source; empty for a cell's inputs.
        rooted: whether its source is an input of the cell, which nothing has to feed.
    """

    gate: int | None
    operations: tuple[int, ...]
    feeds: tuple[int, ...]
    rooted: bool


def prior_variances(gamma: Tensor, edges: Sequence[Edge], dependency: Dependency) -> Tensor:
    """Return the prior variances s of all switches, shape (G,) (BayesNAS, hierarchical prior, equations of section 3).

    1/s_o = 1/gamma_o + 1/gamma_0 + 1/Gamma and 1/s_0 = 1/gamma_0 + 1/Gamma, where Gamma is the sum of the s of all
    operations that enter the edge's source (infinite for a cell's input). With `gate` the term in Gamma is left out,
    with `none` s = gamma. A sum of s, not of gates: a live gate whose operations are all dead feeds nothing.

    Args:
        gamma: free variances >= 0, shape (G,).
        edges: the edges, sources before targets.
        dependency: how much of the hierarchy is in force.
    """
    if dependency == "none":
        return gamma.clone()
    s = gamma.clone()
    for edge in edges:
        above = _resistance_above(s, edges, edge, dependency)
        if edge.gate is not None:
            above = above + 1.0 / gamma[edge.gate]
            s[edge.gate] = 1.0 / above
        own = list(edge.operations)
        s[own] = 1.0 / (1.0 / gamma[own] + above)
    return s


def _resistance_above(s: Tensor, edges: Sequence[Edge], edge: Edge, dependency: Dependency) -> Tensor:
    """Return 1 / Gamma of an edge's source; 0 where nothing has to feed it."""
    if dependency != "full" or edge.rooted:
        return s.new_zeros(())
    return 1.0 / _entering(s, edges, edge).sum()


def _entering(values: Tensor, edges: Sequence[Edge], edge: Edge) -> Tensor:
    """Return the rows of `values` of all operations that enter the edge's source."""
    return values[[o for position in edge.feeds for o in edges[position].operations]]


def variance_jacobian(gamma: Tensor, edges: Sequence[Edge], dependency: Dependency) -> Tensor:
    """Return J with J[i, k] = ds_i / dgamma_k >= 0, shape (G, G); rows of dead switches are 0."""
    s = prior_variances(gamma, edges, dependency)
    jacobian = torch.eye(len(gamma), dtype=gamma.dtype, device=gamma.device)
    if dependency == "none":
        return jacobian

    def share(total: Tensor, part: Tensor) -> Tensor:
        """(ds / dpart) of a series connection: (s / part)^2; 0 where nothing flows."""
        return torch.where(part > 0, total / part, torch.zeros_like(total)).square()

    for edge in edges:
        members = [*edge.operations, *([] if edge.gate is None else [edge.gate])]
        rows = torch.zeros(len(members), len(gamma), dtype=gamma.dtype, device=gamma.device)
        total = s[members]
        rows[range(len(members)), members] = share(total, gamma[members])
        if edge.gate is not None:
            rows[:, edge.gate] = share(total, gamma[edge.gate])
        if dependency == "full" and not edge.rooted:
            feeding = _entering(s, edges, edge).sum()
            rows = rows + share(total, feeding).unsqueeze(1) * _entering(jacobian, edges, edge).sum(0)
        jacobian[members] = rows
    return jacobian


def concave_slope(h: Tensor, s: Tensor) -> Tensor:
    """Return alpha = sum over copies of h / (1 + s h), shape (G,).

    The form 1/s - C/s^2 of the paper is the same number and cancels in single precision.

    Args:
        h: curvature >= 0, shape (L, G).
        s: prior variances, shape (G,).
    """
    return (h / (1.0 + s * h)).sum(0)


def posterior_variance(h: Tensor, s: Tensor) -> Tensor:
    """Return C = s / (1 + s h), shape of `h` (L, G)."""
    return s / (1.0 + s * h)


def evidence_bound(loss: Tensor, squares: Tensor, s: Tensor, h: Tensor) -> Tensor:
    """Return 2 E + sum W / s + sum over copies of log(1 + s h), shape (): -2 log evidence up to a constant, at best w.

    Args:
        loss: E, the negative log likelihood at the switches.
        squares: W, shape (G,).
        s: prior variances, shape (G,); where 0, W must be 0.
        h: curvature, shape (L, G).
    """
    ratio = torch.where(squares > 0, squares / s, torch.zeros_like(squares))
    return 2.0 * loss + ratio.sum() + torch.log1p(s * h).sum()


@dataclass(frozen=True)
class Penalty:
    """sum_k weight_k sqrt(sum_i share_ik W_i): what the switches pay between two updates.

    Attributes:
        weight: sqrt(A_k), shape (G,).
        share: Q_ik, shape (G, G), or None for the identity.
    """

    weight: Tensor
    share: Tensor | None


def penalty_of(gamma: Tensor, h: Tensor, edges: Sequence[Edge], dependency: Dependency) -> Penalty:
    """Return the penalty that belongs to the evidence bound at `gamma`, with all cross terms."""
    s, jacobian = prior_variances(gamma, edges, dependency), variance_jacobian(gamma, edges, dependency)
    slope = concave_slope(h, s) @ jacobian
    share = None if dependency == "none" else _flows(gamma, s, jacobian)
    return Penalty(slope.sqrt(), share)


def _flows(gamma: Tensor, s: Tensor, jacobian: Tensor) -> Tensor:
    """Return Q_ik = (gamma_k / s_i)^2 J_ik; rows of dead switches are 0."""
    alive = (s > 0).unsqueeze(1)
    ratio = gamma.unsqueeze(0) / torch.where(alive, s.unsqueeze(1), torch.ones_like(s).unsqueeze(1))
    return torch.where(alive, ratio.square() * jacobian, torch.zeros_like(jacobian))


def published_penalty(gamma: Tensor, h: Tensor) -> Penalty:
    """Return the separable penalty of the paper, omega = sqrt(alpha), with what is stored taken for the variances."""
    return Penalty(concave_slope(h, gamma).sqrt(), None)


def penalty(terms: Penalty, squares: Tensor, *, floor: float = 1e-12) -> Tensor:
    """Return the penalty at W, shape ().

    Args:
        terms: weights and shares.
        squares: W, shape (G,).
        floor: added under the root, so that its gradient at 0 is 0 and not infinite.
    """
    inside = squares if terms.share is None else squares @ terms.share
    return (terms.weight * (inside + floor).sqrt()).sum()


def proximal(moved: Tensor, terms: Penalty, amount: float | Tensor, *, before: Tensor, floor: float = 1e-12) -> Tensor:
    """Return the switches after the penalty's part of a step, shape (L, G).

    Where the penalty is separable this is the group soft threshold over the copies, its exact proximal operator. With
    shares the groups overlap; each root is replaced by the parabola that touches it from above at `before` and the
    step is taken implicitly, moved / (1 + amount r): never past 0, and loss plus penalty never rise where the step on
    the loss is at most one over its curvature.

    Args:
        moved: switches after the step on the loss, shape (L, G).
        terms: the penalty.
        amount: step size times lambda.
        before: switches before the step on the loss, shape (L, G).
        floor: smallest root that is divided by.
    """
    if terms.share is None:
        norm = moved.square().sum(0).sqrt()
        return moved * (1.0 - amount * terms.weight / norm.clamp(min=floor)).clamp(min=0.0)
    rate = terms.share @ (terms.weight / (before.square().sum(0) @ terms.share).sqrt().clamp(min=floor))
    return moved / (1.0 + amount * rate)


def exact_update(gamma: Tensor, squares: Tensor, h: Tensor, edges: Sequence[Edge], dependency: Dependency) -> Tensor:
    """Return the next gamma, shape (G,); the evidence bound never rises.

    gamma_k sqrt(sum_i (W_i / s_i^2) J_ik / sum_i alpha_i J_ik).
    """
    s, jacobian = prior_variances(gamma, edges, dependency), variance_jacobian(gamma, edges, dependency)
    pull = torch.where(s > 0, squares / s.square(), torch.zeros_like(s)) @ jacobian
    slope = concave_slope(h, s) @ jacobian
    return torch.where(slope > 0, gamma * (pull / slope).sqrt(), gamma)


def published_update(
    gamma: Tensor, squares: Tensor, h: Tensor, edges: Sequence[Edge], dependency: Dependency
) -> Tensor:
    """Return the stored variances after the paper's update, shape (G,).

    omega = sqrt(alpha) with the stored value as variance, gamma = ||w|| / omega, and then the children are combined
    with what they depend on and *stored* so: each further update combines them again, and they drift down.
    """
    slope = concave_slope(h, gamma)
    free = torch.where(slope > 0, (squares / slope).sqrt(), gamma)
    return prior_variances(free, edges, dependency)


def joint_fixed_point(optimum: Tensor, h: Tensor) -> Tensor:
    """Return max(0, w_ML^2 - 1/h): where updates and re-optimised switches end without dependency."""
    return (optimum.square() - 1.0 / h).clamp(min=0.0)


def frozen_fixed_point(w: Tensor, h: Tensor) -> Tensor:
    """Return w^2/2 + sqrt(w^4/4 + w^2/h): where updates end if the switch is never re-optimised."""
    half = w.square() / 2.0
    return half + (half.square() + w.square() / h).sqrt()


def newton_optimum(w: Tensor, h: Tensor, gradient: Tensor) -> Tensor:
    """Return b = h w_ML = h w - g, shape of `w`: curvature times where the unpenalised loss would be least.

    `b` and not w_ML, which is not defined where the loss is flat.
    """
    return h * w - gradient


def support(b: Tensor, h: Tensor) -> Tensor:
    """Return sum over copies of (b^2 - h), shape (G,): positive where the evidence wants a switch to vary.

    It is twice the slope of the log evidence in the variance at 0. For one copy the rule is w_ML^2 h > 1, which does
    not depend on the scale of the operation. Ours for several copies.

    Args:
        b: shape (L, G), `newton_optimum`.
        h: shape (L, G).
    """
    return (b.square() - h).sum(0)


def break_even(b: Tensor, h: Tensor) -> Tensor:
    """Return sum b^2 / sum h over copies, shape (G,): the factor by which lambda has to grow for `support` to be 0.

    b and h are those of the mean loss over lambda, so that b^2 falls by the square of the factor and h by the factor.
    0 where a switch has no curvature and no slope: such an option goes at any lambda. Ours.

    Args:
        b: shape (L, G), `newton_optimum`.
        h: shape (L, G), not negative.
    """
    pull, curvature = b.square().sum(0), h.sum(0)
    return torch.where(pull > 0, pull / curvature, 0.0)


def relative_lambda(even: Tensor, share: float) -> Tensor:
    """Return `share` times the mean of `break_even`, shape (): a lambda that follows the scale of the loss. Ours.

    b^2 / h is twice what the loss would rise if the option went alone, to second order (optimal brain damage; of
    several copies it is the mean weighted by curvature): an option goes when it is worth less than `share` of the
    average one. All that go are together worth less than `share` of the whole, and below a share of 1 something always
    stays. What goes does not depend on the scale of the loss or of the operations.

    Args:
        even: `break_even` of all operations, 0 where they have gone, shape (G,).
        share: positive.

    Returns:
        A scalar, at least 1e-12: positive even where the loss is flat.
    """
    finite = torch.where(even.isfinite(), even, 0.0)  # infinite: a slope without curvature, which goes at no lambda
    return (share * finite.mean()).clamp(min=1e-12)


def switch_entropy(variance: Tensor) -> Tensor:
    """Return 0.5 log(2 pi e v), nats: the paper's criterion, remove where it is not positive."""
    return 0.5 * torch.log(2.0 * math.pi * math.e * variance)


def log_bayes_factor(b: Tensor, h: Tensor, slab: float) -> Tensor:
    """Return the log evidence for N(0, slab) over a point mass at 0, summed over copies, shape (G,).

    -0.5 log(1 + v h) + 0.5 v b^2 / (1 + v h) for each copy. The slab is fixed: at the variance of highest evidence it
    could never be negative. Ours.
    """
    grown = 1.0 + slab * h
    return (0.5 * slab * b.square() / grown - 0.5 * grown.log()).sum(0)


def inclusion(log_factor: Tensor, prior_odds: float) -> Tensor:
    """Return the probability of the slab given prior odds, shape of `log_factor`."""
    return torch.sigmoid(log_factor + math.log(prior_odds))
