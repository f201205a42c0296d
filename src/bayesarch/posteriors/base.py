"""What every search returns: a distribution over architectures, serialisable, with an honest name for its numbers."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from bayesarch.spaces import Architecture, Space

__all__ = ["ArchitecturePosterior", "CredibleSet", "Kind", "Weights", "best_connected", "connected"]

LOOKED_AT = 20_000
"""Most probable architectures that are looked through for one that is connected."""

Kind = Literal[
    "exact",
    "mean-field",
    "mean-field-within-limits",
    "conditionals-at-mode",
    "top-edges",
    "inclusion",
    "channel-masks",
    "candidates",
    "recurrence",
]
"""
exact                      enumerated
mean-field                 a product over choices
mean-field-within-limits   that product, given that hard limits are kept
conditionals-at-mode       each choice given the rest of the found architecture; neither marginals nor a joint
top-edges                  a fixed number of edges into each node, one operation on each
channel-masks              channels kept or dropped, each by itself at its group's rate
inclusion                  edges and options in or out, each by itself where something feeds it
candidates                 architectures that were tried, weighted by how well they did
recurrence                 how often independent runs found it
"""

Weights = Mapping[str, Mapping[str, float]]
"""choice name -> option name -> weight."""


class CredibleSet(list[tuple[Architecture, float]]):
    """Architectures with their weights, most probable first.

    Attributes:
        mass: what they sum to.
        complete: False if the limit was reached before the mass asked for.
    """

    def __init__(self, members: list[tuple[Architecture, float]], *, mass: float, complete: bool) -> None:
        super().__init__(members)
        self.mass, self.complete = mass, complete


@runtime_checkable
class ArchitecturePosterior(Protocol):
    """A distribution over the architectures of a space.

    `marginals`, `sample`, `log_prob` and `entropy` speak of one and the same distribution; the contract suite
    `bayesarch.testing.check_posterior` holds them to it.
    """

    @property
    def space(self) -> Space:
        """The space."""

    @property
    def kind(self) -> Kind:
        """What sort of object this is."""

    @property
    def calibrated(self) -> bool:
        """Whether its numbers have been checked for calibration; if not they are called relative weights."""

    def weights(self) -> Weights:
        """Return the table that people look at: per choice, the weight of each option."""

    def marginals(self) -> np.ndarray:
        """Return the probability that each flat option is picked, shape (G,)."""

    def mode(self) -> Architecture:
        """Return the most probable architecture."""

    def sample(self, n: int, *, seed: int) -> list[Architecture]:
        """Return n independent draws."""

    def log_prob(self, arch: Architecture) -> float:
        """Return the log probability of an architecture, in nats; -inf if impossible."""

    def entropy(self) -> float:
        """Return the entropy in nats."""

    def most_probable(self) -> Iterator[tuple[Architecture, float]]:
        """Yield (architecture, probability), most probable first, lazily."""

    def credible_set(self, mass: float, *, limit: int = 1000) -> CredibleSet:
        """Return the smallest set that holds `mass`, up to `limit` members."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record; holds no times and no paths."""


def word(posterior: ArchitecturePosterior) -> str:
    """Return what to call this posterior's numbers: `probability` only where calibration has been checked."""
    if posterior.calibrated:
        return "probability"
    return "share of runs" if posterior.kind == "recurrence" else "relative weight"


def connected(posterior: ArchitecturePosterior, *, among: int = LOOKED_AT) -> Iterator[Architecture]:
    """Yield those of the `among` most probable architectures that let something flow from input to output."""
    return (arch for arch, _ in islice(posterior.most_probable(), among) if arch.connected)


def best_connected(posterior: ArchitecturePosterior, *, among: int = LOOKED_AT) -> Architecture:
    """Return the most probable architecture that lets something flow from input to output.

    That is the mode, but where the mode's network would see no image; the mode too where none of the `among` most
    probable is connected.
    """
    mode = posterior.mode()
    return mode if mode.connected else next(connected(posterior, among=among), mode)


def take_until(ranked: Iterator[tuple[Architecture, float]], mass: float, limit: int) -> CredibleSet:
    """Return the members of `ranked` until their weights reach `mass` or `limit` is reached.

    Raises:
        ValueError: if mass is not in (0, 1] or the limit is not positive.
    """
    if not 0 < mass <= 1 or limit < 1:
        raise ValueError(f"mass must lie in (0, 1] and limit be at least 1; got {mass} and {limit}")
    members: list[tuple[Architecture, float]] = []
    total = 0.0
    for arch, probability in ranked:
        if total >= mass - 1e-12:
            return CredibleSet(members, mass=total, complete=True)
        if len(members) == limit:
            return CredibleSet(members, mass=total, complete=False)
        members.append((arch, probability))
        total += probability
    return CredibleSet(members, mass=total, complete=True)
