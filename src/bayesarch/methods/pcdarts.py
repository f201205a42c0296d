"""PC-DARTS: one in K channels goes through the softmax mixture; edges into one node are weighed against each other.

Reference: Xu et al., "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search", ICLR 2020.
K = 4; architecture parameters rest for the first 15 of 50 epochs (here: that share of the epochs). The gate of an
option is its edge's weight among the edges into the same node times its own weight on the edge; channels that bypass
the options get the sum of the edge's gates, which is the edge's weight.

When the search ends all channels go through the options that were found: their convolutions are widened by copies of
channels, so the closing epochs train a network that the search has not seen at full width. Edge weights take no part
in the decision, because NAS-Bench-201 keeps all edges, and are dropped with it.
"""

from functools import lru_cache

import torch
from pydantic import Field
from torch import Tensor

from bayesarch.engine import Info
from bayesarch.functional import Simplices
from bayesarch.methods.bilevel import AlphaConfig, Logits, bilevel_step, rest
from bayesarch.methods.mixture import Mixture, Rule, Step
from bayesarch.spaces import Space

__all__ = ["PCDARTSConfig", "edge_weights", "pcdarts"]


class PCDARTSConfig(AlphaConfig):
    """Settings of PC-DARTS."""

    partial: int = Field(default=4, ge=1)
    """K: one in K channels goes through the options."""
    resting_share: float = Field(default=0.3, ge=0, le=1)
    """Share of the search in which only weights are trained."""


def edge_weights(space: Space, b: Tensor) -> Tensor:
    """Return, for each flat option, its edge's softmax weight among the edges into the same node, shape (G,).

    Args:
        space: the space.
        b: one parameter per choice, shape (M,). A choice without a target node has weight 1.
    """
    into, choice_of = _edges_into(space, str(b.device))
    weights = torch.zeros_like(b)
    for index in into:
        weights = weights.index_put((index,), torch.softmax(b[index], 0))
    return weights.index_select(0, choice_of)


@lru_cache(maxsize=8)
def _edges_into(space: Space, device: str) -> tuple[list[Tensor], Tensor]:
    """Return the choices that share a target node, node by node, and the choice of each flat option, shape (G,)."""
    into: dict[tuple[str, str | None], list[int]] = {}
    for position, choice in enumerate(space.choices):
        into.setdefault((choice.cell, choice.target or f"alone {position}"), []).append(position)
    choice_of = [position for position, choice in enumerate(space.choices) for _ in choice.options]
    nodes, options = [torch.tensor(group) for group in into.values()], torch.tensor(choice_of)
    return [node.to(device, non_blocking=True) for node in nodes], options.to(device, non_blocking=True)


def pcdarts(space: Space, config: PCDARTSConfig | None = None) -> Mixture:
    """Return PC-DARTS."""
    settings, g = config or PCDARTSConfig(), space.n_options

    def weights(choices: Simplices, a: Tensor) -> Tensor:
        return choices.softmax(a[:g])

    def gates(choices: Simplices, a: Tensor) -> Tensor:
        if choices.settled:
            return weights(choices, a)
        return weights(choices, a) * edge_weights(space, a[g:])

    def step(logits: Logits, at: Step) -> tuple[Logits, Info]:
        moving = at.moving and at.clock.reached() >= rest(settings.resting_share, at.clock.epochs)
        return bilevel_step(
            logits, lambda a: gates(at.choices, a), at.net, at.batches, config=settings, lr=at.lr, moving=moving
        )

    cite = "Xu et al., PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search, ICLR 2020"
    return Mixture(
        space, Rule("pcdarts", cite, settings, step, weights, gates, settings.partial, extra=len(space.choices))
    )
