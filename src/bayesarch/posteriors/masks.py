"""A product of Bernoullis over the channels of a network: every channel flips its own coin, at its group's rate."""

import heapq
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bayesarch.posteriors.base import CredibleSet, Kind, Weights, take_until
from bayesarch.posteriors.meanfield import entropy_of
from bayesarch.spaces import Architecture, Picks, Space

__all__ = ["ChannelMasks"]


class ChannelMasks:
    """Independent channels, kept with their group's probability.

    Args:
        space: any number of options of each choice; not open.
        keep: probability that a channel is kept, per choice.
        calibrated: whether the probabilities have been checked for calibration.

    Raises:
        ValueError: if there is not one probability in [0, 1] per choice.
    """

    kind: Kind = "channel-masks"

    def __init__(self, space: Space, keep: Sequence[float], *, calibrated: bool = False) -> None:
        self.space, self.calibrated = space, calibrated
        self.keep = np.asarray(keep, dtype=np.float64)
        if self.keep.shape != (len(space.choices),) or not ((self.keep >= 0) & (self.keep <= 1)).all():
            raise ValueError(f"one probability in [0, 1] for each of {len(space.choices)} groups; got {keep}")
        self._sizes = np.array([len(choice.options) for choice in space.choices])

    def weights(self) -> Weights:
        """Return the probability that a channel of each group is kept."""
        return {choice.name: {"kept": float(p)} for choice, p in zip(self.space.choices, self.keep, strict=True)}

    def marginals(self) -> np.ndarray:
        """Return the probability that each channel is kept, shape (G,)."""
        return np.repeat(self.keep, self._sizes)

    def mode(self) -> Architecture:
        """Return the most probable mask: whole groups, those kept more often than not (ties are kept)."""
        return self._architecture(self.marginals() >= 0.5)

    def sample(self, n: int, *, seed: int) -> list[Architecture]:
        """Return n independent draws."""
        rng, marginals = np.random.default_rng(seed), self.marginals()
        return [self._architecture(rng.random(len(marginals)) < marginals) for _ in range(n)]

    def log_prob(self, arch: Architecture) -> float:
        """Return the log probability in nats."""
        total = 0.0
        for p, size, picked in zip(self.keep, self._sizes, arch.picks, strict=True):
            for count, chance in ((len(picked), p), (int(size) - len(picked), 1 - p)):
                if count:
                    total += count * math.log(chance) if chance > 0 else -math.inf
        return total

    def entropies(self) -> dict[str, float]:
        """Return the entropy of each group's channels together, in nats."""
        return {
            choice.name: int(size) * entropy_of(np.array([p, 1 - p]))
            for choice, size, p in zip(self.space.choices, self._sizes, self.keep, strict=True)
        }

    def entropy(self) -> float:
        """Return the entropy in nats, exactly."""
        return math.fsum(self.entropies().values())

    def most_probable(self) -> Iterator[tuple[Architecture, float]]:
        """Yield masks by falling probability, lazily: sets of flips from the mode, cheapest first.

        With thousands of channels a probability may be too small for a float and read 0; the order is right.
        """
        marginals = self.marginals()
        best = marginals >= 0.5
        top = np.maximum(marginals, 1 - marginals)
        with np.errstate(divide="ignore"):
            costs = np.log(top) - np.log(1 - top)
        order = [int(g) for g in np.argsort(costs, kind="stable") if math.isfinite(costs[g])]
        start = float(np.log(top).sum())
        yield self._architecture(best), math.exp(start)
        heap: list[tuple[float, tuple[int, ...]]] = [(float(costs[order[0]]), (0,))] if order else []
        while heap:  # each set of flips is reached once: from its last flip on, add the next or move it by one
            cost, flips = heapq.heappop(heap)
            mask = best.copy()
            mask[[order[i] for i in flips]] ^= True
            yield self._architecture(mask), math.exp(start - cost)
            following = flips[-1] + 1
            if following < len(order):
                for larger in ((*flips, following), (*flips[:-1], following)):
                    # an exactly rounded sum, so that sets of equal cost stay equal whatever their order
                    heapq.heappush(heap, (math.fsum(costs[order[i]] for i in larger), larger))

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
            "channels": {choice.name: len(choice.options) for choice in self.space.choices},
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], space: Space) -> "ChannelMasks":
        """Return the posterior of a record made by `to_json`."""
        keep = [record["weights"][choice.name]["kept"] for choice in space.choices]
        return cls(space, keep, calibrated=record["calibrated"])

    def _architecture(self, mask: np.ndarray) -> Architecture:
        ends = np.cumsum(self._sizes)
        picks: Picks = tuple(
            tuple(np.flatnonzero(mask[end - size : end]).tolist()) for end, size in zip(ends, self._sizes, strict=True)
        )
        return Architecture(self.space, picks)
