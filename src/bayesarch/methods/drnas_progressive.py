"""DrNAS, progressive: stages of ever more channels and ever fewer options.

Reference: Chen et al., "DrNAS: Dirichlet Neural Architecture Search", ICLR 2021, section 3.4, and its NAS-Bench-201
script: two stages of equal length, one in K = 4 and then one in 2 channels through the options, all options and then
the best three of each edge; concentrations rest for the first fifth of each stage; what survives keeps its
concentration and is widened by copies of channels, momentum included.

When the search ends all channels go through the options that were found (see `pcdarts.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bayesarch.data import Batch, Split
from bayesarch.engine import Clock, Info, Setting
from bayesarch.functional import Simplices, Streams, concentration
from bayesarch.methods.bilevel import DirichletConfig, Logits, bilevel_step, default_lr, fresh_logits, rest, warming
from bayesarch.methods.single import argmax_live, belief_record, open_options, product, rows, simplices
from bayesarch.nets import Supernet
from bayesarch.posteriors import ArchitecturePosterior
from bayesarch.spaces import Limits, Space

__all__ = ["DrNASProgressive", "DrNASProgressiveConfig", "DrNASProgressiveState"]


class DrNASProgressiveConfig(DirichletConfig):
    """Settings of progressive DrNAS."""

    partials: tuple[int, ...] = Field(default=(4, 2), min_length=1)
    """K of each stage: one in K channels goes through the options; falling."""
    keep: tuple[int, ...] = Field(default=(5, 3), min_length=1)
    """Options of each edge at the start of each stage, at most."""
    resting_share: float = Field(default=0.2, ge=0, le=1)
    """Share of each stage in which only weights are trained."""

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        falling = all(b < a for a, b in zip(self.partials, self.partials[1:], strict=False))
        if len(self.partials) != len(self.keep) or not falling or min(*self.partials, *self.keep) < 1:
            raise ValueError("partials and keep name one number >= 1 per stage, and partials fall")
        return self


@dataclass(frozen=True)
class DrNASProgressiveState:
    """Beliefs: free parameters `a` with concentration elu(a) + 1, Adam's moments `m` `v` `t`, the live mask."""

    a: Tensor
    m: Tensor
    v: Tensor
    t: Tensor
    live: Tensor
    lr: float
    """Architecture learning rate in force."""
    partial: int
    """K: one in K channels goes through the options."""
    stage: int = 0
    limits: Any = None
    """What must be kept, as `Limits.to_json` gives it."""
    decided: tuple[Any, ...] = ()
    """Dirichlet means of all options when the search ended, one row per choice; empty before."""


