"""A product of independent categorical distributions, one per choice.

Where a choice takes any number of options, one of them or none is picked: the zero option stands for none.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bayesarch.posteriors.base import CredibleSet, Kind, Weights, take_until
from bayesarch.spaces import Architecture, Space

__all__ = ["MeanField"]


class MeanField:
    """Independent choices that each pick one option.

    Args:
        space: all choices pick one.
        table: per choice, weights of its options, non-negative, summing to 1.
        calibrated: whether the weights have been checked for calibration.

    Raises:
        ValueError: if the table does not fit the space or a row is no distribution.
    """

    kind: Kind = "mean-field"

    def __init__(self, space: Space, table: Sequence[Sequence[float]], *, calibrated: bool = False) -> None:
        self.space, self.calibrated = space, calibrated
        self.table = check_table(space, table)

    def weights(self) -> Weights:
        """Return the marginal of each option, per choice."""
        return named(self.space, self.table)

    def marginals(self) -> np.ndarray:
        """Return the probability that each flat option is picked, shape (G,)."""
        return flat_marginals(self.space, self.table)

    def mode(self) -> Architecture:
        """Return the architecture of the largest weights; ties go to the option named first."""
        return Architecture(self.space, tuple((int(np.argmax(row)),) for row in self.table))

    def sample(self, n: int, *, seed: int) -> list[Architecture]:
        """Return n independent draws."""
        rng = np.random.default_rng(seed)
        columns = [rng.choice(len(row), size=n, p=row) for row in self.table]
        return [Architecture(self.space, tuple((int(column[i]),) for column in columns)) for i in range(n)]

    def log_prob(self, arch: Architecture) -> float:
        """Return the log probability in nats."""
        options = [arch.single(position) for position in range(len(self.table))]
        terms = [0.0 if option is None else row[option] for row, option in zip(self.table, options, strict=True)]
        return float(sum(math.log(p) if p > 0 else -math.inf for p in terms))

    def entropy(self) -> float:
        """Return the entropy in nats, exactly."""
        return float(sum(entropy_of(row) for row in self.table))

    def most_probable(self) -> Iterator[tuple[Architecture, float]]:
        """Yield architectures by falling probability: best first over ranks, no enumeration."""
        order = [np.argsort(-row, kind="stable") for row in self.table]
        start = (0,) * len(self.table)

        def cost(ranks: tuple[int, ...]) -> float:
            probabilities = [row[o[r]] for row, o, r in zip(self.table, order, ranks, strict=True)]
            return -sum(math.log(p) if p > 0 else -math.inf for p in probabilities)

        heap, seen = [(cost(start), start)], {start}
        while heap:
            negative, ranks = heapq.heappop(heap)
            if math.isinf(negative):
                return
            picks = tuple((int(o[r]),) for o, r in zip(order, ranks, strict=True))
            yield Architecture(self.space, picks), math.exp(-negative)
            for position, rank in enumerate(ranks):
                following = (*ranks[:position], rank + 1, *ranks[position + 1 :])
                if rank + 1 < len(order[position]) and following not in seen:
                    seen.add(following)
                    heapq.heappush(heap, (cost(following), following))

    def credible_set(self, mass: float, *, limit: int = 1000) -> CredibleSet:
        """Return the smallest set that holds `mass`, up to `limit` members."""
        return take_until(self.most_probable(), mass, limit)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record."""
        return {
            "kind": self.kind,
            "space": self.space.name,
            "calibrated": self.calibrated,
            "weights": {name: dict(row) for name, row in self.weights().items()},
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], space: Space) -> "MeanField":
        """Return the posterior of a record made by `to_json`."""
        return cls(space, table_of(record["weights"], space), calibrated=record["calibrated"])


def flat_marginals(space: Space, table: Sequence[np.ndarray]) -> np.ndarray:
    """Return the rows as one (G,); zero options are 0 where picking them is picking nothing."""
    rows = []
    for choice, row in zip(space.choices, table, strict=True):
        values = row.copy()
        if choice.pick == "any" and choice.zero is not None:
            values[choice.zero] = 0.0
        rows.append(values)
    return np.concatenate(rows)


def check_table(space: Space, table: Sequence[Sequence[float]]) -> list[np.ndarray]:
    """Return the rows as float64 arrays that sum to 1.

    Raises:
        ValueError: if a row does not fit its choice or is no distribution.
    """
    if len(table) != len(space.choices):
        raise ValueError(f"{len(space.choices)} choices but {len(table)} rows")
    rows = []
    for choice, row in zip(space.choices, table, strict=True):
        values = np.asarray(row, dtype=np.float64)
        if choice.pick != "one" and choice.zero is None:
            raise ValueError(f"choice {choice.name!r} picks any number of options and none stands for nothing")
        if values.shape != (len(choice.options),) or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"choice {choice.name!r}: weights must be {len(choice.options)} numbers >= 0")
        if abs(values.sum() - 1) > 1e-4:
            raise ValueError(f"choice {choice.name!r}: weights must sum to 1, got {values.sum()}")
        # float32 rows are tidied; rows that sum to 1 are kept as they are, so that JSON round-trips bit for bit
        rows.append(values if abs(values.sum() - 1) < 1e-12 else values / values.sum())
    return rows


def named(space: Space, table: Sequence[np.ndarray]) -> dict[str, dict[str, float]]:
    """Return the table with names."""
    return {
        choice.name: {option: float(value) for option, value in zip(choice.options, row, strict=True)}
        for choice, row in zip(space.choices, table, strict=True)
    }


def table_of(weights: Weights, space: Space) -> list[list[float]]:
    """Return the rows of a named table in the space's order."""
    return [[weights[choice.name][option] for option in choice.options] for choice in space.choices]


def entropy_of(row: np.ndarray) -> float:
    """Return the entropy of a distribution in nats."""
    positive = row[row > 0]
    return float(0.0 - (positive * np.log(positive)).sum())  # 0, not -0, where all is on one
