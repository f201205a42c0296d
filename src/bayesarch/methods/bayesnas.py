"""BayesNAS: switches under hierarchical automatic-relevance priors; what the evidence does not support is removed.

Reference: Zhou, Yang, Wang and Pan, "BayesNAS: A Bayesian Approach for Neural Architecture Search", ICML 2019.

    weights alone for a while, then rounds of
        training of weights and switches on the loss plus the penalty of the evidence bound
        recalibrated norms -> curvature (GGN diagonal) -> new variances -> removal, with all that depended on it

Every copy of a cell has switches of its own and shares variances with the others. The zero option's switch is a gate
in series with its edge's operations, at their output. What the paper and its code leave open, and how it is resolved
here (each is a setting): the dependency reaches from node to node, the update has all cross terms, curvature is the
exact GGN on many batches with norms in eval mode, and an option goes when the evidence for letting its *effective*
switch w_0 w_o vary is not positive, a rule without a scale. The paper's entropy rule is `rule: entropy`. Inclusion
probabilities are ours.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayesarch.data import Batch, Split
from bayesarch.engine import Clock, Curvature, Info, Setting, batch_loss, gate_curvature, recalibrate
from bayesarch.functional import Streams, ard
from bayesarch.methods.bayesnas_beliefs import BayesNASConfig, BayesNASState, gaussians, look_passes
from bayesarch.methods.masks import cut_to, mask_of, remaining, zeros_where_empty
from bayesarch.methods.several import prior_edges, series
from bayesarch.methods.single import argmax_live, live_table, open_gates, open_options, rows, within
from bayesarch.nets import Supernet
from bayesarch.posteriors import ArchitecturePosterior, Inclusion, Listed
from bayesarch.spaces import Architecture, Limits, Space

__all__ = ["BayesNAS", "BayesNASConfig", "BayesNASState"]


class BayesNAS:
    """Architecture search by the evidence of switches.

    Args:
        space: choices whose zero option, if any, is the gate of an edge.
        config: settings.
    """

    name = "bayesnas"
    splits = ("architecture", "weights")
    cite = "Zhou et al., BayesNAS: A Bayesian Approach for Neural Architecture Search, ICML 2019"
    state_type = BayesNASState

    def __init__(self, space: Space, config: BayesNASConfig | None = None) -> None:
        self.space, self.config = space, config or BayesNASConfig()
        self.edges = prior_edges(space)

    def init(self, setting: Setting, *, streams: Streams) -> BayesNASState:
        """Return all switches at 1 and all variances at their first value."""
        one = torch.ones(self.space.n_options, device=setting.device)
        w = one.expand(setting.n_copies, -1).clone()
        live = open_options(self.space, setting.limits) & self._selectable()
        return BayesNASState(
            w=w,
            velocity=torch.zeros_like(w),
            gamma=self.config.first_variance * one,
            weight=one.clone(),
            share=one.new_zeros(0),
            spread=torch.zeros_like(w),
            log_factor=torch.zeros_like(one),
            break_even=torch.zeros_like(one),
            lam=one.new_zeros(()),
            live=live,
            undecided=live.clone(),
            batch_size=setting.batch_size,
            look_passes=look_passes(self.config, setting),
            limits=setting.limits.to_json() if setting.limits else None,
        )

    def _selectable(self) -> Tensor:
        """Return which options can be picked, (G,): a zero option is picked only where exactly one has to be."""
        return torch.tensor([c.pick == "one" or i != c.zero for c in self.space.choices for i in range(len(c.options))])

    def gates(self, state: BayesNASState) -> Tensor:
        """Return the composed switches, shape (1, L, G); ones on what was found when all is decided."""
        if state.decided:
            return open_gates(state.live, state.w)
        return series(self.space, str(state.w.device)).compose(state.w).unsqueeze(0)

    def step(
        self,
        state: BayesNASState,
        net: Supernet,
        batches: Mapping[str, Batch],
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[BayesNASState, Info]:
        """Return moved switches; weights alone during warm-up and once everything is decided."""
        if state.decided or clock.reached() < self._warmup(clock):
            gates = self.gates(state)
            return state, _pass(net, batches["weights"], gates)
        used = [batches["architecture"], *([batches["weights"]] if self.config.train_on == "both" else [])]
        parts = series(self.space, str(state.w.device))
        leaf = state.w.detach().requires_grad_()
        info: dict[str, Tensor] = {}
        for batch in used:
            info = _pass(net, batch, parts.compose(leaf).unsqueeze(0), share=1.0 / len(used))
        assert leaf.grad is not None
        return self._moved(state, leaf.grad, net.occupancy, clock), info

    def _moved(self, state: BayesNASState, gradient: Tensor, present: Tensor, clock: Clock) -> BayesNASState:
        """Return the state after one step of the switches on loss and penalty."""
        config, terms = self.config, self._penalty(state)
        if config.penalised and config.step == "gradient":
            leaf = state.w.detach().requires_grad_()
            ard.penalty(terms, (leaf * present).square().sum(0)).backward()
            assert leaf.grad is not None
            gradient = gradient + leaf.grad
        lr = config.switch_lr or clock.weight_lr
        velocity = config.switch_momentum * state.velocity + gradient
        w = state.w - lr * velocity
        if config.penalised and config.step == "proximal":
            w = ard.proximal(w * present, terms, lr, before=state.w * present)
        return replace(state, w=torch.where(present, w, state.w), velocity=velocity)

    def _penalty(self, state: BayesNASState) -> ard.Penalty:
        """Return the penalty in force, lambda included."""
        return ard.Penalty(self._lambda(state) * state.weight, state.share if state.share.ndim == 2 else None)

    def _lambda(self, state: BayesNASState) -> Tensor:
        """Return lambda of each option and gate, shape (G,)."""
        gates, operations = self._lambdas(state)
        return torch.where(series(self.space, str(state.w.device)).is_gate, gates, operations)

    def _lambdas(self, state: BayesNASState) -> tuple[Tensor, Tensor]:
        """Return lambda of gates and of operations, scalars."""
        given = self.config.penalty_gates, self.config.penalty_operations
        gates, operations = (state.lam if value is None else torch.full_like(state.lam, value) for value in given)
        return gates, operations

    def _warmup(self, clock: Clock) -> int:
        """Return the epochs of the weights alone: at most half of all, or nothing would be learned of switches."""
        return min(self._epochs(self.config.warmup_steps, clock), clock.epochs // 2)

    def _epochs(self, steps: int, clock: Clock) -> int:
        """Return whole epochs that hold so many steps."""
        return math.ceil(steps / clock.steps_per_epoch)

    def round_steps(self, steps_per_pass: int) -> int:
        """Return the steps between two boundaries: one epoch."""
        return steps_per_pass

    def boundary(
        self,
        state: BayesNASState,
        net: Supernet,
        data: Mapping[str, Split],
        *,
        streams: Streams,
        clock: Clock,
    ) -> tuple[BayesNASState, Info]:
        """Return the state after an update of the variances and a removal, if one is due; at the end one always is."""
        since = clock.reached() - self._warmup(clock)
        due = clock.last or since >= (state.updates + 1) * self._epochs(self.config.round_steps, clock)
        starts = (
            not state.weighed and since >= 0 and None in (self.config.penalty_gates, self.config.penalty_operations)
        )
        if state.decided or not (due or starts):
            return state, self._record(state)
        until = 1.0 if clock.last else min(1.0, clock.gone() + 1 / (self.config.rounds + 2))
        seen = self.look(state, net, data, streams, late=lambda: clock.gone() >= until)
        present = net.occupancy
        state = self.weighed(state, seen, present)
        if due:
            state = self.removed(self.updated(state, seen, present), seen, present)
        return state, self._record(state)

    def look(
        self,
        state: BayesNASState,
        net: Supernet,
        data: Mapping[str, Split],
        streams: Streams,
        late: Callable[[], bool] = lambda: False,
    ) -> Curvature:
        """Return curvature and gradient on the architecture split, norms recalibrated to the gates in force."""
        gates, parts = self.gates(state), series(self.space, str(state.w.device))
        recalibrate(net, gates, data["weights"], batch_size=state.batch_size)
        return gate_curvature(
            net,
            gates,
            data["architecture"],
            pull=lambda jacobian: parts.pull(jacobian, state.w),
            mode=self.config.curvature,
            batch_size=state.batch_size,
            limit=self.config.curvature_batches,
            generator=streams["curvature"],
            late=late,
        )

    def weighed(self, state: BayesNASState, seen: Curvature, present: Tensor) -> BayesNASState:
        """Return the state with the lambda that `penalty_share` asks for."""
        even = ard.break_even(*self._asked(state, seen, present))
        operations = ~series(self.space, str(even.device)).is_gate
        return replace(state, lam=ard.relative_lambda(even[operations], self.config.penalty_share), weighed=True)

    def updated(self, state: BayesNASState, seen: Curvature, present: Tensor) -> BayesNASState:
        """Return the state with new variances and the penalty that belongs to them."""
        config = self.config
        h = torch.where(present, seen.h, 0.0) / self._lambda(state)
        squares = (state.w * present).square().sum(0)
        if config.update == "exact":
            gamma = ard.exact_update(state.gamma, squares, h, self.edges, config.dependency)
            terms = ard.penalty_of(gamma, h, self.edges, config.dependency)
        else:
            gamma = ard.published_update(state.gamma, squares, h, self.edges, config.dependency)
            terms = ard.published_penalty(gamma, h)
        share = state.share.new_zeros(0) if terms.share is None else terms.share
        state = replace(state, gamma=gamma, weight=terms.weight, share=share, updates=state.updates + 1)
        return replace(state, spread=ard.posterior_variance(h, self._variances(state)).sqrt())

    def _variances(self, state: BayesNASState) -> Tensor:
        """Return the prior variances in force, shape (G,): stored as such by the published update."""
        if self.config.update == "published":
            return state.gamma
        return ard.prior_variances(state.gamma, self.edges, self.config.dependency)

    def evidence(self, state: BayesNASState, seen: Curvature, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (support, log Bayes factor, lambda without support) of each option and, by its own switch, each gate.

        Shapes (G,).
        """
        b, h = self._asked(state, seen, present)
        lam = self._lambda(state)
        even = ard.break_even(b, h)
        return ard.support(b / lam, h / lam), ard.log_bayes_factor(b / lam, h / lam, self.config.slab), even

    def _asked(self, state: BayesNASState, seen: Curvature, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return (b, h) of the mean loss in the switch that decides, shapes (L, G)."""
        own, own_h, own_g = state.w, seen.h, seen.gradient
        if self.config.decide_on == "effective":
            parts = series(self.space, str(state.w.device))
            own = torch.where(parts.is_gate, own, parts.compose(state.w))
            own_h = torch.where(parts.is_gate, own_h, seen.gate_h)
            own_g = torch.where(parts.is_gate, own_g, seen.gate_gradient)
        h = torch.where(present, own_h, 0.0)
        return torch.where(present, ard.newton_optimum(own, own_h, own_g), 0.0), h

    def removed(self, state: BayesNASState, seen: Curvature, present: Tensor) -> BayesNASState:
        """Return the state without what the criterion, and with it the dependency, takes away."""
        support, factor, even = self.evidence(state, seen, present)
        s = self._variances(state)
        fails = support <= 0 if self.config.rule == "evidence" else s <= self.config.threshold
        score = (factor if self.config.rule == "evidence" else s.clamp(min=1e-30).log()).cpu().tolist()
        alive = state.live.to(factor.device) | series(self.space, str(factor.device)).is_gate
        state = replace(
            state,
            log_factor=torch.where(alive, factor, state.log_factor),
            break_even=torch.where(alive, even, state.break_even),
        )
        left = remaining(self.space, state.live, fails.cpu(), scores=score, rule=self.config.rule)
        records = [[state.updates, self.space.labels[g], why] for g, why in left.why.items()]
        state = replace(
            state,
            live=left.live,
            removed=(*state.removed, *records),
            kept_by_guard=state.kept_by_guard + left.guarded,
        )
        return self.conclude(state) if state.updates >= self.config.rounds else state

    def _operations(self) -> Tensor:
        return ~series(self.space, "cpu").is_gate

    def last_passes(self, state: BayesNASState) -> float:
        """Return how many passes over the architecture split a look at its curvature costs."""
        return state.look_passes

    def finished(self, state: BayesNASState) -> bool:
        """Return whether the last round has ended."""
        return state.decided

    def conclude(self, state: BayesNASState) -> BayesNASState:
        """Return the state with one option left where only one may be, and the limits kept."""
        if state.decided:
            return state
        open_, live = state.live, self._settled(state)
        gone = (state.live & ~live & self._operations()).nonzero().flatten().tolist()
        why = "limits" if state.limits else "single"
        records = [[state.updates, self.space.labels[g], why] for g in gone]
        return replace(state, live=live, decided=True, undecided=open_.clone(), removed=(*state.removed, *records))

    def _settled(self, state: BayesNASState) -> Tensor:
        """Return what is left where choices take one option, or budgets are to be kept: the most probable first.

        A choice that takes one takes its zero option only where no operation is left or the budgets want it.
        """
        live, kept = state.live, Limits.from_json(state.limits)
        rates, _ = self._rates(state)
        if state.limits:
            members = within(self._inclusion(state, live), kept)
            if members:
                return zeros_where_empty(self.space, mask_of(self.space, members[0][0].picks))
        several = torch.tensor([c.pick == "any" for c in self.space.choices for _ in c.options])
        if not bool(several.any()):
            rates = torch.where(series(self.space, "cpu").is_gate, 1e-12, rates.clamp(min=1e-9))
            return argmax_live(self.space, rates, live, state.limits)
        return cut_to(self.space, live, kept, scores=rates)

    def _arch(self, live: Tensor) -> Architecture:
        return Architecture(self.space, tuple(tuple(row) for row in live_table(self.space, live)))

    def examine(
        self, state: BayesNASState, net: Supernet, data: Mapping[str, Split], *, streams: Streams, clock: Clock
    ) -> BayesNASState:
        """Return the state as it is."""
        return state

    def _rates(self, state: BayesNASState) -> tuple[Tensor, Tensor]:
        """Return (inclusion of each option given its edge, of each gate), shapes (G,), float64 on the CPU."""
        p = ard.inclusion(state.log_factor.double().cpu(), self.config.prior_odds)
        return p, p

    def posterior(self, state: BayesNASState) -> ArchitecturePosterior:
        """Return inclusion probabilities under the dependency.

        Within limits, the most probable architectures of what had not been removed that keep them, by their weights.
        """
        state = self.conclude(state)
        found = self._arch(state.live)
        if not state.limits:
            return self._inclusion(state, None, found)
        members = within(self._inclusion(state, state.undecided.cpu()), Limits.from_json(state.limits))
        return Listed(members or [(found, 1.0)], kind="candidates")

    def _inclusion(self, state: BayesNASState, only: Tensor | None, found: Architecture | None = None) -> Inclusion:
        """Return inclusion probabilities, given that no option outside `only` (G,) is there; None: of all options."""
        rates, gates = self._rates(state)
        found = found or Architecture(self.space, tuple((0,) for _ in self.space.choices))
        if only is not None:
            rates = torch.where(only, rates, 0.0)
        shut = []
        for position, choice in enumerate(self.space.choices):
            columns = self.space.columns(position)
            some = any(float(rates[columns[i]]) > 0 for i in choice.real)
            shut.append(1.0 if choice.zero is None else float(gates[columns[choice.zero]]) if some else 0.0)
        return Inclusion(found, shut, rows(self.space, rates))

    def summary(self, state: BayesNASState) -> Info:
        """Return what removed the options, and a warning where the prior hardly spoke."""
        counts = Counter(why for _, _, why in state.removed)
        total = int(self._operations().sum())
        by_rule = counts[self.config.rule] + counts["gate"] + counts["dependency"]
        warnings = []
        if by_rule * 20 < total:
            warnings.append(
                f"the {self.config.rule} removed {by_rule} of {total} options: what was found is mostly decided by "
                f"other rules; {self._hint(state)}more or longer rounds (method.rounds, method.round_steps) remove "
                "more, since curvature falls with the loss"
            )
        return {
            "fired_by": dict(counts),
            "kept_by_guard": state.kept_by_guard,
            "options": total,
            "removed_by_criterion": by_rule,
            "removed": [list(row) for row in state.removed],
            "penalty": dict(zip(("gates", "operations"), map(float, self._lambdas(state)), strict=True)),
            "switches": gaussians(state, self.space.labels),
            "break_even": dict(zip(self.space.labels, state.break_even.double().cpu().tolist(), strict=True)),
            "warnings": warnings,
        }

    def _hint(self, state: BayesNASState) -> str:
        """Return a penalty at which the evidence would have spoken; nothing where it was not asked."""
        even = state.break_even.cpu()[self._operations()]
        third = float(even.quantile(1 / 3))
        if self.config.rule != "evidence" or not 0 < third < math.inf:
            return ""
        said = f"when last asked, a third of them would have gone at lambda {third:.2g} (--set "
        if self.config.penalty_operations is None:
            return f"{said}method.penalty_share={third / float(ard.relative_lambda(even, 1.0)):.2g}); "
        return f"{said}method.penalty_operations={third:.2g} --set method.penalty_gates={third:.2g}); "

    def _record(self, state: BayesNASState) -> dict[str, Any]:
        """Return what an epoch's record says: mean switches, inclusion, options left."""
        rates, _ = self._rates(state)
        return {
            "weights": [[round(v, 6) for v in row] for row in rows(self.space, rates)],
            "switches": [[round(v, 6) for v in row] for row in rows(self.space, state.w.abs().mean(0))],
            "updates": state.updates,
            "operations": int((state.live & self._operations()).sum()),
        }


def _pass(net: Supernet, batch: Batch, gates: Tensor, share: float = 1.0) -> dict[str, Tensor]:
    """Leave the gradient of `share` times a batch's loss in weights and in what `gates` are made of; return scores."""
    output = net(batch.images, gates)
    loss = batch_loss(output, batch)
    (share * loss).backward()
    right = (output.detach().argmax(1) == batch.labels).float().mean()
    return {"weights_loss": loss.detach(), "weights_accuracy": right}
