"""How members' logits become one answer: temperatures, softmax, weighted mean.

Temperature scaling comes in two forms (Rahaman and Thiery, "Uncertainty Quantification and Deep Ensembles", NeurIPS
2021, show that averaging calibrated members leaves an underconfident ensemble): `single`, each member its own
temperature before the mean; `joint`, one temperature on the log of the mean. Both are fitted on the calibration split,
under a standard normal prior on log T (ours): a few examples that are all answered rightly would ask for T = 0.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bayesarch.functional.uncertainty import fit_temperature, mean_probabilities, nll, softmax

__all__ = ["Mixture", "Scaling", "fit_mixture"]

Scaling = Literal["none", "single", "joint"]


@dataclass(frozen=True)
class Mixture:
    """Weights and temperatures.

    Attributes:
        weights: of the members, sum 1.
        temperatures: of each member's logits.
        joint: temperature of the mixture's log probabilities.
    """

    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    joint: float = 1.0

    def members(self, logits: np.ndarray) -> np.ndarray:
        """Return each member's probabilities, shape (M, n, K), for logits of that shape."""
        return np.stack([softmax(z, t) for z, t in zip(logits, self.temperatures, strict=True)])

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Return the answer, shape (n, K)."""
        mixed = mean_probabilities(self.members(logits), self.weights)
        return mixed if self.joint == 1.0 else softmax(np.log(np.maximum(mixed, 1e-300)), self.joint)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record."""
        return {"weights": list(self.weights), "temperatures": list(self.temperatures), "joint": self.joint}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Mixture":
        """Return the mixture of a record."""
        return cls(tuple(record["weights"]), tuple(record["temperatures"]), record["joint"])


def fit_mixture(
    logits: np.ndarray, y: np.ndarray, weights: Sequence[float], scaling: Scaling, *, counting: np.ndarray | None = None
) -> Mixture:
    """Return the mixture whose temperatures have the lowest loss on a calibration split.

    Args:
        logits: shape (M, n, K).
        y: true classes, shape (n,).
        weights: of the members.
        scaling: which temperatures are fitted.
        counting: how much each example counts, shape (n,); None: all the same.
    """
    plain = Mixture(tuple(weights), (1.0,) * len(logits))

    def fitted(z: np.ndarray) -> float:
        loss: Callable[[float], float] = lambda t: nll(softmax(z, t), y, counting) + math.log(t) ** 2 / (2 * len(y))  # noqa: E731
        return fit_temperature(loss)

    if scaling == "single":
        return Mixture(plain.weights, tuple(fitted(z) for z in logits))
    if scaling == "joint":
        return Mixture(plain.weights, plain.temperatures, fitted(np.log(np.maximum(plain(logits), 1e-300))))
    return plain
