"""A product of independent choices, given that hard limits are kept."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from bayesarch.posteriors.base import CredibleSet, Kind, Weights
from bayesarch.posteriors.listed import Listed
from bayesarch.posteriors.meanfield import check_table, named, table_of
from bayesarch.spaces import Architecture, Limits, Space

__all__ = ["WithinLimits"]

MEMBERS = 200_000
"""Architectures written out at most; beyond, the least probable are left out."""


class WithinLimits:
    """Independent choices that each pick one option, conditioned on the limits: p is the product, or 0.

    Args:
        space: all choices pick one.
        table: per choice, weights of its options before the limits, summing to 1.
        limits: what must be kept.
        calibrated: whether the weights have been checked for calibration.

    Raises:
        ValueError: if the table does not fit the space, or no architecture of positive weight keeps the limits.
    """

    kind: Kind = "mean-field-within-limits"

    def __init__(
        self, space: Space, table: Sequence[Sequence[float]], limits: Limits, *, calibrated: bool = False
    ) -> None:
        self.space, self.limits, self.calibrated = space, limits, calibrated
        self.table = check_table(space, table)
        first = next(self._ranked(), None)
        if first is None:
            raise ValueError("no architecture of positive weight keeps the limits")
        self._mode = first[0]

    def _ranked(self) -> Iterator[tuple[Architecture, float]]:
        """Yield (architecture, log of the product), highest first."""
        flat = np.concatenate(self.table)
        scores = [math.log(p) if p > 0 else -math.inf for p in flat]
        for picks, score in self.limits.best(self.space, scores, [True] * len(flat)):
            yield Architecture(self.space, picks), score

    @cached_property
    def _listed(self) -> Listed:
        ranked = list(islice(self._ranked(), MEMBERS))
        top = ranked[0][1]
        return Listed([(arch, math.exp(score - top)) for arch, score in ranked], kind="exact")

    def weights(self) -> Weights:
        """Return the marginal of each option given the limits, per choice."""
        marginals = self.marginals()
        return named(self.space, [marginals[list(self.space.columns(p))] for p in range(len(self.space.choices))])

    def marginals(self) -> np.ndarray:
        """Return the probability that each flat option is picked, shape (G,)."""
        return self._listed.marginals()

    def mode(self) -> Architecture:
        """Return the most probable architecture that keeps the limits."""
        return self._mode

    def sample(self, n: int, *, seed: int) -> list[Architecture]:
        """Return n independent draws; all keep the limits."""
        return self._listed.sample(n, seed=seed)

    def log_prob(self, arch: Architecture) -> float:
        """Return the log probability in nats; -inf outside the limits."""
        return self._listed.log_prob(arch)

    def entropy(self) -> float:
        """Return the entropy in nats."""
        return self._listed.entropy()

    def most_probable(self) -> Iterator[tuple[Architecture, float]]:
        """Yield (architecture, probability), most probable first."""
        yield from self._listed.most_probable()

    def credible_set(self, mass: float, *, limit: int = 1000) -> CredibleSet:
        """Return the smallest set that holds `mass`, up to `limit` members."""
        return self._listed.credible_set(mass, limit=limit)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record."""
        return {
            "kind": self.kind,
            "space": self.space.name,
            "calibrated": self.calibrated,
            "weights": {name: dict(row) for name, row in self.weights().items()},
            "before_limits": named(self.space, self.table),
            "limits": self.limits.to_json(),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], space: Space) -> "WithinLimits":
        """Return the posterior of a record made by `to_json`."""
        limits = Limits.from_json(record["limits"])
        return cls(space, table_of(record["before_limits"], space), limits, calibrated=record["calibrated"])
