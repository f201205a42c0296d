"""Hard limits on what may be found: budgets on costs that add up over the picked options.

Parameters and MACs of cell spaces are additive exactly; a latency is so nearly, from a table that was measured. With
additive costs the best allowed architecture can be found without trying all of them, and it can be said at once, and
exactly, that none exists.
"""

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bayesarch.spaces.space import Picks, Space

__all__ = ["NO_LIMITS", "Limits"]


@dataclass(frozen=True)
class Limits:
    """Budgets that every architecture found must keep; empty: anything may be found.

    Attributes:
        names: what is limited, such as `macs`.
        budgets: the largest value allowed, per name.
        base: cost of the network without cells, per name.
        costs: cost of each flat option (length G), per name.
    """

    names: tuple[str, ...] = ()
    budgets: tuple[float, ...] = ()
    base: tuple[float, ...] = ()
    costs: tuple[tuple[float, ...], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.names)

    def cost(self, space: Space, picks: Picks) -> dict[str, float]:
        """Return the cost of an architecture by name."""
        columns = [space.offsets[position] + option for position, picked in enumerate(picks) for option in picked]
        return {
            name: base + sum(row[g] for g in columns)
            for name, base, row in zip(self.names, self.base, self.costs, strict=True)
        }

    def allow(self, space: Space, picks: Picks) -> bool:
        """Return whether an architecture keeps every budget."""
        return all(v <= budget for v, budget in zip(self.cost(space, picks).values(), self.budgets, strict=True))

    def best(self, space: Space, scores: Sequence[float], live: Sequence[bool]) -> Iterator[tuple[Picks, float]]:
        """Yield (picks, score) of allowed architectures, highest total score first, lazily.

        A best-first search over choices in order: the bound on a partial architecture is the score of what is picked
        plus the best score of each choice that is not; what cannot be completed within the budgets is never entered.

        Args:
            space: all its choices pick one option.
            scores: of each flat option, length G; -inf excludes it.
            live: whether each flat option may be picked, length G.
        """
        groups = [
            [(i, g) for i, g in enumerate(space.columns(p)) if live[g] and scores[g] > -math.inf]
            for p in range(len(space.choices))
        ]
        if not all(groups):
            return
        hope = _suffix_sums([max(scores[g] for _, g in group) for group in groups])
        need = [_suffix_sums([min(row[g] for _, g in group) for group in groups]) for row in self.costs]
        ticket = itertools.count()  # equal bounds: deeper first, then in order of entry
        start: tuple[int, ...] = ()
        heap = [(-hope[0], 0, next(ticket), start, 0.0, self.base)]
        while heap:
            _, depth, _, picked, score, spent = heapq.heappop(heap)
            depth = -depth
            if any(s + need[r][depth] > budget for r, (s, budget) in enumerate(zip(spent, self.budgets, strict=True))):
                continue
            if depth == len(groups):
                yield tuple((i,) for i in picked), score
                continue
            for i, g in groups[depth]:
                total = score + scores[g]
                after = tuple(s + row[g] for s, row in zip(spent, self.costs, strict=True))
                heapq.heappush(
                    heap, (-(total + hope[depth + 1]), -(depth + 1), next(ticket), (*picked, i), total, after)
                )

    def possible(self, space: Space, live: Sequence[bool]) -> bool:
        """Return whether some architecture of the live options keeps every budget."""
        if not self.names:
            return True
        return next(self.best(space, [0.0] * space.n_options, live), None) is not None

    def reachable(self, space: Space, live: Sequence[bool]) -> list[bool]:
        """Return which live options are in at least one allowed architecture of live options, length G."""
        keep = list(live)
        if not self.names:
            return keep
        for position in range(len(space.choices)):
            for g in space.columns(position):
                if live[g]:
                    alone = [live[h] and (h == g or h not in space.columns(position)) for h in range(space.n_options)]
                    keep[g] = self.possible(space, alone)
        return keep

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record."""
        return {
            "names": list(self.names),
            "budgets": list(self.budgets),
            "base": list(self.base),
            "costs": [list(row) for row in self.costs],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any] | None) -> "Limits":
        """Return the limits of a record made by `to_json`; None: no limits."""
        if not record:
            return cls()
        return cls(
            tuple(record["names"]),
            tuple(record["budgets"]),
            tuple(record["base"]),
            tuple(tuple(row) for row in record["costs"]),
        )


def _suffix_sums(values: Sequence[float]) -> list[float]:
    """Return s with s[i] = sum of values[i:], length len(values) + 1."""
    sums = [0.0]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    return sums[::-1]


NO_LIMITS = Limits()
"""Anything may be found."""
