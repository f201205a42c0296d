"""DrNAS, one-shot: mixing weights of each edge are a Dirichlet draw; the largest concentration wins.

Reference: Chen et al., "DrNAS: Dirichlet Neural Architecture Search", ICLR 2021; settings of its NAS-Bench-201
search. This is the smallest complete method: copy it to add your own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bayesarch.data import Batch, Split
from bayesarch.engine import Clock, Info, Setting
from bayesarch.functional import Streams, concentration
from bayesarch.methods.bilevel import DirichletConfig, Logits, bilevel_step, default_lr, fresh_logits, warming
from bayesarch.methods.single import argmax_live, belief_record, open_options, product, rows, simplices
from bayesarch.nets import Supernet
from bayesarch.posteriors import ArchitecturePosterior
from bayesarch.spaces import Space

__all__ = ["DrNAS", "DrNASConfig", "DrNASState"]


class DrNASConfig(DirichletConfig):
    """Settings of DrNAS."""


@dataclass(frozen=True)
class DrNASState:
    """Beliefs: free parameters `a` with concentration elu(a) + 1, Adam's moments `m` `v` `t`, the live mask."""

    a: Tensor
    m: Tensor
    v: Tensor
    t: Tensor
    live: Tensor
    lr: float
    """Architecture learning rate in force."""
    limits: Any = None
    """What must be kept, as `Limits.to_json` gives it."""
    decided: tuple[Any, ...] = ()
    """Dirichlet means of all options when the search ended, one row per choice; empty before."""


class DrNAS:
    """Dirichlet architecture search.

    Args:
        space: choices that pick one option each.
        config: settings.
    """

    name = "drnas"
    splits = ("weights", "architecture")
    cite = "Chen et al., DrNAS: Dirichlet Neural Architecture Search, ICLR 2021"
    state_type = DrNASState

    def __init__(self, space: Space, config: DrNASConfig | None = None) -> None:
        self.space, self.config = space, (config or DrNASConfig()).anchored()

    def init(self, setting: Setting, *, streams: Streams) -> DrNASState:
        """Return nearly flat beliefs."""
        logits = fresh_logits(self.space.n_options, generator=streams["beliefs"], device=setting.device)
        return DrNASState(
            **vars(logits),
            live=open_options(self.space, setting.limits),
            lr=default_lr(self.config, setting.steps_per_epoch),
            limits=setting.limits.to_json() if setting.limits else None,
        )

    def gates(self, state: DrNASState) -> Tensor:
        """Return the Dirichlet means, shape (1, 1, G)."""
        return self._means(state).view(1, 1, -1)

    def step(
        self,
        state: DrNASState,
        net: Supernet,
        batches: Mapping[str, Batch],
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[DrNASState, Info]:
        """Return moved concentrations; one draw per pass, shared by all cells."""
        choices = simplices(self.space, state.live, state.a.device)
        logits, info = bilevel_step(
            Logits(state.a, state.m, state.v, state.t),
            lambda a: choices.draw(concentration(a), generator=streams["gates"]),
            net,
            batches,
            config=self.config,
            lr=state.lr,
            moving=not choices.settled and not warming(self.config, clock),
            penalty_fn=lambda a: self.config.penalty(choices, a),
        )
        return replace(state, **vars(logits)), info

    def round_steps(self, steps_per_pass: int) -> int:
        """Return the steps between two boundaries: one epoch."""
        return steps_per_pass

    def boundary(
        self,
        state: DrNASState,
        net: Supernet,
        data: Mapping[str, Split],
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[DrNASState, Info]:
        """Return the state as it is: DrNAS decides at the end."""
        return state, belief_record(self.space, self._means(state), state.live)

    def finished(self, state: DrNASState) -> bool:
        """Return whether the argmax has been taken."""
        return bool(state.decided)

    def conclude(self, state: DrNASState) -> DrNASState:
        """Return the state with the largest means that keep the limits alone live."""
        if state.decided:
            return state
        means = self._means(state)
        live = argmax_live(self.space, means, state.live, state.limits)
        return replace(state, live=live, decided=tuple(rows(self.space, means)))

    def examine(
        self, state: DrNASState, net: Supernet, data: Mapping[str, Split], *, streams: Streams, clock: Clock
    ) -> DrNASState:
        """Return the state as it is."""
        return state

    def posterior(self, state: DrNASState) -> ArchitecturePosterior:
        """Return the product of the choices' Dirichlet means, relative weights after so many steps."""
        return product(self.space, state.decided or rows(self.space, self._means(state)), state.limits)

    def summary(self, state: DrNASState) -> Info:
        """Return nothing beside the posterior."""
        return {}

    def _means(self, state: DrNASState) -> Tensor:
        return simplices(self.space, state.live, state.a.device).mean(concentration(state.a))
