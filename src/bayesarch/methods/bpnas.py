"""BPNAS: Dirichlet mixing weights, and a supernet pruned one option at a time until each edge has one.

Reference: BPNAS, poster at the ICML 2024 workshop "Differentiable Almost Everything". At the end of an epoch, if some
edge's weights have moved at least delta from uniform, the option of the smallest parameter anywhere is removed for
good and all parameters start again at zero; network weights are kept. What the poster leaves open, and how it is
resolved here (each is a setting):

    test on the mean of the Dirichlet, not on a draw: a draw at the flat start is .34 away from uniform in the median
    (K = 5), so a draw tests noise; the edge whose test fires is any edge
    the argmin is global over edges that have at least two options left (the prior forbids empty edges)
    reset is of all edges, Adam's moments included, so that parameters stay comparable across edges
    edges on no path from input to output get no gradient and would keep the printed loop from ending: they are
    settled at once on the zero option, or the cheapest, and called inactive
    the prior's cost c per option does not enter the printed algorithm: it is logged (what c each pruning implies),
    and may be set to refuse prunings that cost more

Ours, and off by default: a prior exp(-c cost(option)) that charges options for their MACs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bayesarch.data import Batch, Split
from bayesarch.engine import Clock, Info, Setting, batch_statistics, conditional_losses, score
from bayesarch.functional import Streams, concentration
from bayesarch.functional.pruning import fires, implied_cost, log_joint, prune_order
from bayesarch.methods.bilevel import DirichletConfig, Logits, bilevel_step, default_lr, fresh_logits, warming
from bayesarch.methods.single import (
    allowed,
    argmax_live,
    belief_record,
    found,
    live_table,
    open_options,
    product,
    reachable,
    rows,
    settle_inactive,
    simplices,
)
from bayesarch.nets import Supernet
from bayesarch.posteriors import ArchitecturePosterior, ConditionalsAtMode
from bayesarch.spaces import Architecture, Limits, Space

__all__ = ["BPNAS", "BPNASConfig", "BPNASState"]


class BPNASConfig(DirichletConfig):
    """Settings of BPNAS."""

    delta: float = Field(default=0.05, gt=0)
    """Distance of an edge's weights from uniform at which the test fires."""
    delta_scale: Literal["fixed", "relative"] = "fixed"
    """`fixed` as printed; `relative` to the largest distance possible, sqrt(1 - 1/K)."""
    test_on: Literal["mean", "sample"] = "mean"
    """The Dirichlet's mean, or one draw of it (an ablation: fires from noise)."""
    test_every: int | None = Field(default=None, ge=1)
    """Steps between tests; null: one epoch. At most one option is pruned per test."""
    rank_by: Literal["parameter", "mean", "scaled_mean"] = "parameter"
    """What the argmin is over: the free parameter as printed, E[theta], or E[theta] times the edge's live options."""
    reset: Literal["all", "edge", "none"] = "all"
    """Which edges start again after a pruning."""
    prior_cost: float = Field(default=math.inf, gt=0)
    """c, nats per option: a pruning that raises n times the loss by more is refused and the next option tried."""
    cost_batches: int = Field(default=4, ge=0)
    """Batches (of four times the batch size) of the architecture split on which a pruning's cost is measured; 0: not
    measured."""
    keep_path: bool = False
    """Never prune the last path from input to output."""
    macs_prior: float = Field(default=0.0, ge=0)
    """Nats per million MACs of an option in the prior exp(-c cost(option)); 0: off (as published)."""
    reopen_steps: int = Field(default=20, ge=0)
    """Training steps of each option brought back to measure the conditionals; 0: conditionals are not measured."""
    temperature: float = Field(default=1.0, gt=0)
    """T of the conditionals, exp(-n (loss - lowest) / T), n the size of the architecture split."""

    @model_validator(mode="after")
    def _cost_is_measured(self) -> "BPNASConfig":
        if math.isfinite(self.prior_cost) and self.cost_batches == 0:
            raise ValueError("a finite prior_cost needs cost_batches >= 1, or no pruning's cost is known")
        return self


