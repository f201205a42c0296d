"""What a method is: beliefs and how they move. The engine knows methods only by this protocol.

A method owns beliefs, never weights. `step` moves the beliefs and leaves the gradient of its weight objective in the
parameters' `.grad`; the engine clips it and takes the weight step. `State.live` is the method's word on which options
exist; after every call the engine reconciles network and optimiser to it, nobody else prunes.

Beside the three methods of the paper table this carries: bilevel steps on two splits (BPNAS, DARTS, DrNAS), one joint
step on one split with per-copy or per-example gates (BayesNAS, PGNAS), and work at the end of an epoch that needs
data (thresholds, curvature, ranking).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from bayesarch.data import Batch, Split
from bayesarch.functional import Streams
from bayesarch.nets import Supernet
from bayesarch.posteriors import ArchitecturePosterior, best_connected
from bayesarch.spaces import NO_LIMITS, Architecture, Limits, Space

__all__ = ["Clock", "Info", "Method", "Setting", "State", "found_by", "partial_of", "passes_at_the_end"]

Info = Mapping[str, Any]
"""For people and records, never read back by a method. From `step`: scalar tensors, averaged over the epoch."""


@dataclass(frozen=True)
class Clock:
    """Where the search is.

    Attributes:
        epoch: whole passes over the first split finished in this stage.
        step: steps finished in the whole search.
        epochs: the cap on search epochs.
        steps_per_epoch: weight steps in a pass over the first split.
        weight_lr: learning rate of the weights at this step; a tensor, shape (), where steps are replayed on a card.
        preview: gradients of the network's parameters, in their order -> by how much the weight step would move each;
            nothing is moved. For methods that look ahead.
        last: at a boundary, whether the search ends here, by its cap or because its time is over.
        keep: at a boundary, takes a state with part of the boundary's work done; it is saved from time to time, and a
            search that is broken off comes back to the boundary with it.
        gone: the share of the time allowed that has gone, 0 where there is no limit. At 1 what can be left out is left
            out; in several processes every one asks at the same place.
        trained: the same of the time for training alone, without that of the last boundary.
    """

    epoch: int
    step: int
    epochs: int
    steps_per_epoch: int
    weight_lr: float | Tensor
    preview: Callable[[Sequence[Tensor]], list[Tensor]] | None = None
    last: bool = False
    keep: Callable[[Any], None] = lambda state: None
    gone: Callable[[], float] = lambda: 0.0
    trained: Callable[[], float] = lambda: 0.0

    def reached(self) -> float:
        """Return the epoch that schedules are at: `epoch`, or as many of all `epochs` as of the time has gone.

        A search that its time ends long before its cap has had its warm-up, its stages and its rounds all the same.
        """
        return max(float(self.epoch), self.trained() * self.epochs)


@dataclass(frozen=True)
class Setting:
    """What a method may know of the task when it starts.

    Attributes:
        n_copies: L, copies of a cell.
        n_examples: per split.
        batch_size: examples per batch.
        steps_per_epoch: weight steps in an epoch.
        device: where beliefs live.
        limits: what the architecture that is found must keep, where costs add up over options.
        budgets: the same where they do not, as largest values of `params` and `macs`: a method for channels asks the
            network what a mask costs.
        classes: outputs of the network.
    """

    n_copies: int
    n_examples: Mapping[str, int]
    batch_size: int
    steps_per_epoch: int
    device: torch.device
    limits: Limits = NO_LIMITS
    budgets: Mapping[str, float] = field(default_factory=dict)
    classes: int = 1


@runtime_checkable
class State(Protocol):
    """Beliefs: a frozen dataclass of tensors and JSON-ready values, one of them `live`.

    A state may have a second word to the network: `partial`, an int K. One in K channels goes through the options then
    (partial channels); the engine resizes the network whenever it changes. It must be 1 at the end.
    """

    @property
    def live(self) -> Tensor:
        """Mask of options that exist, shape (G,), bool, on the CPU."""


def partial_of(state: State) -> int:
    """Return K, where one in K channels is to go through the options; 1 where the state says nothing of it."""
    return int(getattr(state, "partial", 1))


def passes_at_the_end(method: "Method[Any]", state: Any) -> float:
    """Return how often the last boundary passes over the `architecture` split, forward only; 0 where nothing is said.

    A method that does much there, such as ranking candidates, has a `last_passes` of its own: where the time is
    limited, some is set aside.
    """
    own = getattr(method, "last_passes", None)
    return 0.0 if own is None else float(own(state))


def found_by(method: "Method[Any]", state: Any) -> Architecture:
    """Return the architecture a search ends with: the most probable that lets an image through.

    A method that ranks what it draws from its posterior has a `found` of its own.
    """
    own = getattr(method, "found", None)
    arch: Architecture = best_connected(method.posterior(state)) if own is None else own(state)
    return arch


S = TypeVar("S")


class Method(Protocol[S]):
    """A search method. See `methods/drnas.py` for the smallest complete one."""

    @property
    def name(self) -> str:
        """The name it is listed under."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Named splits whose batches `step` consumes; the first one counts an epoch."""

    @property
    def cite(self) -> str:
        """Whom to cite."""

    @property
    def state_type(self) -> type[S]:
        """Class of its state, to read checkpoints back."""

    @property
    def space(self) -> Space:
        """The space it was made for."""

    def init(self, setting: Setting, *, streams: Streams) -> S:
        """Return the beliefs before any data."""

    def gates(self, state: S) -> Tensor:
        """Return the gates of the expected network, shape (1, 1 or L, G), for scoring; draws nothing."""

    def step(
        self, state: S, net: Supernet, batches: Mapping[str, Batch], *, streams: Streams, clock: Clock
    ) -> tuple[S, Info]:
        """Return moved beliefs; leaves the weight gradient in the parameters' `.grad` (None: leave that weight)."""

    def round_steps(self, steps_per_pass: int) -> int:
        """Return how many steps make a round; `boundary` is called at its end. `steps_per_pass`: one epoch."""

    def boundary(
        self, state: S, net: Supernet, data: Mapping[str, Split], *, streams: Streams, clock: Clock
    ) -> tuple[S, Info]:
        """Return the beliefs after the end of a round: threshold tests, curvature, pruning."""

    def finished(self, state: S) -> bool:
        """Return whether nothing is left to decide."""

    def conclude(self, state: S) -> S:
        """Return the beliefs with everything decided; called when the cap is reached first."""

    def examine(self, state: S, net: Supernet, data: Mapping[str, Split], *, streams: Streams, clock: Clock) -> S:
        """Return the beliefs after what can only be measured on the trained found network."""

    def posterior(self, state: S) -> ArchitecturePosterior:
        """Return the posterior over architectures."""

    def summary(self, state: S) -> Info:
        """Return what else people should know of how the search ended; goes into the run's summary.

        `warnings`, a list of sentences, is shown to them.
        """
