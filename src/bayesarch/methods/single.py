"""What methods share whose architectures pick one option per choice: simplices, argmax, records for people."""

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bayesarch.errors import ConfigError
from bayesarch.functional import Simplices
from bayesarch.posteriors import ArchitecturePosterior, Listed, MeanField, TopEdges, WithinLimits, best_connected
from bayesarch.spaces import Architecture, Limits, Picks, Space

__all__ = [
    "allowed",
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
    "within",
]


def open_options(space: Space, limits: Limits) -> Tensor:
    """Return the mask of options to start with: those of at least one architecture that keeps the limits, (G,)."""
    return torch.tensor(limits.reachable(space, [True] * space.n_options))


def reachable(space: Space, live: Tensor, limits: Mapping[str, Any] | None) -> Tensor:
    """Return the live options that some architecture of live options within the limits has, (G,).

    Where the space keeps a number of edges into each node, that counts as a limit: edges that cannot be empty any more
    use it up, and where no more than that can be there none may be empty.
    """
    live = torch.tensor(Limits.from_json(limits).reachable(space, live.tolist()))
    return live if space.entering is None else _settle_degree(space, live, space.entering)


def allowed(space: Space, picks: Picks, limits: Limits) -> bool:
    """Return whether an architecture keeps the limits, and the number of edges into each node where there is one."""
    if space.entering is not None:
        arch, entering = Architecture(space, picks), dict[tuple[str, str | None], int]()
        for choice, picked in zip(space.choices, arch.picks, strict=True):
            node = (choice.cell, choice.target)
            entering[node] = entering.get(node, 0) + bool(picked)
        if any(count != space.entering for count in entering.values()):
            return False
    return limits.allow(space, picks)


def _settle_degree(space: Space, live: Tensor, keep: int) -> Tensor:
    live = live.clone()
    nodes: dict[tuple[str, str | None], list[int]] = {}
    for position, choice in enumerate(space.choices):
        nodes.setdefault((choice.cell, choice.target), []).append(position)
    for members in nodes.values():
        zeros = {p: space.columns(p)[space.choices[p].zero or 0] for p in members}
        real = {p: [space.columns(p)[i] for i in space.choices[p].real] for p in members}
        possible = [p for p in members if bool(live[real[p]].any())]
        certain = [p for p in possible if not live[zeros[p]]]
        if len(certain) >= keep:
            for position in set(possible) - set(certain):
                live[real[position]] = False
        elif len(possible) <= keep:
            for position in possible:
                live[zeros[position]] = False
    return live


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
    """Return independent choices with the weights of `table`, given the limits where there are any.

    Where the space keeps a number of edges into each node, nodes are independent instead, and within limits the most
    probable architectures that keep them are written out.
    """
    if space.entering is not None:
        edges = TopEdges(space, table)
        return edges if not limits else _listed_within(edges, Limits.from_json(limits))
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


def open_gates(live: Tensor, like: Tensor) -> Tensor:
    """Return gates of 1 for what is live and 0 for the rest, shape (1, 1, G), on `like`'s device; remembered."""
    return _open_gates(tuple(live.tolist()), str(like.device), like.dtype)


@lru_cache(maxsize=8)
def _open_gates(live: tuple[bool, ...], device: str, dtype: torch.dtype) -> Tensor:
    return torch.tensor(live, dtype=dtype).to(device, non_blocking=True).view(1, 1, -1)


def live_table(space: Space, live: Tensor) -> list[list[int]]:
    """Return, per choice, the option indices that are live."""
    return [
        [option for option, g in enumerate(space.columns(position)) if live[g]]
        for position in range(len(space.choices))
    ]


def argmax_live(space: Space, weights: Tensor, live: Tensor, limits: Mapping[str, Any] | None = None) -> Tensor:
    """Return a mask with one live option per choice, (G,): the largest product of weights that is to be had.

    That is what keeps the limits and lets an image through. Where that is no matter it is the largest weight of each
    choice; of equals the first.

    Args:
        space: the space.
        weights: of each flat option, not negative, shape (G,).
        live: what may be picked, shape (G,).
        limits: as `Limits.to_json` gives them.
    """
    # a weight that rounded to 0 is unlikely, not impossible
    flat = torch.where(live.cpu(), weights.detach().double().cpu().clamp(min=1e-100), torch.zeros(()).double())
    for position, choice in enumerate(space.choices):
        columns = list(space.columns(position))
        if space.entering is not None and choice.zero is not None and not live[columns[choice.zero]]:
            flat[columns] *= 1e60  # such an edge cannot be empty any more
        elif space.entering is None:
            flat[columns] /= flat[columns].sum()
    return _mask(space, best_connected(product(space, rows(space, flat), limits)))


def _mask(space: Space, arch: Architecture) -> Tensor:
    """Return which options are left when an architecture is settled on, (G,): zero options stand for empty choices."""
    chosen = torch.zeros(space.n_options, dtype=torch.bool)
    chosen[list(arch.columns)] = True
    for position, choice in enumerate(space.choices):
        if not arch.picks[position] and choice.zero is not None:
            chosen[space.columns(position)[choice.zero]] = True
    return chosen


LOOKED_AT, WRITTEN = 20_000, 2_000
"""Architectures looked at, and written out at most, where limits meet a number of edges per node."""


def within(posterior: ArchitecturePosterior, limits: Limits) -> list[tuple[Architecture, float]]:
    """Return the most probable architectures of those looked at that keep the limits, with their weights."""
    looked_at = itertools.islice(posterior.most_probable(), LOOKED_AT)
    kept = (member for member in looked_at if limits.allow(posterior.space, member[0].picks))
    return list(itertools.islice(kept, WRITTEN))


def _listed_within(edges: TopEdges, limits: Limits) -> ArchitecturePosterior:
    """Return the most probable architectures that keep the limits, by their weights.

    Raises:
        ConfigError: if none of those looked at keeps them.
    """
    kept = within(edges, limits)
    if not kept:
        cheapest = _cheapest(edges, limits)
        if not limits.allow(edges.space, cheapest.picks):
            raise ConfigError(
                f"no architecture of {edges.space.name} with {edges.space.entering} edges into each node was found "
                "that keeps the limits; loosen them"
            )
        kept = [(cheapest, 1.0)]
    return Listed(kept, kind="candidates")


def _cheapest(edges: TopEdges, limits: Limits) -> Architecture:
    """Return the architecture whose every node has the outcome that takes least of the budgets."""
    space = edges.space
    picks: list[tuple[int, ...]] = [()] * len(space.choices)
    for members, outcomes in zip(edges.nodes, edges.outcomes, strict=True):

        def share(part: Sequence[tuple[int, ...]], members: Sequence[int] = members) -> float:
            columns = [space.offsets[p] + option for p, picked in zip(members, part, strict=True) for option in picked]
            return sum(
                sum(row[g] for g in columns) / max(budget, 1e-9)
                for row, budget in zip(limits.costs, limits.budgets, strict=True)
            )

        best = min((part for part, _ in outcomes), key=share)
        for position, picked in zip(members, best, strict=True):
            picks[position] = picked
    return Architecture(space, tuple(picks))


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
