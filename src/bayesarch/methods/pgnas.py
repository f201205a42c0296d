"""PGNAS: one training of weights and drop rates together, then sampled sub-networks ranked on held-out examples.

Reference: Zhou et al., "Posterior-Guided Neural Architecture Search", AAAI 2020. Each input channel of each layer has a
gate; a layer's channels share one drop rate. Weights and rates are fitted on the same examples by the same descent:
cross-entropy under relaxed gates, fresh for every example, plus the KL of `functional.bernoulli` over N. At the end
hard masks are drawn, scored with the weights they inherit, and the best is kept.

What is ours: candidates are ranked on the `architecture` split, which the training never saw, and the winner is scored
again on `selection`, which did not choose it; drop rates are held against what the entropy alone would have made of
them; N is the number of training examples and not ten times that; a prior that asks for deletion (`deletion`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from bayesarch.config import Config
from bayesarch.data import Batch, Split
from bayesarch.engine import Clock, Info, Setting, batch_loss
from bayesarch.functional import Streams, bernoulli
from bayesarch.methods.candidates import Scorer, credible_sizes, matched, paired, table, within
from bayesarch.methods.single import open_gates
from bayesarch.posteriors import ChannelMasks
from bayesarch.spaces import Architecture, Space

__all__ = ["PGNAS", "PGNASConfig", "PGNASState"]


class PGNASConfig(Config):
    """Settings of PGNAS."""

    drop: float = Field(default=0.1, gt=0, lt=1)
    """Drop rate that every group starts from."""
    tau: float = Field(default=0.2, gt=0)
    """Temperature of the relaxed gates."""
    kl_n: float | None = Field(default=None, gt=0)
    """N of the objective; null: the number of training examples. Published: 5e5 on CIFAR, ten times the examples."""
    l2: float | None = Field(default=None, ge=0)
    """Squared prior length-scale; null: chosen so that kept weights decay as `weight_decay` says."""
    weight_decay: float = Field(default=3e-4, ge=0)
    """The decay of kept weights that `l2: null` aims at, as optimisers take it."""
    c: float = Field(default=1.0, gt=0)
    """Factor of the weight term: 1/2 in the derivation, 1 in the published code and its tables."""
    lambda_d: float = Field(default=1.0, gt=0)
    """Weight of the gates' entropy."""
    deletion: float | None = Field(default=None, gt=0, lt=1)
    """Prior probability that a channel is dropped; above 1/2 it asks for deletion. null: the published entropy."""
    gate_lr: float = Field(default=5.0, ge=0)
    """Learning rate of the drop logits, as a multiple of the weights'; 0 keeps the first rate. Published: 1, for 1,800
    epochs; in tens of epochs the rates then hardly leave where they began."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Nesterov momentum of the drop logits."""
    candidates: int = Field(default=200, ge=1)
    """Masks drawn and ranked when the epochs are over. Published: 1,500 to 10,000."""
    controls: int = Field(default=50, ge=0)
    """Random masks at the same expected number of parameters, scored beside them."""
    score_precision: Literal["fp32", "bf16"] = "fp32"
    """How candidates are scored; bf16 takes half the time where the machine has it, and rounds coarsely."""
    recalibrate: bool = True
    """Whether the best candidate is also scored with its norms' statistics taken anew, as a row of its own."""
    beyond: float = Field(default=0.25, gt=0)
    """How far, in logits, a drop rate must lie from its drift curve for the data to have moved it."""


@dataclass(frozen=True)
class PGNASState:
    """Beliefs: drop logits of the groups with their momentum, and what they would be without data."""

    phi: Tensor
    velocity: Tensor
    idle: Tensor
    """Drop logits that the entropy alone would have reached after the same steps."""
    idle_velocity: Tensor
    live: Tensor
    right: Tensor
    """Which examples of the ranking split each candidate has right, bool, shape (candidates, n); empty before."""
    n: float
    """N of the objective."""
    l2: float
    ranked: tuple[Any, ...] = ()
    """[mask, accuracy, mean loss] of each candidate, in the order drawn."""
    best: int = -1
    """Which candidate was chosen."""
    rows: tuple[Any, ...] = ()
    """What was chosen, and controls: name, masks, size, accuracy on the ranking split and on the selection split."""
    sizes: tuple[Any, ...] = ()
    """Credible statements on parameters and MACs."""
    tuned: int = 0
    """Steps that the chosen network was trained on for."""
    budgets: Any = None
    """Largest parameters and MACs of what is found, by name."""
    raised: float = 0.0
    """By how much all drop logits were raised for candidates that keep the budgets."""
    done: bool = False


@lru_cache(maxsize=8)
def _sizes(space: Space, device: str) -> Tensor:
    """Return the number of channels of each group, shape (S,), remembered between steps."""
    return torch.tensor([len(choice.options) for choice in space.choices]).to(device, non_blocking=True)


