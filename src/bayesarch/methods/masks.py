"""Masks of live options where any number of an edge's operations may stay: what goes, and what goes with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesarch.methods.single import live_table
from bayesarch.nets import node_order
from bayesarch.spaces import Limits, Picks, Space

__all__ = ["Removal", "best_path", "cut_to", "mask_of", "remaining", "zeros_where_empty"]


@dataclass(frozen=True)
class Removal:
    """What a removal leaves, and why what is gone went."""

    live: Tensor
    """Which options are left, shape (G,)."""
    why: dict[int, str]
    """Flat option -> the rule, or gate, dependency, inactive."""
    guarded: int
    """Options that the rule would have taken and the last path needed."""


def remaining(space: Space, live: Tensor, failing: Tensor, *, scores: Sequence[float], rule: str) -> Removal:
    """Return what is left when options fail: those of failing gates go too, and what no path runs through any more.

    A cell that would fall apart keeps its best path, a choice that takes exactly one option the best one.

    Args:
        space: the space; a zero option is the gate of its edge.
        live: what is there, shape (G,).
        failing: which options and gates the rule takes, shape (G,).
        scores: of each flat option, length G; what is put back is what scores highest.
        rule: what the reason is called.
    """
    wanted, why, zeros = live.clone(), dict[int, str](), torch.zeros_like(live)
    for position, choice in enumerate(space.choices):
        columns = space.columns(position)
        shut = choice.zero is not None and bool(failing[columns[choice.zero]])
        for i, g in enumerate(columns):
            zeros[g] = i == choice.zero
            if not zeros[g] and live[g] and (shut or failing[g]):
                wanted[g], why[g] = False, rule if failing[g] else "gate"
    connected, guarded = reconnected(space, wanted, live, scores)
    fed = fed_part(space, connected)
    used = without_inactive(space, fed)
    why |= dict.fromkeys(_indices(live & ~zeros & ~fed & connected), "dependency")
    why |= dict.fromkeys(_indices(fed & ~used), "inactive")
    left = at_least_one(space, used | (live & zeros), live, scores)
    return Removal(left, {g: why[g] for g in _indices(live & ~left & ~zeros)}, guarded)


def cut_to(space: Space, live: Tensor, limits: Limits, *, scores: Tensor) -> Tensor:
    """Return the mask after options where any number may stay went, lowest score first, until it keeps the limits.

    An option without which a cell would fall apart stays; where all that is left are such, the limits are not kept.

    Args:
        space: the space.
        live: what is there, shape (G,).
        limits: what must be kept.
        scores: of each flat option, shape (G,).
    """
    several = torch.tensor([c.pick == "any" for c in space.choices for _ in c.options])
    order = sorted(_indices(live & several), key=lambda g: float(scores[g]))
    while not limits.allow(space, tuple(map(tuple, live_table(space, live)))):
        for g in order:
            less = fed_part(space, live & (torch.arange(len(live)) != g))
            if live[g] and space.connected(live_table(space, less)):
                live = without_inactive(space, less)
                break
        else:
            break
    return live


def _indices(mask: Tensor) -> list[int]:
    """Return the flat options of a mask."""
    return [int(g) for g in mask.nonzero().flatten().tolist()]


def fed_part(space: Space, live: Tensor) -> Tensor:
    """Return the mask without what nothing feeds, shape (G,)."""
    return mask_of(space, space.cascade(live_table(space, live)))


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


def mask_of(space: Space, picks: Picks) -> Tensor:
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
