"""Random search with shared weights: a supernet trained one random path at a time, then random candidates ranked.

References: Li and Talwalkar, "Random Search and Reproducibility for Neural Architecture Search" (RSPS), UAI 2019; Guo
et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", ECCV 2020. Each step draws one option
per choice uniformly and computes only those. When the epochs are over, candidates drawn uniformly are scored with the
weights they inherit, norms on batch statistics, on the architecture split; the lowest loss wins.

The posterior is over the candidates, p ~ exp(-n (loss - lowest) / T): uniform prior, inherited weights taken for the
best. After every epoch a few candidates are tried against the best so far, so that there is an answer at any time.
Where the time is limited, it ends the ranking too: as many candidates as there is time for, the best so far first.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from bayesarch.config import Config
from bayesarch.data import Batch, Split
from bayesarch.engine import Clock, Info, Setting, batch_statistics, score
from bayesarch.errors import ConfigError
from bayesarch.functional import Streams
from bayesarch.methods.bilevel import weights_pass
from bayesarch.methods.single import argmax_live, live_table, open_options, product, rows, simplices
from bayesarch.nets import Supernet
from bayesarch.posteriors import ArchitecturePosterior, Listed, best_connected
from bayesarch.spaces import Architecture, Limits, Picks, Space

__all__ = ["RandomSearch", "RandomSearchConfig", "RandomSearchState", "ranked_images"]

TRIES = 10_000
"""Draws after which the limits are said to leave too little to sample from."""


class RandomSearchConfig(Config):
    """Settings of random search."""

    candidates: int = Field(default=100, ge=1)
    """Architectures ranked when the epochs are over."""
    tried_per_epoch: int = Field(default=2, ge=0)
    """Architectures tried against the best so far after every epoch; 0: there is no answer before the end."""
    rank_batches: int | None = Field(default=8, ge=1)
    """Batches (of four times the batch size) of the architecture split each candidate is scored on; null: all."""
    temperature: float = Field(default=1.0, gt=0)
    """T of the weights over candidates, exp(-n (loss - lowest) / T), n the size of the architecture split."""


def ranked_images(config: RandomSearchConfig, n_architecture: int, batch_size: int) -> int:
    """Return how many images go forward while the candidates are ranked."""
    batches = config.rank_batches
    each = n_architecture if batches is None else min(n_architecture, 4 * batch_size * batches)
    return config.candidates * each


@dataclass(frozen=True)
class RandomSearchState:
    """Beliefs: which candidates were ranked, and how they did."""

    live: Tensor
    expected: Tensor
    """Gates of the expected network, shape (G,): one-hot for the best so far, equal weights before there is one."""
    n_architecture: int
    batch_size: int
    limits: Any = None
    """What must be kept, as `Limits.to_json` gives it."""
    ranked: tuple[Any, ...] = ()
    """[picked option per choice, mean loss] of each candidate."""
    left_out: int = 0
    """Candidates for which there was no time."""
    done: bool = False


class RandomSearch:
    """Single-path supernet, random candidates.

    Args:
        space: choices that pick one option each.
        config: settings.
    """

    name = "random"
    splits = ("weights",)
    cite = "Li and Talwalkar, Random Search and Reproducibility for Neural Architecture Search, UAI 2019"
    state_type = RandomSearchState

    def __init__(self, space: Space, config: RandomSearchConfig | None = None) -> None:
        self.space, self.config = space, config or RandomSearchConfig()

    def init(self, setting: Setting, *, streams: Streams) -> RandomSearchState:
        """Return no beliefs: everything within the limits is equally good."""
        live = open_options(self.space, setting.limits)
        choices = simplices(self.space, live, setting.device)
        return RandomSearchState(
            live=live,
            expected=choices.softmax(torch.zeros(self.space.n_options, device=setting.device)),
            n_architecture=setting.n_examples["architecture"],
            batch_size=setting.batch_size,
            limits=setting.limits.to_json() if setting.limits else None,
        )

    def gates(self, state: RandomSearchState) -> Tensor:
        """Return one-hot gates of the best so far, or equal weights before there is one, shape (1, 1, G)."""
        return state.expected.view(1, 1, -1)

    def step(
        self,
        state: RandomSearchState,
        net: Supernet,
        batches: Mapping[str, Batch],
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[RandomSearchState, Info]:
        """Return the state as it is; one random path is trained."""
        arch = next(self._draws(state, streams["gates"]))
        gates = net.one_hot(arch)
        return state, weights_pass(net, batches["weights"], gates.view(-1), frozenset(arch.columns))

    def round_steps(self, steps_per_pass: int) -> int:
        """Return the steps between two boundaries: one epoch."""
        return steps_per_pass

    def boundary(
        self,
        state: RandomSearchState,
        net: Supernet,
        data: Mapping[str, Split],
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[RandomSearchState, Info]:
        """Return the state after trying a few candidates, or, when the search ends here, after ranking all of them."""
        if state.done:
            return state, {}
        timed = clock.gone() > 0
        best = [best_connected(self.posterior(state))] if state.ranked and (timed or not clock.last) else []
        draws = self._draws(state, streams["gates"])
        fresh = [next(draws) for _ in range(self.config.candidates if clock.last else self.config.tried_per_epoch)]
        asked, ranked = list(dict.fromkeys([*best, *fresh])), list[Any]()
        for entry in self._ranked(state, net, data["architecture"], asked):
            ranked.append(entry)
            if clock.gone() >= 1:
                break
        state = replace(state, ranked=tuple(ranked), left_out=len(asked) - len(ranked))
        if ranked:
            state = replace(state, expected=net.one_hot(best_connected(self.posterior(state))).view(-1))
        return (self.conclude(state) if clock.last else state), {"tried": len(ranked)}

    def last_passes(self, state: RandomSearchState) -> float:
        """Return how many passes over the architecture split the ranking makes."""
        return ranked_images(self.config, state.n_architecture, state.batch_size) / state.n_architecture

    def finished(self, state: RandomSearchState) -> bool:
        """Return whether the candidates have been ranked."""
        return state.done

    def conclude(self, state: RandomSearchState) -> RandomSearchState:
        """Return the state with the best candidate alone live; with the cheapest answer where none was tried."""
        if state.done:
            return state
        if state.ranked:
            live = torch.zeros_like(state.live)
            live[list(best_connected(self.posterior(state)).columns)] = True
        else:
            live = argmax_live(self.space, state.expected, state.live, state.limits)
        return replace(state, live=live, expected=live.to(state.expected), done=True)

    def examine(
        self, state: RandomSearchState, net: Supernet, data: Mapping[str, Split], *, streams: Streams, clock: Clock
    ) -> RandomSearchState:
        """Return the state as it is."""
        return state

    def posterior(self, state: RandomSearchState) -> ArchitecturePosterior:
        """Return the weights over ranked candidates; before there are any, equal weights of everything."""
        if not state.ranked:
            return product(self.space, rows(self.space, state.expected), state.limits)
        lowest = min(loss for _, loss in state.ranked)
        scale = state.n_architecture / self.config.temperature
        return Listed(
            [
                (Architecture(self.space, tuple((i,) for i in picks)), math.exp(-scale * (loss - lowest)))
                for picks, loss in state.ranked
            ],
            kind="candidates",
        )

    def summary(self, state: RandomSearchState) -> Info:
        """Return how many candidates were ranked."""
        said: dict[str, Any] = {"candidates": len(state.ranked)}
        if state.left_out:
            said["warnings"] = [f"there was time to rank {len(state.ranked)} candidates of {self.config.candidates}"]
        return said

    def _draws(self, state: RandomSearchState, generator: torch.Generator) -> Iterator[Architecture]:
        """Yield architectures drawn uniformly from what is live and keeps the limits.

        Raises:
            ConfigError: if so many draws fail that the limits leave too little to sample from.
        """
        limits, table = Limits.from_json(state.limits), live_table(self.space, state.live)
        for _ in range(TRIES):
            shares = torch.rand(len(table), generator=generator, device=generator.device).tolist()
            order = [0.0] * len(table)
            if self.space.entering is not None:
                order = torch.rand(len(table), generator=generator, device=generator.device).tolist()
            arch = Architecture(self.space, self._uniform(table, shares, order))
            if limits.allow(self.space, arch.picks):
                yield arch
        raise ConfigError(
            f"random search drew {TRIES} architectures and too few kept the limits; loosen them or use another method"
        )

    def _uniform(self, table: list[list[int]], shares: list[float], order: list[float]) -> Picks:
        """Return one live option per choice; where nodes keep a number of edges, on that many drawn at random."""
        keep, choices = self.space.entering, self.space.choices
        empty: set[int] = set()
        if keep is not None:
            nodes: dict[tuple[str, str | None], list[int]] = {}
            for position, choice in enumerate(choices):
                nodes.setdefault((choice.cell, choice.target), []).append(position)
            for members in nodes.values():
                empty |= set(sorted(members, key=lambda p: order[p])[keep:])
        picks = []
        for position, (choice, row, share) in enumerate(zip(choices, table, shares, strict=True)):
            real = [i for i in row if keep is None or i != choice.zero]
            picks.append(() if position in empty or not real else (real[int(share * len(real))],))
        return tuple(picks)

    def _ranked(
        self, state: RandomSearchState, net: Supernet, split: Split, candidates: list[Architecture]
    ) -> Iterator[list[Any]]:
        """Yield [picks, mean loss] of each candidate with the weights it inherits."""
        with batch_statistics(net):
            for arch in candidates:
                gates, active = net.one_hot(arch), frozenset(arch.columns)
                loss = score(
                    partial(net, gates=gates, active=active),
                    split,
                    batch_size=4 * state.batch_size,
                    limit=self.config.rank_batches,
                ).loss
                yield [[arch.single(position) for position in range(len(arch.picks))], loss]
