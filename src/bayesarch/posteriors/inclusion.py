"""Which operations and edges are there: inclusion probabilities under a dependency, as BayesNAS ends with.

Every edge has a gate and every operation a switch; each is in or out with its own probability, and what nothing feeds
is out with everything that leaves it. Drawn forward through the cell the dependency holds in every sample: an edge
whose source is dead is empty, any other edge is drawn by itself. Given that something reaches the output, that is the
distribution `sample`, `log_prob`, `marginals` and `entropy` speak of; all are exact, by going through the patterns of
dead and living nodes of a cell (2^nodes, 16 for four nodes).

Where a choice takes exactly one option, operations exclude one another: none with probability 1 - gate, else one in
proportion to its odds. Ours; BayesNAS has no such object (`functional/ard.py` for where the numbers come from).
"""

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from bayesarch.posteriors.base import CredibleSet, Kind, Weights, take_until
from bayesarch.posteriors.meanfield import named
from bayesarch.posteriors.ranked import Lazy, products
from bayesarch.spaces import Architecture, Space

__all__ = ["Inclusion"]

Subset = tuple[tuple[int, ...], float]
"""Picked options of one choice, and the log probability of that."""


class Inclusion:
    """Edges and operations in or out, with their dependency.

    Args:
        found: the architecture that the search ended with; `mode` gives it.
        gates: per choice, probability that the edge is there.
        rates: per choice, probability of each option given that the edge is there; those of zero options are ignored.
        calibrated: whether the numbers have been checked for calibration.

    Raises:
        ValueError: if the tables do not fit the space, or nothing can be connected.
    """

    kind: Kind = "inclusion"

    def __init__(
        self,
        found: Architecture,
        gates: Sequence[float],
        rates: Sequence[Sequence[float]],
        *,
        calibrated: bool = False,
    ) -> None:
        self.space, self.calibrated, self._found = found.space, calibrated, found
        self.gates, self.rates = [float(g) for g in gates], [np.asarray(row, dtype=np.float64) for row in rates]
        if len(self.gates) != len(self.space.choices) or len(self.rates) != len(self.space.choices):
            raise ValueError(f"{len(self.space.choices)} choices, {len(self.gates)} gates, {len(self.rates)} rows")
        for choice, gate, row in zip(self.space.choices, self.gates, self.rates, strict=True):
            values = np.append(row, gate)
            if row.shape != (len(choice.options),) or not ((values >= 0) & (values <= 1)).all():
                raise ValueError(f"choice {choice.name!r}: needs {len(choice.options)} probabilities and a gate's")
        self._cells = [_Cell(self.space, cell, self._subsets) for cell in dict.fromkeys(c.cell for c in self._choices)]

    @property
    def _choices(self) -> Sequence[Any]:
        return self.space.choices

    @cached_property
    def _subsets(self) -> list[list[Subset]]:
        """What each choice may pick where something feeds it, most probable first; impossible ones left out."""
        table = []
        for choice, gate, row in zip(self._choices, self.gates, self.rates, strict=True):
            real = [i for i in range(len(choice.options)) if i != choice.zero]
            picks = _one_of(choice.zero, real, gate, row) if choice.pick == "one" else _any_of(real, gate, row)
            ranked = sorted(picks.items(), key=lambda item: (-item[1], item[0]))
            table.append([(picked, math.log(p)) for picked, p in ranked if p > 0])
        return table

    def weights(self) -> Weights:
        """Return the probability that each option is picked, per choice; a zero option's is that of an empty edge."""
        marginals = self.marginals()
        rows = []
        for position, choice in enumerate(self._choices):
            row = marginals[list(self.space.columns(position))]
            if choice.pick == "any" and choice.zero is not None:
                row = row.copy()
                row[choice.zero] = sum(cell.empty(position) for cell in self._cells if position in cell.positions)
            rows.append(row)
        return named(self.space, rows)

    def marginals(self) -> np.ndarray:
        """Return the probability that each flat option is picked, shape (G,)."""
        total = np.zeros(self.space.n_options)
        for cell in self._cells:
            cell.add_marginals(total)
        return total

    def mode(self) -> Architecture:
        """Return the architecture that the search ended with; the most probable one is first of `most_probable`."""
        return self._found

    def sample(self, n: int, *, seed: int) -> list[Architecture]:
        """Return n independent draws; the dependency holds in each."""
        rng = np.random.default_rng(seed)
        draws = []
        for _ in range(n):
            picks: dict[int, tuple[int, ...]] = {}
            for cell in self._cells:
                picks |= cell.draw(rng)
            draws.append(Architecture(self.space, tuple(picks[p] for p in range(len(self._choices)))))
        return draws

    def log_prob(self, arch: Architecture) -> float:
        """Return the log probability in nats; -inf where the dependency is broken or nothing reaches the output."""
        return sum(cell.log_prob(arch.picks) for cell in self._cells)

    def entropy(self) -> float:
        """Return the entropy in nats, exactly."""
        return sum(cell.entropy() for cell in self._cells)

    def most_probable(self) -> Iterator[tuple[Architecture, float]]:
        """Yield (architecture, probability), most probable first, lazily."""
        for parts, log_p in products([Lazy(cell.ranked()) for cell in self._cells]):
            picks = {position: picked for part in parts for position, picked in part}
            yield Architecture(self.space, tuple(picks[p] for p in range(len(self._choices)))), math.exp(log_p)

    def credible_set(self, mass: float, *, limit: int = 1000) -> CredibleSet:
        """Return the smallest set that holds `mass`, up to `limit` members."""
        return take_until(self.most_probable(), mass, limit)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record."""
        return {
            "kind": self.kind,
            "space": self.space.name,
            "calibrated": self.calibrated,
            "found": self._found.to_json()["picks"],
            "gates": {choice.name: gate for choice, gate in zip(self._choices, self.gates, strict=True)},
            "rates": named(self.space, self.rates),
            "weights": {name: dict(row) for name, row in self.weights().items()},
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], space: Space) -> "Inclusion":
        """Return the posterior of a record made by `to_json`."""
        return cls(
            Architecture.parse({"space": space.name, "picks": record["found"]}, space),
            [record["gates"][choice.name] for choice in space.choices],
            [[record["rates"][choice.name][option] for option in choice.options] for choice in space.choices],
            calibrated=record["calibrated"],
        )


def _one_of(zero: int | None, real: Sequence[int], gate: float, row: np.ndarray) -> dict[tuple[int, ...], float]:
    """Return p of each single pick: no edge with 1 - gate, else an option in proportion to its odds."""
    with np.errstate(divide="ignore"):
        odds = np.log(row[real]) - np.log1p(-row[real])
    top = odds.max()
    shares = np.exp(odds - top) if math.isfinite(top) else (odds == top).astype(float)
    shares = shares / shares.sum()
    there = 1.0 if zero is None else gate
    picks: dict[tuple[int, ...], float] = {} if zero is None else {(zero,): 1.0 - there}
    return picks | {(i,): there * float(share) for i, share in zip(real, shares, strict=True)}


def _any_of(real: Sequence[int], gate: float, row: np.ndarray) -> dict[tuple[int, ...], float]:
    """Return p of each subset: nothing without the gate, else every option by itself."""
    picks: dict[tuple[int, ...], float] = {}
    for mask in itertools.product((False, True), repeat=len(real)):
        p = gate
        for inside, i in zip(mask, real, strict=True):
            p *= row[i] if inside else 1.0 - row[i]
        picks[tuple(i for inside, i in zip(mask, real, strict=True) if inside)] = float(p)
    picks[()] += 1.0 - gate
    return picks


class _Cell:
    """The choices of one cell type, and the patterns of its living nodes."""

    def __init__(self, space: Space, name: str, subsets: Sequence[Sequence[Subset]]) -> None:
        self.space, self.subsets = space, subsets
        self.positions = [p for p, c in enumerate(space.choices) if c.cell == name]
        self.entering: dict[str, list[int]] = {}
        for position in self.positions:
            target = space.choices[position].target
            self.entering.setdefault(target or f"?{position}", []).append(position)
        self.logs = {p: dict(subsets[p]) for p in self.positions}
        self.patterns: list[tuple[frozenset[str], float]] = []
        """(living nodes, log probability) of those in which something reaches the output."""
        nodes = list(self.entering)
        for mask in itertools.product((False, True), repeat=len(nodes)):
            living = frozenset(node for node, alive in zip(nodes, mask, strict=True) if alive)
            log_p = sum(self._log_node(node, living) for node in nodes)
            if log_p > -math.inf and self._connected(living):
                self.patterns.append((living, log_p))
        if not self.patterns:
            raise ValueError(f"cell {name!r}: nothing can reach the output")
        self.log_total = _log_sum([log_p for _, log_p in self.patterns])

    def _connected(self, living: frozenset[str]) -> bool:
        wired = any(self.space.choices[p].source is not None for p in self.positions)
        return not wired or bool(self.space.outputs & (living | self.space.inputs))

    def _fed(self, position: int, living: frozenset[str]) -> bool:
        source = self.space.choices[position].source
        return source is None or source in self.space.inputs or source in living

    def _nothing(self, position: int) -> tuple[int, ...]:
        choice = self.space.choices[position]
        return () if choice.pick == "any" else ((choice.zero,) if choice.zero is not None else (-1,))

    def _log_empty(self, position: int) -> float:
        return self.logs[position].get(self._nothing(position), -math.inf)

    def _active(self, node: str, living: frozenset[str]) -> list[int]:
        return [p for p in self.entering[node] if self._fed(p, living)]

    def _log_node(self, node: str, living: frozenset[str]) -> float:
        """Return the log probability that `node` is dead or alive as `living` says, given what can feed it."""
        if node.startswith("?"):  # a choice that lies on no graph decides nothing
            return 0.0 if node in living else -math.inf
        log_q = sum(self._log_empty(p) for p in self._active(node, living))
        if node not in living:
            return log_q
        return math.log(-math.expm1(log_q)) if log_q < 0 else -math.inf

    def _shares(self) -> Iterator[tuple[frozenset[str], float]]:
        for living, log_p in self.patterns:
            yield living, math.exp(log_p - self.log_total)

    def _is_free(self, node: str) -> bool:
        return node.startswith("?")

    def empty(self, position: int) -> float:
        """Return the probability that a choice picks nothing."""
        node = next(n for n, members in self.entering.items() if position in members)
        total = 0.0
        for living, share in self._shares():
            total += share * self._empty_given(node, position, living)
        return total

    def _empty_given(self, node: str, position: int, living: frozenset[str]) -> float:
        if not self._fed(position, living):
            return 1.0
        p = math.exp(self._log_empty(position))
        if self._is_free(node):
            return p
        if node not in living:
            return 1.0
        q = math.exp(sum(self._log_empty(other) for other in self._active(node, living)))
        return (p - q) / (1.0 - q)

    def add_marginals(self, total: np.ndarray) -> None:
        """Add the probability that each option is picked to `total` (G,)."""
        for living, share in self._shares():
            for node, members in self.entering.items():
                active = self._active(node, living)
                q = 0.0 if self._is_free(node) else math.exp(sum(self._log_empty(p) for p in active))
                for position in members:
                    nothing, start = self._nothing(position), self.space.offsets[position]
                    empty = self._empty_given(node, position, living)
                    for option in nothing:
                        if option >= 0:
                            total[start + option] += share * empty
                    if position in active and node in living:
                        for picked, log_p in self.subsets[position]:
                            if picked != nothing:
                                for option in picked:
                                    total[start + option] += share * math.exp(log_p) / (1.0 - q)

    def log_prob(self, picks: Sequence[tuple[int, ...]]) -> float:
        """Return the log probability of this cell's part of an architecture."""
        living: set[str] = {node for node in self.entering if self._is_free(node)}
        while True:
            more = {
                node
                for node, members in self.entering.items()
                for p in members
                if node not in living and picks[p] != self._nothing(p) and self._fed(p, frozenset(living))
            }
            if not more:
                break
            living |= more
        if not self._connected(frozenset(living)):
            return -math.inf
        log_p = -self.log_total
        for position in self.positions:
            if self._fed(position, frozenset(living)):
                log_p += self.logs[position].get(picks[position], -math.inf)
            elif picks[position] != self._nothing(position):
                return -math.inf
        return log_p

    def entropy(self) -> float:
        """Return the entropy of this cell's part in nats."""
        mean = 0.0
        for living, share in self._shares():
            for node in self.entering:
                active = self._active(node, living)
                log_q = sum(self._log_empty(p) for p in active)
                if self._is_free(node):
                    mean += share * sum(_mean_log(self.subsets[p]) for p in active)
                elif node in living:
                    q = math.exp(log_q)
                    total = sum(_mean_log(self.subsets[p]) for p in active)
                    mean += share * (total - (q * log_q if q > 0 else 0.0)) / (1.0 - q)
                else:
                    mean += share * log_q
        return self.log_total - mean

    def draw(self, rng: np.random.Generator) -> dict[int, tuple[int, ...]]:
        """Return one draw of this cell's picks: first which nodes live, then what enters each."""
        shares = np.array([share for _, share in self._shares()])
        living = self.patterns[int(rng.choice(len(shares), p=shares / shares.sum()))][0]
        picks = {p: self._nothing(p) for p in self.positions}
        for node in self.entering:
            if node not in living:
                continue
            active, empty_so_far = self._active(node, living), not self._is_free(node)
            for place, position in enumerate(active):
                logs = np.array([log_p for _, log_p in self.subsets[position]])
                p = np.exp(logs)
                if empty_so_far:  # something has to enter: nothing here only as far as the others can
                    rest = sum(self._log_empty(other) for other in active[place + 1 :])
                    hold = [picked == self._nothing(position) for picked, _ in self.subsets[position]]
                    p = np.where(hold, p * -math.expm1(rest), p)
                chosen = self.subsets[position][int(rng.choice(len(p), p=p / p.sum()))][0]
                picks[position] = chosen
                empty_so_far = empty_so_far and chosen == self._nothing(position)
        return picks

    def ranked(self) -> Iterator[tuple[tuple[tuple[int, tuple[int, ...]], ...], float]]:
        """Yield (picks by position, log probability) of this cell's part, most probable first."""
        streams = [self._ranked_pattern(living) for living, _ in self.patterns]
        for parts, log_p in heapq.merge(*streams, key=lambda item: -item[1]):
            yield parts, log_p - self.log_total

    def _ranked_pattern(
        self, living: frozenset[str]
    ) -> Iterator[tuple[tuple[tuple[int, tuple[int, ...]], ...], float]]:
        nodes = []
        for node, members in self.entering.items():
            nodes.append(Lazy(self._ranked_node(node, members, living)))
        for parts, log_p in products(nodes):
            yield tuple(item for part in parts for item in part), log_p

    def _ranked_node(
        self, node: str, members: Sequence[int], living: frozenset[str]
    ) -> Iterator[tuple[tuple[tuple[int, tuple[int, ...]], ...], float]]:
        active = self._active(node, living)
        closed = tuple((p, self._nothing(p)) for p in members if p not in active)
        if node not in living:
            log_q = sum(self._log_empty(p) for p in active)
            yield (*closed, *((p, self._nothing(p)) for p in active)), log_q
            return
        for parts, log_p in products([Lazy(iter(self.subsets[p])) for p in active]):
            if self._is_free(node) or any(part != self._nothing(p) for p, part in zip(active, parts, strict=True)):
                yield (*closed, *zip(active, parts, strict=True)), log_p


def _mean_log(subsets: Sequence[Subset]) -> float:
    """Return the mean of log p under p."""
    return sum(math.exp(log_p) * log_p for _, log_p in subsets)


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
