"""What methods share whose edges carry gates in series with operations: the prior's graph, composition, masks."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bayesarch.functional.ard import Edge
from bayesarch.methods.single import live_table
from bayesarch.nets import node_order
from bayesarch.spaces import Picks, Space

__all__ = [
    "Series",
    "at_least_one",
    "best_path",
    "picked",
    "prior_edges",
    "reconnected",
    "series",
    "without_inactive",
    "zeros_where_empty",
]


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
        self.gate = torch.tensor(gate, device=device)
        """Flat index of the gate of each option's edge; its own where there is none, shape (G,)."""
        self.is_gate = torch.zeros(space.n_options, dtype=torch.bool, device=device)
        zeros = [space.columns(p)[c.zero] for p, c in enumerate(space.choices) if c.zero is not None]
        self.is_gate[zeros] = True
        self.gated = (self.gate != torch.arange(space.n_options, device=device)) & ~self.is_gate
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


def best_path(space: Space, cell: str, scores: Sequence[float]) -> list[int]:
    """Return the flat options of the path from a cell's input to its output whose scores sum highest, one per edge.

    Args:
        space: the space.
        cell: the cell type.
        scores: of each flat option, length G; those of zero options are ignored.
    """
    best: dict[str, tuple[float, list[int]]] = dict.fromkeys(space.inputs, (0.0, []))
    for node in node_order(space, cell):
        for position, choice in enumerate(space.choices):
            if (choice.cell, choice.target) != (cell, node) or choice.source not in best:
                continue
            total, path = best[choice.source]
            score, g = max((scores[g], -g) for i, g in enumerate(space.columns(position)) if i != choice.zero)
            if node not in best or total + score > best[node][0]:
                best[node] = (total + score, [*path, -g])
    return max((best[node] for node in space.outputs if node in best), key=lambda item: item[0])[1]


def picked(space: Space, picks: Picks) -> Tensor:
    """Return the mask of what is picked, shape (G,)."""
    mask = torch.zeros(space.n_options, dtype=torch.bool)
    for position, options in enumerate(picks):
        for option in options:
            mask[space.columns(position)[option]] = True
    return mask


def reconnected(space: Space, wanted: Tensor, before: Tensor, scores: Sequence[float]) -> tuple[Tensor, int]:
    """Return the mask with the best path of what was alive put back into every cell that fell apart, and how much.

    Args:
        space: the space.
        wanted: what would be left, shape (G,).
        before: what was alive, shape (G,).
        scores: of each flat option, length G.
    """
    live, guarded, table = wanted.clone(), 0, live_table(space, wanted)
    for cell in dict.fromkeys(choice.cell for choice in space.choices if choice.source is not None):
        if not space.cell_connected(table, cell):
            path = best_path(space, cell, [v if before[g] else -math.inf for g, v in enumerate(scores)])
            guarded += sum(not live[g] for g in path)
            live[path] = True
    return live, guarded


def without_inactive(space: Space, live: Tensor) -> Tensor:
    """Return the mask without options on no path from input to output, shape (G,)."""
    live = live.clone()
    for position in space.inactive(live_table(space, live)):
        live[list(space.columns(position))] = False
    return live


def at_least_one(space: Space, live: Tensor, before: Tensor, scores: Sequence[float]) -> Tensor:
    """Return the mask with the best of what was alive put back on choices that take one option and have none, (G,)."""
    live = live.clone()
    for position, choice in enumerate(space.choices):
        columns = [g for g in space.columns(position) if before[g]]
        if choice.pick == "one" and not bool(live[columns].any()):
            live[max(columns, key=lambda g: scores[g])] = True
    return live


def zeros_where_empty(space: Space, live: Tensor) -> Tensor:
    """Return the mask with the zero option of every choice that takes one option and has none, shape (G,)."""
    live = live.clone()
    for position, choice in enumerate(space.choices):
        columns = list(space.columns(position))
        if choice.pick == "one" and choice.zero is not None and not bool(live[columns].any()):
            live[columns[choice.zero]] = True
    return live
