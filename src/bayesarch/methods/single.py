"""What methods share whose architectures pick one option per choice: simplices, argmax, records for people."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bayesarch.functional import Simplices
from bayesarch.posteriors import ArchitecturePosterior, MeanField, WithinLimits
from bayesarch.spaces import Architecture, Limits, Space

__all__ = [
    "argmax_live",
    "belief_record",
    "found",
    "live_table",
    "open_options",
    "product",
    "reachable",
    "rows",
    "settle_inactive",
    "simplices",
]


def open_options(space: Space, limits: Limits) -> Tensor:
    """Return the mask of options to start with: those of at least one architecture that keeps the limits, (G,)."""
    return torch.tensor(limits.reachable(space, [True] * space.n_options))


def reachable(space: Space, live: Tensor, limits: Mapping[str, Any] | None) -> Tensor:
    """Return the live options that some architecture of live options within the limits has, (G,)."""
    return torch.tensor(Limits.from_json(limits).reachable(space, live.tolist()))


def settle_inactive(space: Space, live: Tensor, macs: Sequence[int], limits: Mapping[str, Any] | None) -> Tensor:
    """Return the mask with one option left on every choice on no path from input to output, shape (G,).

    That is the zero option, or else the one of the fewest MACs, of those that keep the limits in reach. Settling a
    choice may put others on no path: they are settled too.

    Args:
        space: the space.
        live: options that exist, shape (G,).
        macs: of each flat option, length G.
        limits: as `Limits.to_json` gives them.
    """
    live, kept = live.clone(), Limits.from_json(limits)
    while True:
        undecided = [
            p for p in sorted(space.inactive(live_table(space, live))) if int(live[list(space.columns(p))].sum()) > 1
        ]
        if not undecided:
            return live
        for position in undecided:
            columns, zero = space.columns(position), space.choices[position].zero
            alive = [g for g in columns if live[g]]
            alive.sort(key=lambda g: (zero is None or g != columns[zero], macs[g], g))
            settled = (_only(live, columns, g) for g in alive)
            live = next(mask for mask in settled if kept.possible(space, mask.tolist()))


def _only(live: Tensor, columns: Sequence[int], keep: int) -> Tensor:
    """Return the mask with `keep` alone left of a choice's columns."""
    mask = live.clone()
    mask[list(columns)] = False
    mask[keep] = True
    return mask


def product(space: Space, table: Sequence[Sequence[float]], limits: Mapping[str, Any] | None) -> ArchitecturePosterior:
    """Return independent choices with the weights of `table`, given the limits where there are any."""
    if not limits:
        return MeanField(space, table)
    return WithinLimits(space, table, Limits.from_json(limits))


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


def argmax_live(space: Space, weights: Tensor, live: Tensor, limits: Mapping[str, Any] | None = None) -> Tensor:
    """Return a mask with one live option per choice, (G,): the largest product of weights that keeps the limits.

    Without limits that is the largest weight of each choice; of equals the first.

    Args:
        space: the space.
        weights: of each flat option, not negative, shape (G,).
        live: what may be picked, shape (G,).
        limits: as `Limits.to_json` gives them.
    """
    tiny = torch.finfo(torch.float64).tiny  # a weight that rounded to 0 is unlikely, not impossible
    scores = [math.log(max(value, tiny)) for value in weights.detach().double().cpu().tolist()]
    picks, _ = next(Limits.from_json(limits).best(space, scores, live.tolist()))
    chosen = torch.zeros_like(live)
    chosen[list(Architecture(space, picks).columns)] = True
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
