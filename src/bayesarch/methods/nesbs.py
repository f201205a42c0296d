"""NESBS: a supernet trained one random path at a time, then a posterior over its cells with the weights fixed.

Reference: Shu, Chen, Dai and Low, "Neural Ensemble Search via Bayesian Sampling", UAI 2022. The last `alpha_epochs` fit
q(A), a softmax per choice, to the evidence bound: mean loss of relaxed draws plus KL(q || uniform) / n. What it is for
is `bayesarch ensemble --from nesbs-mc` and `nesbs-svgd`, which sample sets of cells from q.
"""

import torch
from pydantic import Field
from torch import Tensor

from bayesarch.engine import Info, batch_loss
from bayesarch.functional import Simplices
from bayesarch.methods.bilevel import AlphaConfig, Logits, adam_step, weights_pass
from bayesarch.methods.mixture import Mixture, Rule, Step
from bayesarch.spaces import Space

__all__ = ["NESBSConfig", "nesbs"]


class NESBSConfig(AlphaConfig):
    """Settings of NESBS."""

    alpha_lr: float | None = Field(default=0.01, gt=0)
    """Learning rate of the posterior's logits; null: 0.22 / steps per epoch, at least 3e-4."""
    alpha_decay: float = Field(default=0.0, ge=0)
    """L2 coefficient of the logits; the KL to the uniform prior anchors them already."""
    alpha_betas: tuple[float, float] = (0.9, 0.999)
    """Adam's averaging coefficients."""
    alpha_epochs: int | None = Field(default=None, ge=1)
    """Last epochs, in which the posterior is fitted and the weights rest; None: half of all."""
    tau: float = Field(default=1.0, gt=0)
    """Temperature of the relaxed draws."""


def _kl_to_uniform(choices: Simplices, a: Tensor) -> Tensor:
    """Return KL(q || uniform) in nats, summed over choices, shape ()."""
    sizes = torch.tensor([len(group) for group in choices.live_columns], dtype=a.dtype)
    return float(sizes.log().sum()) - choices.entropy(choices.softmax(a)).sum()


def nesbs(space: Space, config: NESBSConfig | None = None) -> Mixture:
    """Return NESBS."""
    settings = config or NESBSConfig()

    def step(logits: Logits, at: Step) -> tuple[Logits, Info]:
        epochs = at.clock.epochs
        # weights that were never trained say nothing: one epoch is theirs at least
        alpha_epochs = epochs // 2 if settings.alpha_epochs is None else min(settings.alpha_epochs, epochs - 1)
        if at.choices.settled or at.clock.reached() < epochs - alpha_epochs:
            gates = at.choices.straight_through(torch.zeros_like(logits.a), 1.0, generator=at.generator)
            active = frozenset(gates.nonzero().flatten().tolist())
            return logits, weights_pass(at.net, at.batches["weights"], gates, active)
        leaf, batch = logits.a.detach().requires_grad_(), at.batches["architecture"]
        gates = at.choices.relaxed(leaf, settings.tau, generator=at.generator)
        with at.net.weights_held():
            loss = batch_loss(at.net(batch.images, gates.view(1, 1, -1)), batch)
            total = loss + _kl_to_uniform(at.choices, leaf) / at.n_architecture
            (grad,) = torch.autograd.grad(total, leaf)
        return adam_step(logits, grad, at.lr, settings), {"architecture_loss": loss.detach()}

    cite = "Shu, Chen, Dai and Low, Neural Ensemble Search via Bayesian Sampling, UAI 2022"
    return Mixture(space, Rule("nesbs", cite, settings, step))
