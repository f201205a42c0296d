"""DARTS, first order: mixing weights of each edge are a softmax; the largest wins.

Reference: Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, as NAS-Bench-201 runs it
(`none` takes part in the argmax).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayesarch.data import Batch, Split
from bayesarch.engine import Clock, Info, Setting
from bayesarch.functional import Streams
from bayesarch.methods.bilevel import AlphaConfig, Logits, bilevel_step, default_lr, fresh_logits
from bayesarch.methods.single import argmax_live, belief_record, rows, simplices
from bayesarch.nets import Supernet
from bayesarch.posteriors import ArchitecturePosterior, MeanField
from bayesarch.spaces import Space

__all__ = ["DARTS", "DARTSConfig", "DARTSState"]


class DARTSConfig(AlphaConfig):
    """Settings of first-order DARTS."""


@dataclass(frozen=True)
class DARTSState:
    """Beliefs: logits `a`, Adam's moments `m` `v` `t`, the live mask."""

    a: Tensor
    m: Tensor
    v: Tensor
    t: Tensor
    live: Tensor
    lr: float
    """Architecture learning rate in force."""
    decided: tuple[Any, ...] = ()
    """Softmax weights of all options when the search ended, one row per choice; empty before."""


class DARTS:
    """Differentiable architecture search, first order.

    Args:
        space: choices that pick one option each.
        config: settings.
    """

    name = "darts"
    splits = ("weights", "architecture")
    cite = "Liu, Simonyan and Yang, DARTS: Differentiable Architecture Search, ICLR 2019"
    state_type = DARTSState

    def __init__(self, space: Space, config: DARTSConfig | None = None) -> None:
        self.space, self.config = space, config or DARTSConfig()

    def init(self, setting: Setting, *, streams: Streams) -> DARTSState:
        """Return nearly flat beliefs."""
        logits = fresh_logits(self.space.n_options, generator=streams["beliefs"], device=setting.device)
        live = torch.ones(self.space.n_options, dtype=torch.bool)
        return DARTSState(**vars(logits), live=live, lr=default_lr(self.config, setting.steps_per_epoch))

    def gates(self, state: DARTSState) -> Tensor:
        """Return the softmax weights, shape (1, 1, G)."""
        return self._weights(state).view(1, 1, -1)

    def step(
        self,
        state: DARTSState,
        net: Supernet,
        batches: Mapping[str, Batch],
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[DARTSState, Info]:
        """Return moved logits."""
        choices = simplices(self.space, state.live, state.a.device)
        logits, info = bilevel_step(
            Logits(state.a, state.m, state.v, state.t),
            choices.softmax,
            net,
            batches,
            config=self.config,
            lr=state.lr,
            moving=not choices.settled and clock.epoch >= self.config.warmup_epochs,
        )
        return replace(state, **vars(logits)), info

    def round_steps(self, steps_per_pass: int) -> int:
        """Return the steps between two boundaries: one epoch."""
        return steps_per_pass

    def boundary(
        self,
        state: DARTSState,
        net: Supernet,
        data: Mapping[str, Split],
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[DARTSState, Info]:
        """Return the state as it is: DARTS decides at the end."""
        return state, belief_record(self.space, self._weights(state), state.live)

    def finished(self, state: DARTSState) -> bool:
        """Return whether the argmax has been taken."""
        return bool(state.decided)

    def conclude(self, state: DARTSState) -> DARTSState:
        """Return the state with the largest weight of each choice alone live."""
        weights = self._weights(state)
        live = argmax_live(self.space, weights, state.live)
        return replace(state, live=live, decided=tuple(rows(self.space, weights)))

    def examine(self, state: DARTSState, net: Supernet, data: Mapping[str, Split], *, streams: Streams) -> DARTSState:
        """Return the state as it is."""
        return state

    def posterior(self, state: DARTSState) -> ArchitecturePosterior:
        """Return the product of the softmax weights, relative weights after so many steps."""
        return MeanField(self.space, state.decided or rows(self.space, self._weights(state)))

    def summary(self, state: DARTSState) -> Info:
        """Return nothing beside the posterior."""
        return {}

    def _weights(self, state: DARTSState) -> Tensor:
        return simplices(self.space, state.live, state.a.device).softmax(state.a)
