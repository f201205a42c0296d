"""The common body of methods that mix options by weights, move them by bilevel steps, and take the largest at the end.

A method of this kind is a `Rule`: how parameters become gates, and how one step moves them. See `darts.py` for the
smallest one. What is not of this kind keeps the protocol of `engine/method.py` itself, as `drnas.py` does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayesarch.data import Batch, Split
from bayesarch.engine import Clock, Info, Setting
from bayesarch.functional import Simplices, Streams
from bayesarch.methods.bilevel import AlphaConfig, Logits, default_lr, fresh_logits, warming
from bayesarch.methods.single import argmax_live, belief_record, open_options, product, rows, simplices
from bayesarch.nets import Supernet
from bayesarch.posteriors import ArchitecturePosterior
from bayesarch.spaces import Space

__all__ = ["Mixture", "MixtureState", "Rule", "Step"]


@dataclass(frozen=True)
class Step:
    """All that one step works with.

    Attributes:
        choices: the live options.
        net: the supernet.
        batches: `weights` and `architecture`.
        lr: architecture learning rate.
        moving: False leaves the parameters (warm-up, or nothing left to decide).
        clock: where the search is.
        generator: the stream of the method's own draws.
        n_architecture: examples of the architecture split.
    """

    choices: Simplices
    net: Supernet
    batches: Mapping[str, Batch]
    lr: float
    moving: bool
    clock: Clock
    generator: torch.Generator
    n_architecture: int


@dataclass(frozen=True)
class Rule:
    """How parameters become gates and move.

    Attributes:
        name: the name the method is listed under.
        cite: whom to cite.
        config: settings.
        step: moves the parameters and leaves the weight gradient in the network's parameters.
        weights: (live options, parameters) -> what the decision is taken by, shape (G,), summing to 1 per choice.
        gates: (live options, parameters) -> gates of the expected network, shape (G,); draws nothing.
        partial: K; one in K channels goes through the options during the search.
        extra: parameters beside the G logits of the options, behind them.
    """

    name: str
    cite: str
    config: AlphaConfig
    step: Callable[[Logits, Step], tuple[Logits, Info]]
    weights: Callable[[Simplices, Tensor], Tensor] = Simplices.softmax
    gates: Callable[[Simplices, Tensor], Tensor] = Simplices.softmax
    partial: int = 1
    extra: int = 0


@dataclass(frozen=True)
class MixtureState:
    """Beliefs: parameters `a`, Adam's moments `m` `v` `t`, the live mask."""

    a: Tensor
    m: Tensor
    v: Tensor
    t: Tensor
    live: Tensor
    lr: float
    """Architecture learning rate in force."""
    n_architecture: int
    """Examples of the architecture split."""
    partial: int = 1
    """K: one in K channels goes through the options."""
    limits: Any = None
    """What must be kept, as `Limits.to_json` gives it."""
    decided: tuple[Any, ...] = ()
    """Weights of all options when the search ended, one row per choice; empty before."""


class Mixture:
    """A method made of a rule.

    Args:
        space: choices that pick one option each.
        rule: how parameters become gates and move.
    """

    splits = ("weights", "architecture")
    state_type = MixtureState

    def __init__(self, space: Space, rule: Rule) -> None:
        self.space, self.rule = space, rule
        self.name, self.cite, self.config = rule.name, rule.cite, rule.config

    def init(self, setting: Setting, *, streams: Streams) -> MixtureState:
        """Return nearly flat beliefs."""
        n = self.space.n_options + self.rule.extra
        return MixtureState(
            **vars(fresh_logits(n, generator=streams["beliefs"], device=setting.device)),
            live=open_options(self.space, setting.limits),
            lr=default_lr(self.config, setting.steps_per_epoch),
            n_architecture=setting.n_examples["architecture"],
            partial=self.rule.partial,
            limits=setting.limits.to_json() if setting.limits else None,
        )

    def gates(self, state: MixtureState) -> Tensor:
        """Return the gates of the expected network, shape (1, 1, G)."""
        return self.rule.gates(self._choices(state), state.a).view(1, 1, -1)

    def step(
        self,
        state: MixtureState,
        net: Supernet,
        batches: Mapping[str, Batch],
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[MixtureState, Info]:
        """Return moved parameters."""
        choices = self._choices(state)
        moving = not choices.settled and not warming(self.config, clock)
        at = Step(choices, net, batches, state.lr, moving, clock, streams["gates"], state.n_architecture)
        logits, info = self.rule.step(Logits(state.a, state.m, state.v, state.t), at)
        return replace(state, **vars(logits)), info

    def round_steps(self, steps_per_pass: int) -> int:
        """Return the steps between two boundaries: one epoch."""
        return steps_per_pass

    def boundary(
        self,
        state: MixtureState,
        net: Supernet,
        data: Mapping[str, Split],
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[MixtureState, Info]:
        """Return the state as it is: the decision falls at the end."""
        return state, belief_record(self.space, self._weights(state), state.live)

    def finished(self, state: MixtureState) -> bool:
        """Return whether the decision has been taken."""
        return bool(state.decided)

    def conclude(self, state: MixtureState) -> MixtureState:
        """Return the state with the largest weights that keep the limits alone live, all channels through them."""
        if state.decided:
            return state
        weights = self._weights(state)
        live = argmax_live(self.space, weights, state.live, state.limits)
        return replace(state, live=live, partial=1, decided=tuple(rows(self.space, weights)))

    def examine(
        self, state: MixtureState, net: Supernet, data: Mapping[str, Split], *, streams: Streams, clock: Clock
    ) -> MixtureState:
        """Return the state as it is."""
        return state

    def posterior(self, state: MixtureState) -> ArchitecturePosterior:
        """Return the product of the weights, relative weights after so many steps."""
        return product(self.space, state.decided or rows(self.space, self._weights(state)), state.limits)

    def summary(self, state: MixtureState) -> Info:
        """Return nothing beside the posterior."""
        return {}

    def _choices(self, state: MixtureState) -> Simplices:
        return simplices(self.space, state.live, state.a.device)

    def _weights(self, state: MixtureState) -> Tensor:
        return self.rule.weights(self._choices(state), state.a)
