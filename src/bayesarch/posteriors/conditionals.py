"""Each choice given the rest of the found architecture: what BPNAS knows when it ends.

Six conditionals at the mode are neither marginals nor a joint. The one distribution that they define without further
assumptions is a single Gibbs step from the mode: pick a choice at random, draw its option from its conditional, leave
the rest. Its support is the mode and its neighbours (25 cells of NAS-Bench-201), which is where BPNAS takes the
members of its ensemble from. `sample`, `log_prob`, `marginals` and `entropy` speak of that distribution; `weights` is
the table of conditionals.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bayesarch.posteriors.base import CredibleSet, Kind, Weights, take_until
from bayesarch.posteriors.meanfield import check_table, entropy_of, flat_marginals, named, table_of
from bayesarch.spaces import Architecture, Space

__all__ = ["ConditionalsAtMode"]


class ConditionalsAtMode:
    """One random re-opened choice around the mode.

    Args:
        mode: the found architecture; all choices pick one.
        table: per choice, its conditional given the rest of the mode, summing to 1. The row of an inactive choice
            says nothing about quality.
        gaps: per choice, n (loss - lowest loss) of each option in nats, for people; None where not measured.
        temperature: T in exp(-gap / T), for the record.
        calibrated: whether the weights have been checked for calibration.
    """

    kind: Kind = "conditionals-at-mode"

    def __init__(
        self,
        mode: Architecture,
        table: Sequence[Sequence[float]],
        *,
        gaps: Sequence[Sequence[float]] | None = None,
        temperature: float = 1.0,
        calibrated: bool = False,
    ) -> None:
        self.space, self.calibrated, self.temperature = mode.space, calibrated, temperature
        self._mode = mode
        self.table = check_table(mode.space, table)
        self.gaps = None if gaps is None else [np.asarray(row, dtype=np.float64) for row in gaps]

    def weights(self) -> Weights:
        """Return the conditional of each option given the rest of the mode."""
        return named(self.space, self.table)

    def marginals(self) -> np.ndarray:
        """Return the probability under `sample` that each flat option is picked, shape (G,)."""
        share = 1.0 / len(self.table)
        rows = []
        for position, row in enumerate(self.table):
            marginal = share * row
            marginal[self._mode.single(position)] += 1.0 - share
            rows.append(marginal)
        return flat_marginals(self.space, rows)

    def mode(self) -> Architecture:
        """Return the found architecture."""
        return self._mode

    def sample(self, n: int, *, seed: int) -> list[Architecture]:
        """Return n draws, each with one choice drawn anew from its conditional."""
        rng = np.random.default_rng(seed)
        draws = []
        for _ in range(n):
            position = int(rng.integers(len(self.table)))
            option = int(rng.choice(len(self.table[position]), p=self.table[position]))
            draws.append(self._neighbour(position, option))
        return draws

    def log_prob(self, arch: Architecture) -> float:
        """Return the log probability under `sample`, in nats; -inf two or more choices away from the mode."""
        away = [i for i, (a, b) in enumerate(zip(arch.picks, self._mode.picks, strict=True)) if a != b]
        if len(away) > 1:
            return -math.inf
        probability = self._stay() if not away else self._weight_of(arch, away[0]) / len(self.table)
        return math.log(probability) if probability > 0 else -math.inf

    def _weight_of(self, arch: Architecture, position: int) -> float:
        option = arch.single(position)
        return 0.0 if option is None else float(self.table[position][option])

    def entropy(self) -> float:
        """Return the entropy in nats, exactly, over the mode and its neighbours."""
        return entropy_of(np.array([p for _, p in self._support()]))

    def most_probable(self) -> Iterator[tuple[Architecture, float]]:
        """Yield the support by falling probability."""
        yield from sorted((m for m in self._support() if m[1] > 0), key=lambda member: -member[1])

    def credible_set(self, mass: float, *, limit: int = 1000) -> CredibleSet:
        """Return the smallest set that holds `mass`, up to `limit` members."""
        return take_until(self.most_probable(), mass, limit)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record."""
        record: dict[str, Any] = {
            "kind": self.kind,
            "space": self.space.name,
            "calibrated": self.calibrated,
            "mode": self._mode.to_json()["picks"],
            "temperature": self.temperature,
            "weights": {name: dict(row) for name, row in self.weights().items()},
        }
        if self.gaps is not None:
            record["gaps_nats"] = {
                choice.name: {o: _finite(v) for o, v in zip(choice.options, row, strict=True)}
                for choice, row in zip(self.space.choices, self.gaps, strict=True)
            }
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any], space: Space) -> "ConditionalsAtMode":
        """Return the posterior of a record made by `to_json`."""
        mode = Architecture.parse({"space": space.name, "picks": record["mode"]}, space)
        gaps = record.get("gaps_nats")
        tidy = None
        if gaps is not None:
            tidy = [
                [math.nan if gaps[c.name][o] is None else gaps[c.name][o] for o in c.options] for c in space.choices
            ]
        return cls(
            mode,
            table_of(record["weights"], space),
            gaps=tidy,
            temperature=record["temperature"],
            calibrated=record["calibrated"],
        )

    def _stay(self) -> float:
        """Probability that a draw is the mode itself."""
        kept = [self._weight_of(self._mode, position) for position in range(len(self.table))]
        return float(np.mean(kept))

    def _neighbour(self, position: int, option: int) -> Architecture:
        picks = self._mode.picks
        return Architecture(self.space, (*picks[:position], (option,), *picks[position + 1 :]))

    def _support(self) -> Iterator[tuple[Architecture, float]]:
        yield self._mode, self._stay()
        for position, row in enumerate(self.table):
            for option, value in enumerate(row):
                if option != self._mode.single(position):
                    yield self._neighbour(position, option), float(value) / len(self.table)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
