"""What methods share whose edges carry gates in series with operations: the prior's graph and the composition."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bayesarch.functional.ard import Edge
from bayesarch.nets import node_order
from bayesarch.spaces import Space

__all__ = ["Series", "prior_edges", "series"]


def prior_edges(space: Space) -> list[Edge]:
    """Return the space's edges as the prior sees them, sources before targets; zero options are gates."""
    order: list[int] = []
    for cell in dict.fromkeys(choice.cell for choice in space.choices):
        nodes = node_order(space, cell)
        mine = [p for p, choice in enumerate(space.choices) if choice.cell == cell]
        order += sorted(mine, key=lambda p: _place(nodes, space.choices[p].source))
    place = {position: i for i, position in enumerate(order)}
    edges = []
    for position in order:
        choice, columns = space.choices[position], space.columns(position)
        feeds = [
            p
            for p, c in enumerate(space.choices)
            if choice.source and (c.cell, c.target) == (choice.cell, choice.source)
        ]
        edges.append(
            Edge(
                gate=None if choice.zero is None else columns[choice.zero],
                operations=tuple(g for i, g in enumerate(columns) if i != choice.zero),
                feeds=tuple(place[p] for p in feeds),
                rooted=choice.source is None or choice.source in space.inputs,
            )
        )
    return edges


def _place(nodes: Sequence[str], source: str | None) -> int:
    return nodes.index(source) if source is not None else -1


class Series:
    """Gates as products: the switch of an operation times the switch of its edge's zero option.

    Args:
        space: the space.
        device: where tensors live.
    """

    def __init__(self, space: Space, device: torch.device | str) -> None:
        gate = list(range(space.n_options))
        for position, choice in enumerate(space.choices):
            if choice.zero is not None:
                for g in space.columns(position):
                    gate[g] = space.columns(position)[choice.zero]
        is_gate = torch.zeros(space.n_options, dtype=torch.bool)
        is_gate[[space.columns(p)[c.zero] for p, c in enumerate(space.choices) if c.zero is not None]] = True
        gated = (torch.tensor(gate) != torch.arange(space.n_options)) & ~is_gate
        self.gate = torch.tensor(gate).to(device, non_blocking=True)
        """Flat index of the gate of each option's edge; its own where there is none, shape (G,)."""
        self.is_gate = is_gate.to(device, non_blocking=True)
        self.gated = gated.to(device, non_blocking=True)
        """Which options are operations behind a gate, shape (G,)."""

    def compose(self, switches: Tensor) -> Tensor:
        """Return what the network is told, shape of `switches` (..., G): w_0 w_o; gates' own columns are 0."""
        told = torch.where(self.gated, switches * switches[..., self.gate], switches)
        return torch.where(self.is_gate, torch.zeros_like(told), told)

    def pull(self, jacobian: Tensor, switches: Tensor) -> Tensor:
        """Return gradients in the switches (..., L, G) from gradients in what the network is told (..., L, G)."""
        told = torch.where(self.is_gate, torch.zeros_like(jacobian), jacobian)
        own = torch.where(self.gated, told * switches[..., self.gate], told)
        through = torch.where(self.gated, told * switches, torch.zeros_like(told))
        return own.index_add(-1, self.gate[self.gated], through[..., self.gated])


@lru_cache(maxsize=8)
def series(space: Space, device: str) -> Series:
    """Return the composition of a space, remembered between steps."""
    return Series(space, device)