class PGNAS:
    """Variational dropout over channels.

    Args:
        space: a space of channel masks.
        config: settings.
    """

    name = "pgnas"
    splits = ("weights",)
    cite = "Zhou et al., Posterior-Guided Neural Architecture Search, AAAI 2020"
    state_type = PGNASState

    def __init__(self, space: Space, config: PGNASConfig | None = None) -> None:
        self.space, self.config = space, config or PGNASConfig()

    def init(self, setting: Setting, *, streams: Streams) -> PGNASState:
        """Return equal drop rates."""
        config, n = self.config, float(self.config.kl_n or setting.n_examples["weights"])
        start = math.log(config.drop / (1 - config.drop))
        phi = torch.full((len(self.space.choices),), start, device=setting.device)
        decays = bernoulli.length_scale(config.weight_decay, n, keep=1 - config.drop, c=config.c)
        return PGNASState(
            phi=phi,
            velocity=torch.zeros_like(phi),
            idle=phi.clone(),
            idle_velocity=torch.zeros_like(phi),
            live=torch.ones(self.space.n_options, dtype=torch.bool),
            right=torch.zeros(0, 0, dtype=torch.bool, device=setting.device),
            n=n,
            l2=decays if config.l2 is None else config.l2,
            budgets=dict(setting.budgets),
        )

    def gates(self, state: PGNASState) -> Tensor:
        """Return mean gates, or the hard gates of what was found, shape (1, 1, G)."""
        if state.done:
            return open_gates(state.live, state.phi)
        return torch.sigmoid(-self._channels(state.phi)).view(1, 1, -1)

    def step(
        self, state: PGNASState, net: Any, batches: Mapping[str, Batch], *, streams: Streams, clock: Clock
    ) -> tuple[PGNASState, Info]:
        """Return moved drop logits; leaves the weights' gradient of the same loss in the parameters."""
        config, batch = self.config, batches["weights"]
        net.noise = streams["noise"]
        if state.done:  # closing epochs: only the weights of what was found
            loss = batch_loss(net(batch.images, self.gates(state)), batch)
            loss.backward()
            return replace(state, tuned=state.tuned + 1), {"weights_loss": loss.detach()}
        leaf = state.phi.detach().requires_grad_()
        channels = self._channels(leaf)
        gates = bernoulli.keep_gates(channels, (len(batch.labels),), tau=config.tau, generator=streams["gates"])
        output = net(batch.images, gates.unsqueeze(1))
        loss = batch_loss(output, batch)
        kl = bernoulli.gate_kl(
            channels,
            net.channel_sqnorm(),
            l2=state.l2,
            c=config.c,
            lambda_d=config.lambda_d,
            u=config.deletion,
        )
        (loss + kl / state.n).backward()
        assert leaf.grad is not None
        lr = clock.weight_lr * config.gate_lr
        phi, velocity = self._descend(state.phi, state.velocity, leaf.grad, lr)
        idle, idle_velocity = self._descend(state.idle, state.idle_velocity, self._idle_gradient(state), lr)
        right = (output.detach().argmax(1) == batch.labels).float().mean()
        state = replace(state, phi=phi, velocity=velocity, idle=idle, idle_velocity=idle_velocity)
        return state, {
            "weights_loss": loss.detach(),
            "weights_accuracy": right,
            "kl": kl.detach() / state.n,
        }

    def round_steps(self, steps_per_pass: int) -> int:
        """Return the steps between two boundaries: one epoch."""
        return steps_per_pass

    def boundary(
        self, state: PGNASState, net: Any, data: Mapping[str, Split], *, streams: Streams, clock: Clock
    ) -> tuple[PGNASState, Info]:
        """Return the state as it is, or, when the search ends here, with its candidates ranked."""
        if state.done:
            return state, {}
        posterior = self.posterior(state)
        drop, idle = torch.sigmoid(state.phi), torch.sigmoid(state.idle)
        info = {
            "entropy": posterior.entropy(),
            "drop_rate": float(drop.mean()),
            "drop_rate_spread": float(drop.std(correction=0)),
            "drift_rate": float(idle.mean()),
            "beyond_drift": self._beyond(state),
        }
        if clock.last:
            state = self._rank(state, net, data, seed=streams.seed, clock=clock)
        return state, info

    def last_passes(self, state: PGNASState) -> float:
        """Return how many passes over the architecture split the ranking makes."""
        return float(self.config.candidates + self.config.controls)

    def finished(self, state: PGNASState) -> bool:
        """Return whether candidates have been ranked and one chosen."""
        return state.done

    def conclude(self, state: PGNASState) -> PGNASState:
        """Return the state with the chosen mask alone live; with the most probable one where none was ranked."""
        if state.done:
            return state
        live = torch.zeros_like(state.live)
        live[list(self.found(state).columns)] = True
        return replace(state, live=live, done=True)

    def examine(
        self, state: PGNASState, net: Any, data: Mapping[str, Split], *, streams: Streams, clock: Clock
    ) -> PGNASState:
        """Return the state, with a row of its own for a network that was trained on after it had been chosen."""
        if not state.tuned:
            return state
        score = Scorer(net, data, None)
        row = score.row(f"best candidate, {state.tuned} steps of fine-tuning", [self.found(state)])
        return replace(state, rows=(*state.rows, row))

    def posterior(self, state: PGNASState) -> ChannelMasks:
        """Return the product of Bernoullis."""
        return ChannelMasks(self.space, torch.sigmoid(-state.phi.double()).tolist())

    def found(self, state: PGNASState) -> Architecture:
        """Return the candidate that did best, the mode of the posterior where none was ranked."""
        if state.best < 0:
            return self.posterior(state).mode()
        return Architecture.parse(state.ranked[state.best][0], self.space)

    def summary(self, state: PGNASState) -> Info:
        """Return candidates, controls, and how much of the drop rates the data decided."""
        beyond, warnings = self._beyond(state), []
        if beyond < 0.1:
            warnings.append(
                f"only {beyond:.0%} of the groups lie beyond their drift curve: learning rate times steps set the drop "
                "rates, not the data. Train longer, raise method.gate_lr, or give more data"
            )
        if state.raised:
            warnings.append(
                f"the limits are below what the posterior gives: for the candidates all drop logits were raised by "
                f"{state.raised:.2f}"
            )
        if 0 < len(state.ranked) < self.config.candidates:
            warnings.append(f"there was time to rank {len(state.ranked)} candidates of {self.config.candidates}")
        return {
            "l2": state.l2,
            "n_objective": state.n,
            "beyond_drift": beyond,
            "drift_rates": torch.sigmoid(state.idle).tolist(),
            "group_entropies": self.posterior(state).entropies(),
            "candidates": [[accuracy, loss] for _, accuracy, loss in state.ranked],
            "rows": [dict(row) for row in state.rows],
            "sizes": [dict(size) for size in state.sizes],
            "warnings": warnings,
        }

    def _channels(self, groups: Tensor) -> Tensor:
        """Return each channel's value, (S,) -> (G,)."""
        sizes = _sizes(self.space, str(groups.device))
        return groups.repeat_interleave(sizes, output_size=self.space.n_options)

    def _descend(self, phi: Tensor, velocity: Tensor, grad: Tensor, lr: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and momentum after one step of Nesterov's descent."""
        velocity = self.config.momentum * velocity + grad
        return phi - lr * (grad + self.config.momentum * velocity), velocity

    def _idle_gradient(self, state: PGNASState) -> Tensor:
        """Return the gradient of the entropy alone, what `functional.bernoulli.drift` follows, shape (S,)."""
        pi, u = torch.sigmoid(state.idle), self.config.deletion
        pull = 0.0 if u is None else math.log(u / (1 - u))
        return self.config.lambda_d * _sizes(self.space, str(pi.device)) * pi * (1 - pi) * (state.idle - pull) / state.n

    def _beyond(self, state: PGNASState) -> float:
        """Return the share of groups further from their drift curve than `beyond`."""
        return float(((state.phi - state.idle).abs() > self.config.beyond).float().mean())

    def _rank(self, state: PGNASState, net: Any, data: Mapping[str, Split], *, seed: int, clock: Clock) -> PGNASState:
        """Return the state with candidates and controls scored, and the best candidate chosen.

        The clock keeps a state after every candidate, and the ranking goes on from one that was kept; when the time is
        over, it goes no further.
        """
        config, posterior = self.config, self.posterior(state)
        masks, raised = within(net.costs, posterior, state.budgets or {}, config.candidates, seed=seed)
        state = replace(state, raised=raised)
        score = Scorer(net, data, torch.bfloat16 if config.score_precision == "bf16" else None)
        for arch in masks[len(state.ranked) :]:
            right, loss = score.right(arch, "architecture")
            known = state.right if state.ranked else right[:0].view(0, len(right))
            entry = [str(arch), float(right.float().mean()), loss]
            state = replace(state, ranked=(*state.ranked, entry), right=torch.cat([known, right[None]]))
            clock.keep(state)
            if clock.gone() >= 1:
                break
        masks = masks[: len(state.ranked)]
        best = self._best(net, masks, [accuracy for _, accuracy, _ in state.ranked])
        exact = Scorer(net, data, None)
        rows = [exact.row("best candidate", [masks[best]]) | {"against_others": paired(state.right, best)}]
        if config.recalibrate:
            again = Scorer(net, data, None, recalibrated=masks[best])
            rows.append(again.row("best candidate, norms recalibrated", [masks[best]]))
        rows.append(score.row("all candidates", masks, state.right))
        mode, whole = posterior.mode(), tuple(tuple(range(len(c.options))) for c in self.space.choices)
        rows.append(exact.row("mode", [mode]) | {"dropped": self.space.n_options - len(mode.columns)})
        rows.append(exact.row("whole network", [Architecture(self.space, whole)]))
        if config.controls:
            blind = matched(self.space, net.costs, masks, seed=seed)
            rows.append(score.row("random masks", blind.sample(config.controls, seed=seed + 1)))
        return replace(state, best=best, rows=tuple(rows), sizes=credible_sizes(net.costs, posterior, seed=seed + 2))

    def _best(self, net: Any, masks: list[Architecture], accuracies: list[float]) -> int:
        """Return the candidate of the highest accuracy; of equals the smallest, then the first."""
        params, _ = net.costs.of(table(masks))
        return max(range(len(masks)), key=lambda i: (accuracies[i], -int(params[i]), -i))
