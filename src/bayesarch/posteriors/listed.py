"""A distribution written out: architectures with their weights.

exact           every architecture of an enumerable space
candidates      architectures that were tried, weighted by how well they did
recurrence      what independent runs found, each run one vote

A recurrence also knows its runs, and with them an interval for each option: k of R runs picked it, so the chance that
another such run does has the Jeffreys posterior Beta(k + 1/2, R - k + 1/2).
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from bayesarch.posteriors.base import CredibleSet, Kind, Weights, take_until
from bayesarch.posteriors.meanfield import entropy_of, named
from bayesarch.spaces import Architecture, Space

__all__ = ["Listed", "jeffreys"]


def jeffreys(successes: int, trials: int, *, level: float = 0.9) -> tuple[float, float]:
    """Return the equal-tailed interval of Beta(k + 1/2, n - k + 1/2), to 0 or 1 where k is 0 or n.

    Reference: Brown, Cai and DasGupta, "Interval Estimation for a Binomial Proportion", Statistical Science 2001.

    Args:
        successes: k.
        trials: n >= 1.
        level: probability inside.
    """
    from scipy.stats import beta  # scikit-learn brings it

    tail = (1 - level) / 2
    low, high = beta.ppf([tail, 1 - tail], successes + 0.5, trials - successes + 0.5)
    return (0.0 if successes == 0 else float(low)), (1.0 if successes == trials else float(high))


class Listed:
    """Architectures with weights.

    Args:
        members: (architecture, weight >= 0); weights are divided by their sum, equal architectures are joined.
        kind: `exact`, `candidates` or `recurrence`.
        calibrated: whether the weights have been checked for calibration.
        votes: number of runs, for a recurrence.

    Raises:
        ValueError: if there is no member, or a weight is negative or not finite.
    """

    def __init__(
        self,
        members: Sequence[tuple[Architecture, float]],
        *,
        kind: Kind,
        calibrated: bool = False,
        votes: int | None = None,
    ) -> None:
        joined: dict[Architecture, float] = {}
        for arch, weight in members:
            if not math.isfinite(weight) or weight < 0:
                raise ValueError(f"weights must be finite and not negative; got {weight} for {arch}")
            joined[arch] = joined.get(arch, 0.0) + float(weight)
        total = math.fsum(joined.values())
        if total <= 0:
            raise ValueError("at least one architecture needs a positive weight")
        scale = 1.0 if abs(total - 1) < 1e-12 else 1.0 / total
        support: dict[int, float] = {}  # of equals, the one whose options others have too comes first
        for arch, weight in joined.items():
            for g in arch.columns:
                support[g] = support.get(g, 0.0) + weight * scale

        def rank(member: tuple[Architecture, float]) -> tuple[float, float, str]:
            arch, weight = member
            return -weight, -round(sum(support[g] for g in arch.columns), 9), str(arch)

        ranked = sorted(joined.items(), key=rank)
        self.members = [(arch, weight * scale) for arch, weight in ranked if weight > 0]
        self.space: Space = self.members[0][0].space
        self.kind, self.calibrated, self.votes = kind, calibrated, votes

    @classmethod
    def recurrence(cls, found: Sequence[Architecture], *, calibrated: bool = False) -> "Listed":
        """Return the union of independent runs: each architecture weighs as often as it was found."""
        counts = Counter(found)
        members = [(arch, count / len(found)) for arch, count in counts.items()]
        return cls(members, kind="recurrence", calibrated=calibrated, votes=len(found))

    @cached_property
    def _probabilities(self) -> dict[Architecture, float]:
        return dict(self.members)

    def weights(self) -> Weights:
        """Return the marginal of each option, per choice."""
        return named(self.space, self._rows())

    def intervals(self, *, level: float = 0.9) -> dict[str, dict[str, tuple[float, float]]]:
        """Return the Jeffreys interval of each option's recurrence, per choice.

        Raises:
            ValueError: if this is no recurrence.
        """
        if self.votes is None:
            raise ValueError(f"intervals come from repeated runs; this posterior is of kind {self.kind!r}")
        table: dict[str, dict[str, tuple[float, float]]] = {}
        for choice, row in zip(self.space.choices, self._rows(), strict=True):
            counts = [round(value * self.votes) for value in row]
            table[choice.name] = {
                option: jeffreys(k, self.votes, level=level) for option, k in zip(choice.options, counts, strict=True)
            }
        return table

    def marginals(self) -> np.ndarray:
        """Return the probability that each flat option is picked, shape (G,)."""
        total = np.zeros(self.space.n_options)
        for arch, weight in self.members:
            total[list(arch.columns)] += weight
        return total

    def mode(self) -> Architecture:
        """Return the architecture of the largest weight; of equals the one whose options weigh most on their own."""
        return self.members[0][0]

    def sample(self, n: int, *, seed: int) -> list[Architecture]:
        """Return n independent draws."""
        weights = np.array([weight for _, weight in self.members])
        drawn = np.random.default_rng(seed).choice(len(weights), size=n, p=weights / weights.sum())
        return [self.members[i][0] for i in drawn]

    def log_prob(self, arch: Architecture) -> float:
        """Return the log probability in nats; -inf for what is not listed."""
        p = self._probabilities.get(arch, 0.0)
        return math.log(p) if p > 0 else -math.inf

    def entropy(self) -> float:
        """Return the entropy in nats, exactly."""
        return entropy_of(np.array([weight for _, weight in self.members]))

    def most_probable(self) -> Iterator[tuple[Architecture, float]]:
        """Yield the members by falling weight."""
        yield from self.members

    def credible_set(self, mass: float, *, limit: int = 1000) -> CredibleSet:
        """Return the smallest set that holds `mass`, up to `limit` members."""
        return take_until(self.most_probable(), mass, limit)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record."""
        record: dict[str, Any] = {
            "kind": self.kind,
            "space": self.space.name,
            "calibrated": self.calibrated,
            "members": [{"picks": arch.to_json()["picks"], "weight": weight} for arch, weight in self.members],
            "weights": {name: dict(row) for name, row in self.weights().items()},
        }
        if self.votes is not None:
            record["runs"] = self.votes
            record["intervals_90"] = {
                name: {option: list(pair) for option, pair in row.items()} for name, row in self.intervals().items()
            }
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any], space: Space) -> "Listed":
        """Return the posterior of a record made by `to_json`."""
        members = [
            (Architecture.parse({"space": space.name, "picks": member["picks"]}, space), member["weight"])
            for member in record["members"]
        ]
        return cls(members, kind=record["kind"], calibrated=record["calibrated"], votes=record.get("runs"))

    def _rows(self) -> list[np.ndarray]:
        marginals = self.marginals()
        return [marginals[list(self.space.columns(p))] for p in range(len(self.space.choices))]