@dataclass(frozen=True)
class BPNASState:
    """Beliefs: free parameters `a` with concentration elu(a) + 1, Adam's moments, the live mask, what was pruned."""

    a: Tensor
    m: Tensor
    v: Tensor
    t: Tensor
    live: Tensor
    lr: float
    """Architecture learning rate in force."""
    n_architecture: int
    """Examples of the architecture split, the n of the likelihood."""
    batch_size: int
    prunings: tuple[Any, ...] = ()
    """One record per option removed: epoch, choice, option, fired_by (threshold, inactive, limits or cap), distance,
    cost."""
    limits: Any = None
    """What must be kept, as `Limits.to_json` gives it."""
    losses: tuple[Any, ...] = ()
    """Mean loss of each option given the rest of the found architecture (G,); empty before it is measured."""


class BPNAS:
    """Bayesian progressive architecture search.

    Args:
        space: choices that pick one option each.
        config: settings.
    """

    name = "bpnas"
    splits = ("weights", "architecture")
    cite = "BPNAS, ICML 2024 workshop Differentiable Almost Everything"
    state_type = BPNASState

    def __init__(self, space: Space, config: BPNASConfig | None = None) -> None:
        self.space, self.config = space, (config or BPNASConfig()).anchored()

    def init(self, setting: Setting, *, streams: Streams) -> BPNASState:
        """Return nearly flat beliefs over all options."""
        logits = fresh_logits(self.space.n_options, generator=streams["beliefs"], device=setting.device)
        return BPNASState(
            **vars(logits),
            live=open_options(self.space, setting.limits),
            limits=setting.limits.to_json() if setting.limits else None,
            lr=default_lr(self.config, setting.steps_per_epoch),
            n_architecture=setting.n_examples["architecture"],
            batch_size=setting.batch_size,
        )

    def gates(self, state: BPNASState) -> Tensor:
        """Return the Dirichlet means over live options, shape (1, 1, G)."""
        return self._means(state).view(1, 1, -1)

    def step(
        self,
        state: BPNASState,
        net: Supernet,
        batches: Mapping[str, Batch],
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[BPNASState, Info]:
        """Return moved concentrations."""
        choices = simplices(self.space, state.live, state.a.device)
        logits, info = bilevel_step(
            Logits(state.a, state.m, state.v, state.t),
            lambda a: choices.draw(concentration(a), generator=streams["gates"]),
            net,
            batches,
            config=self.config,
            lr=state.lr,
            moving=not choices.settled and not warming(self.config, clock),
            penalty_fn=self._penalty(state, net),
        )
        return replace(state, **vars(logits)), info

    def round_steps(self, steps_per_pass: int) -> int:
        """Return the steps between two tests."""
        return self.config.test_every or steps_per_pass

    def boundary(
        self,
        state: BPNASState,
        net: Supernet,
        data: Mapping[str, Split],
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[BPNASState, Info]:
        """Return the state after settling inactive edges and, if the test fires, pruning one option."""
        before, info = len(state.prunings), belief_record(self.space, self._means(state), state.live)
        if self.finished(state):
            return state, info
        state = self._within_limits(self._settle_inactive(state, net, clock), clock)
        loss = self._loss(state, net, data)
        state, info["distance"] = self._test(state, net, data, loss, streams=streams, clock=clock)
        state = self._within_limits(state, clock)
        info["prunings"] = list(state.prunings[before:])
        if loss is not None:
            info |= self._log_posterior(state, net, loss)
        return state, info

    def finished(self, state: BPNASState) -> bool:
        """Return whether every choice has one option."""
        return simplices(self.space, state.live, "cpu").settled

    def conclude(self, state: BPNASState) -> BPNASState:
        """Return the state with the argmax of every choice that the cap left open."""
        live = argmax_live(self.space, self._means(state), state.live, state.limits)
        return self._cut(state, live, "cap", None)

    def examine(
        self, state: BPNASState, net: Supernet, data: Mapping[str, Split], *, streams: Streams, clock: Clock
    ) -> BPNASState:
        """Return the state with the loss of every option given the rest of the found cell."""
        if self.config.reopen_steps == 0:
            return state
        mode = found(self.space, state.live)
        losses = conditional_losses(
            net,
            mode,
            data,
            among=self._neighbours(mode, Limits.from_json(state.limits)),
            streams=streams,
            steps_per_option=self.config.reopen_steps,
            batch_size=state.batch_size,
            late=lambda: clock.gone() >= 1,
        )
        return state if losses is None else replace(state, losses=tuple(losses.tolist()))

    def posterior(self, state: BPNASState) -> ArchitecturePosterior:
        """Return the conditionals at the found cell; before they are measured, the product of Dirichlet means."""
        if not state.losses:
            return product(self.space, rows(self.space, self._means(state)), state.limits)
        mode, limits = found(self.space, state.live), Limits.from_json(state.limits)
        losses = torch.tensor(state.losses, dtype=torch.float64)
        losses[~self._neighbours(mode, limits)] = math.inf
        table, gaps = [], []
        for position in range(len(self.space.choices)):
            row = losses[list(self.space.columns(position))]
            gap = state.n_architecture * (row - row.min())
            table.append(torch.softmax(-gap / self.config.temperature, 0).tolist())
            gaps.append(gap.tolist())
        return ConditionalsAtMode(mode, table, gaps=gaps, temperature=self.config.temperature)

    def _neighbours(self, mode: Architecture, limits: Limits) -> Tensor:
        """Return which options may stand in place of the picked one, the rest of `mode` as it is, shape (G,)."""
        return torch.tensor(
            [
                allowed(self.space, (*mode.picks[:position], (option,), *mode.picks[position + 1 :]), limits)
                for position, choice in enumerate(self.space.choices)
                for option in range(len(choice.options))
            ]
        )

    def summary(self, state: BPNASState) -> Info:
        """Return every pruning in order, and how many were fired by what."""
        counts = dict.fromkeys(("threshold", "inactive", "limits", "cap"), 0)
        for record in state.prunings:
            counts[record["fired_by"]] += 1
        decided = counts["threshold"] + counts["cap"]
        warnings = []
        if counts["cap"] * 10 > decided:
            warnings.append(
                f"the end of the search made {counts['cap']} of {decided} decisions, not the threshold: give it more "
                f"epochs or more time, or raise method.alpha_lr (now {state.lr:.3g})"
            )
        return {"prunings": list(state.prunings), "fired_by": counts, "warnings": warnings}

    def _means(self, state: BPNASState) -> Tensor:
        return simplices(self.space, state.live, state.a.device).mean(concentration(state.a))

    def _penalty(self, state: BPNASState, net: Supernet) -> Callable[[Tensor], Tensor]:
        """Return parameters -> anchor plus expected cost under the prior exp(-c MACs), nats per example."""
        choices = simplices(self.space, state.live, state.a.device)
        if self.config.macs_prior == 0:
            return lambda a: self.config.penalty(choices, a)
        charge = self.config.macs_prior * 1e-6 * net.option_macs.to(state.a) / state.n_architecture
        return lambda a: self.config.penalty(choices, a) + (choices.mean(concentration(a)) * charge).sum()

    def _within_limits(self, state: BPNASState, clock: Clock) -> BPNASState:
        """Return the state without options that no architecture within the limits can have any more."""
        return self._cut(state, reachable(self.space, state.live, state.limits), "limits", clock)

    def _cut(self, state: BPNASState, live: Tensor, fired_by: str, clock: Clock | None) -> BPNASState:
        """Return the state with the mask `live`, a record for each option that goes."""
        gone = (state.live & ~live).nonzero().flatten().tolist()
        records = tuple(self._record(g, clock, fired_by, None, None) for g in gone)
        return replace(state, live=live, prunings=state.prunings + records)

    def _settle_inactive(self, state: BPNASState, net: Supernet, clock: Clock) -> BPNASState:
        """Return the state with every choice on no path settled."""
        live = settle_inactive(self.space, state.live, net.option_macs.tolist(), state.limits)
        return self._cut(state, live, "inactive", clock)

    def _test(
        self,
        state: BPNASState,
        net: Supernet,
        data: Mapping[str, Split],
        loss: float | None,
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[BPNASState, float]:
        """Return the state after at most one pruning, and the largest distance from uniform."""
        choices = simplices(self.space, state.live, state.a.device)
        if choices.settled or warming(self.config, clock):
            return state, 0.0
        beta = concentration(state.a)
        if self.config.test_on == "sample":
            weights = choices.draw(beta, generator=streams["gates"])
        else:
            weights = choices.mean(beta)
        distances = choices.distance_to_uniform(weights).tolist()
        n_live = [len(group) for group in choices.live_columns]
        fired = fires(distances, n_live, self.config.delta, scale=self.config.delta_scale)
        if fired is None:
            return state, max(distances)
        for g in prune_order(self._scores(state), choices.live_columns):
            live = state.live.clone()
            live[g] = False
            if self.config.keep_path and not self.space.connected(live_table(self.space, live)):
                continue
            after = self._loss(replace(state, live=live), net, data)
            cost = None if loss is None or after is None else implied_cost(loss, after, state.n_architecture)
            if cost is None or cost < self.config.prior_cost + self._charge(net, g):
                record = self._record(g, clock, "threshold", distances[fired], cost)
                state = replace(state, live=live, prunings=(*state.prunings, record))
                return self._reset(state, g, streams), max(distances)
        return state, max(distances)

    def _scores(self, state: BPNASState) -> Tensor:
        """Return what the argmin is over, shape (G,)."""
        if self.config.rank_by == "parameter":
            return state.a
        means = self._means(state)
        if self.config.rank_by == "mean":
            return means
        counts = [sum(bool(state.live[g]) for g in self.space.columns(p)) for p in range(len(self.space.choices))]
        per_option = [n for n, choice in zip(counts, self.space.choices, strict=True) for _ in choice.options]
        return means * torch.tensor(per_option, device=means.device)

    def _reset(self, state: BPNASState, pruned: int, streams: Streams) -> BPNASState:
        """Return the state with parameters and Adam's moments started again, of all edges or the pruned one."""
        if self.config.reset == "none":
            return state
        fresh = fresh_logits(self.space.n_options, generator=streams["beliefs"], device=state.a.device)
        if self.config.reset == "all":
            return replace(state, **vars(fresh))
        mine = torch.zeros(self.space.n_options, dtype=torch.bool, device=state.a.device)
        for position in range(len(self.space.choices)):
            if pruned in self.space.columns(position):
                mine[list(self.space.columns(position))] = True
        return replace(
            state,
            a=torch.where(mine, fresh.a, state.a),
            m=torch.where(mine, fresh.m, state.m),
            v=torch.where(mine, fresh.v, state.v),
        )

    def _charge(self, net: Supernet, g: int) -> float:
        """Return what the MACs prior gains when option g goes, nats."""
        return self.config.macs_prior * 1e-6 * float(net.option_macs[g])

    def _loss(self, state: BPNASState, net: Supernet, data: Mapping[str, Split]) -> float | None:
        """Return the mean loss of the expected network on the architecture split, or None where it is not measured."""
        if self.config.cost_batches == 0:
            return None
        gates = self.gates(state)
        active = frozenset(state.live.nonzero().flatten().tolist())
        with batch_statistics(net):
            return score(
                lambda x: net(x, gates, active),
                data["architecture"],
                batch_size=4 * state.batch_size,
                limit=self.config.cost_batches,
            ).loss

    def _log_posterior(self, state: BPNASState, net: Supernet, loss: float) -> dict[str, float]:
        """Return the parts of the joint log posterior before this boundary's pruning, in nats.

        Where no c is set, the run's implied c is used: the smallest under which every pruning so far was a gain.
        """
        costs = [record["cost_nats"] for record in state.prunings if record["cost_nats"] is not None]
        implied = max([0.0, *costs])
        c = self.config.prior_cost if math.isfinite(self.config.prior_cost) else implied
        n_live = [len(row) for row in live_table(self.space, state.live)]
        macs = sum(self._charge(net, g) for g in state.live.nonzero().flatten().tolist())
        return {
            "log_likelihood": -state.n_architecture * loss,
            "log_joint": log_joint(loss, state.n_architecture, n_live, c) - macs,
            "implied_c": implied,
        }

    def _record(
        self, g: int, clock: Clock | None, fired_by: str, distance: float | None, cost: float | None
    ) -> dict[str, Any]:
        """Return what is kept of one pruning."""
        choice, _, option = self.space.labels[g].rpartition("/")
        return {
            "epoch": None if clock is None else clock.epoch + 1,
            "choice": choice,
            "option": option,
            "fired_by": fired_by,
            "distance": distance,
            "cost_nats": cost,
        }