class DrNASProgressive:
    """Dirichlet architecture search in stages.

    Args:
        space: choices that pick one option each.
        config: settings.
    """

    name = "drnas-progressive"
    splits = ("weights", "architecture")
    cite = "Chen et al., DrNAS: Dirichlet Neural Architecture Search, ICLR 2021"
    state_type = DrNASProgressiveState

    def __init__(self, space: Space, config: DrNASProgressiveConfig | None = None) -> None:
        self.space, self.config = space, (config or DrNASProgressiveConfig()).anchored()

    def init(self, setting: Setting, *, streams: Streams) -> DrNASProgressiveState:
        """Return nearly flat beliefs."""
        logits = fresh_logits(self.space.n_options, generator=streams["beliefs"], device=setting.device)
        limits = setting.limits.to_json() if setting.limits else None
        state = DrNASProgressiveState(
            **vars(logits),
            live=open_options(self.space, setting.limits),
            lr=default_lr(self.config, setting.steps_per_epoch),
            partial=self.config.partials[0],
            limits=limits,
        )
        return self._at_stage(state, 0)

    def gates(self, state: DrNASProgressiveState) -> Tensor:
        """Return the Dirichlet means, shape (1, 1, G)."""
        return self._means(state).view(1, 1, -1)

    def step(
        self,
        state: DrNASProgressiveState,
        net: Supernet,
        batches: Mapping[str, Batch],
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[DrNASProgressiveState, Info]:
        """Return moved concentrations; one draw per pass, shared by all cells."""
        choices = self._choices(state)
        length = clock.epochs / len(self.config.partials)
        rested = clock.reached() - state.stage * length >= rest(self.config.resting_share, length)
        logits, info = bilevel_step(
            Logits(state.a, state.m, state.v, state.t),
            lambda a: choices.draw(concentration(a), generator=streams["gates"]),
            net,
            batches,
            config=self.config,
            lr=state.lr,
            moving=not choices.settled and rested and not warming(self.config, clock),
            penalty_fn=lambda a: self.config.penalty(choices, a),
        )
        return replace(state, **vars(logits)), info

    def round_steps(self, steps_per_pass: int) -> int:
        """Return the steps between two boundaries: one epoch."""
        return steps_per_pass

    def boundary(
        self,
        state: DrNASProgressiveState,
        net: Supernet,
        data: Mapping[str, Split],
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[DrNASProgressiveState, Info]:
        """Return the state, at the end of a stage with fewer options and more channels through them."""
        info = belief_record(self.space, self._means(state), state.live)
        following = state.stage + 1
        due = (
            following < len(self.config.partials)
            and not clock.last
            and clock.reached() * len(self.config.partials) >= following * clock.epochs
        )
        return (self._at_stage(state, following) if due and not state.decided else state), info

    def finished(self, state: DrNASProgressiveState) -> bool:
        """Return whether the argmax has been taken."""
        return bool(state.decided)

    def conclude(self, state: DrNASProgressiveState) -> DrNASProgressiveState:
        """Return the state with the largest means that keep the limits alone live, all channels through them."""
        if state.decided:
            return state
        means = self._means(state)
        live = argmax_live(self.space, means, state.live, state.limits)
        return replace(state, live=live, partial=1, decided=tuple(rows(self.space, means)))

    def examine(
        self, state: DrNASProgressiveState, net: Supernet, data: Mapping[str, Split], *, streams: Streams, clock: Clock
    ) -> DrNASProgressiveState:
        """Return the state as it is."""
        return state

    def posterior(self, state: DrNASProgressiveState) -> ArchitecturePosterior:
        """Return the product of the choices' Dirichlet means, relative weights after so many steps."""
        return product(self.space, state.decided or rows(self.space, self._means(state)), state.limits)

    def summary(self, state: DrNASProgressiveState) -> Info:
        """Return nothing beside the posterior."""
        return {}

    def _at_stage(self, state: DrNASProgressiveState, stage: int) -> DrNASProgressiveState:
        """Return the state at the start of a stage: the best options of each choice, others at 0 and gone."""
        live, limits, values = state.live.clone(), Limits.from_json(state.limits), state.a.tolist()
        for position in range(len(self.space.choices)):
            columns = self.space.columns(position)
            # where nodes keep some edges alone, whether an edge is there is decided at the end
            spared = None if self.space.entering is None else self.space.choices[position].zero
            ranked = sorted(
                (g for i, g in enumerate(columns) if live[g] and i != spared), key=lambda g: (values[g], -g)
            )
            for g in ranked:
                left = live.clone()
                left[g] = False
                crowded = sum(bool(live[h]) for h in ranked) > self.config.keep[stage]
                if crowded and limits.possible(self.space, left.tolist()):
                    live = left
        a = torch.where(live.to(state.a.device), state.a, 0.0)
        return replace(state, a=a, live=live, stage=stage, partial=self.config.partials[stage])

    def _choices(self, state: DrNASProgressiveState) -> Simplices:
        return simplices(self.space, state.live, state.a.device)

    def _means(self, state: DrNASProgressiveState) -> Tensor:
        return self._choices(state).mean(concentration(state.a))
