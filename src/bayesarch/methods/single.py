"""What methods share whose architectures pick one option per choice: simplices, argmax, records for people."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bayesarch.functional import Simplices
from bayesarch.spaces import Architecture, Space

__all__ = ["argmax_live", "found", "live_table", "rows", "simplices"]


def simplices(space: Space, live: Tensor, device: torch.device | str) -> Simplices:
    """Return the live options of every choice, grouped for joint draws; remembered between steps."""
    return _simplices(space, tuple(live.tolist()), str(device))


@lru_cache(maxsize=8)
def _simplices(space: Space, live: tuple[bool, ...], device: str) -> Simplices:
    columns = [list(space.columns(position)) for position in range(len(space.choices))]
    return Simplices(columns, torch.tensor(live), device)


def live_table(space: Space, live: Tensor) -> list[list[int]]:
    """Return, per choice, the option indices that are live."""
    return [
        [option for option, g in enumerate(space.columns(position)) if live[g]]
        for position in range(len(space.choices))
    ]


def argmax_live(space: Space, scores: Tensor, live: Tensor) -> Tensor:
    """Return a mask with one live option per choice: the one of the largest score, the first of equals."""
    chosen = torch.zeros_like(live)
    values = scores.tolist()
    for position in range(len(space.choices)):
        chosen[max((g for g in space.columns(position) if live[g]), key=lambda g: (values[g], -g))] = True
    return chosen


def found(space: Space, live: Tensor) -> Architecture:
    """Return the architecture of a mask with one live option per choice."""
    return Architecture(space, tuple(tuple(row) for row in live_table(space, live)))


def rows(space: Space, values: Tensor) -> list[list[float]]:
    """Return a flat tensor (G,) as one row of numbers per choice."""
    numbers = values.detach().to(torch.float64).cpu().tolist()
    return [[numbers[g] for g in space.columns(position)] for position in range(len(space.choices))]


def belief_record(space: Space, weights: Tensor, live: Tensor) -> dict[str, Any]:
    """Return what an epoch's record says of mixing weights: the table, and the mean entropy of undecided choices."""
    host = weights.detach().to(torch.float64).cpu()
    groups: Sequence[float] = simplices(space, live, "cpu").entropy(host).tolist()
    return {
        "weights": [[round(value, 6) for value in row] for row in rows(space, host)],
        "entropy": sum(groups) / len(groups),
    }
