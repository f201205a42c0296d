"""Mixing weights in a space whose nodes keep a fixed number of edges: DARTS's derivation as a distribution.

For every node, k of the edges that enter it are there, with one operation each, in proportion to the product of the
operations' weights: p(S, o) ~ prod_{e in S} w_e(o_e). The most probable outcome is the published derivation, the k
edges with the largest weights of an operation other than the zero option, each with that operation. Nodes are
independent, so that everything is exact by going through the outcomes of each node (490 for five edges of seven
operations).
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bayesarch.posteriors.base import CredibleSet, Kind, Weights, take_until
from bayesarch.posteriors.meanfield import named
from bayesarch.posteriors.ranked import Lazy, products
from bayesarch.spaces import Architecture, Space

__all__ = ["TopEdges"]

Outcome = tuple[tuple[tuple[int, ...], ...], float]
"""Picks of every edge into one node, and their log probability."""


class TopEdges:
    """A fixed number of edges into each node, one operation on each.

    Args:
        space: its `entering` says how many edges a node keeps.
        table: per choice, weights of its options, not negative; those of zero options do not matter.
        calibrated: whether the weights have been checked for calibration.

    Raises:
        ValueError: if the table does not fit the space, or the space keeps all edges.
    """

    kind: Kind = "top-edges"

    def __init__(self, space: Space, table: Sequence[Sequence[float]], *, calibrated: bool = False) -> None:
        if space.entering is None:
            raise ValueError(f"space {space.name!r} keeps all edges")
        self.space, self.calibrated = space, calibrated
        self.table = [np.asarray(row, dtype=np.float64) for row in table]
        for choice, row in zip(space.choices, self.table, strict=True):
            if row.shape != (len(choice.options),) or not np.isfinite(row).all() or (row < 0).any():
                raise ValueError(f"choice {choice.name!r}: weights must be {len(choice.options)} numbers >= 0")
        nodes: dict[tuple[str, str | None], list[int]] = {}
        for position, choice in enumerate(space.choices):
            nodes.setdefault((choice.cell, choice.target), []).append(position)
        self.nodes = list(nodes.values())
        self.outcomes = [self._outcomes(members, space.entering) for members in self.nodes]

    def _outcomes(self, members: Sequence[int], keep: int) -> list[Outcome]:
        """Return all outcomes of one node, most probable first; as many edges as can be, where fewer than k can."""
        there = []
        for position in members:
            choice, row = self.space.choices[position], self.table[position]
            there.append([((i,), math.log(row[i])) for i in choice.real if row[i] > 0])
        keep = min(keep, sum(bool(options) for options in there))
        found: list[Outcome] = []
        for chosen in itertools.combinations([i for i, options in enumerate(there) if options], keep):
            for combination in itertools.product(*(there[i] for i in chosen)):
                picks: list[tuple[int, ...]] = [()] * len(members)
                for i, (picked, _) in zip(chosen, combination, strict=True):
                    picks[i] = picked
                found.append((tuple(picks), sum(log_w for _, log_w in combination)))
        top = max(log_w for _, log_w in found)
        total = top + math.log(math.fsum(math.exp(log_w - top) for _, log_w in found))
        return sorted(((picks, log_w - total) for picks, log_w in found), key=lambda o: (-o[1], o[0]))

    def weights(self) -> Weights:
        """Return the probability of each option, per choice; a zero option's is that of the edge not being there."""
        marginals, rows = self.marginals(), []
        for position, choice in enumerate(self.space.choices):
            row = marginals[list(self.space.columns(position))].copy()
            if choice.zero is not None:
                row[choice.zero] = max(0.0, 1.0 - row.sum())
            rows.append(row)
        return named(self.space, rows)

    def marginals(self) -> np.ndarray:
        """Return the probability that each flat option is picked, shape (G,)."""
        total = np.zeros(self.space.n_options)
        for members, outcomes in zip(self.nodes, self.outcomes, strict=True):
            for picks, log_p in outcomes:
                for position, picked in zip(members, picks, strict=True):
                    for option in picked:
                        total[self.space.offsets[position] + option] += math.exp(log_p)
        return total

    def _joined(self, parts: Sequence[tuple[tuple[int, ...], ...]]) -> Architecture:
        picks: list[tuple[int, ...]] = [()] * len(self.space.choices)
        for members, part in zip(self.nodes, parts, strict=True):
            for position, picked in zip(members, part, strict=True):
                picks[position] = picked
        return Architecture(self.space, tuple(picks))

    def mode(self) -> Architecture:
        """Return the most probable architecture: the published derivation."""
        return self._joined([outcomes[0][0] for outcomes in self.outcomes])

    def sample(self, n: int, *, seed: int) -> list[Architecture]:
        """Return n independent draws."""
        rng = np.random.default_rng(seed)
        columns = []
        for outcomes in self.outcomes:
            p = np.exp([log_p for _, log_p in outcomes])
            columns.append(rng.choice(len(p), size=n, p=p / p.sum()))
        return [self._joined([o[int(c[i])][0] for o, c in zip(self.outcomes, columns, strict=True)]) for i in range(n)]

    def log_prob(self, arch: Architecture) -> float:
        """Return the log probability in nats; -inf where a node has another number of edges."""
        total = 0.0
        for members, outcomes in zip(self.nodes, self.outcomes, strict=True):
            part = tuple(arch.picks[position] for position in members)
            total += dict(outcomes).get(part, -math.inf)
        return total

    def entropy(self) -> float:
        """Return the entropy in nats, exactly."""
        return -sum(math.exp(log_p) * log_p for outcomes in self.outcomes for _, log_p in outcomes)

    def most_probable(self) -> Iterator[tuple[Architecture, float]]:
        """Yield architectures by falling probability, lazily."""
        for parts, log_p in products([Lazy(iter(outcomes)) for outcomes in self.outcomes]):
            yield self._joined(parts), math.exp(log_p)

    def credible_set(self, mass: float, *, limit: int = 1000) -> CredibleSet:
        """Return the smallest set that holds `mass`, up to `limit` members."""
        return take_until(self.most_probable(), mass, limit)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record."""
        return {
            "kind": self.kind,
            "space": self.space.name,
            "calibrated": self.calibrated,
            "mixing": named(self.space, self.table),
            "weights": {name: dict(row) for name, row in self.weights().items()},
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], space: Space) -> "TopEdges":
        """Return the posterior of a record made by `to_json`."""
        table = [[record["mixing"][choice.name][option] for option in choice.options] for choice in space.choices]
        return cls(space, table, calibrated=record["calibrated"])
