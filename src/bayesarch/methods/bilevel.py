"""One bilevel step on two halves, shared by methods whose gates are mixing weights.

First order: beliefs move on the architecture batch at the current weights, then the weight gradient is taken on the
weights batch at gates drawn anew. The architecture pass computes no weight gradients and the weight pass no
architecture gradients.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.adam import adam

from bayesarch.config import Config
from bayesarch.data import Batch
from bayesarch.engine import Clock, batch_loss
from bayesarch.functional import Simplices, concentration
from bayesarch.nets import Supernet

__all__ = [
    "AlphaConfig",
    "DirichletConfig",
    "Logits",
    "adam_step",
    "bilevel_step",
    "default_lr",
    "fresh_logits",
    "rest",
    "warming",
    "weights_pass",
]


class AlphaConfig(Config):
    """How architecture parameters move (Adam)."""

    alpha_lr: float | None = Field(default=None, gt=0)
    """Learning rate; null: 0.22 / steps per epoch, at least 3e-4 (the published value for CIFAR's 391 steps)."""
    alpha_decay: float = Field(default=1e-3, ge=0)
    """L2 coefficient, which anchors the parameters at 0, the flat simplex."""
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    """Adam's averaging coefficients."""
    warmup_epochs: int = Field(default=0, ge=0)
    """Epochs in which only weights are trained; at most half of the search."""


class DirichletConfig(AlphaConfig):
    """How the free parameters of Dirichlet concentrations move."""

    anchor: Literal["l2", "kl"] = "l2"
    """What holds concentrations near the flat simplex: Adam's weight decay, or KL(Dir(beta) || Dir(1))."""
    kl_weight: float = Field(default=1e-3, ge=0)
    """Factor of the KL anchor, nats per example."""

    def anchored(self) -> Self:
        """Return the settings with one anchor only: no weight decay beside the KL."""
        return self if self.anchor == "l2" else self.model_copy(update={"alpha_decay": 0.0})

    def penalty(self, choices: Simplices, a: Tensor) -> Tensor:
        """Return the anchor's term of the architecture loss, nats per example, shape ()."""
        if self.anchor == "l2":
            return a.new_zeros(())
        return self.kl_weight * choices.kl_to_uniform(concentration(a))


def default_lr(config: AlphaConfig, steps_per_epoch: int) -> float:
    """Return the architecture learning rate in force.

    Small data have few steps an epoch, and Adam moves a parameter by at most its learning rate a step: the published
    3e-4 would leave everything flat for the whole search.
    """
    return config.alpha_lr if config.alpha_lr is not None else max(3e-4, 0.22 / steps_per_epoch)


def warming(config: AlphaConfig, clock: Clock) -> bool:
    """Return whether only weights are trained yet: a search within its warm-up would have nothing to decide by."""
    return clock.epoch < config.warmup_epochs and clock.reached() < rest(0.5, clock.epochs)


def rest(share: float, epochs: float) -> float:
    """Return how long parameters rest: a share of so many epochs, which leaves one of them to move in."""
    return min(share * epochs, max(epochs - 1, 0.0))


@dataclass(frozen=True)
class Logits:
    """Free architecture parameters with Adam's moments, all of shape (G,); `t` counts steps, shape ()."""

    a: Tensor
    m: Tensor
    v: Tensor
    t: Tensor


def fresh_logits(n_options: int, *, generator: torch.Generator, device: torch.device) -> Logits:
    """Return parameters at 1e-3 times standard normal draws, and zero moments."""
    a = 1e-3 * torch.randn(n_options, generator=generator, device=device)
    return Logits(a, torch.zeros_like(a), torch.zeros_like(a), torch.zeros((), device=device))


def adam_step(logits: Logits, grad: Tensor, lr: float, config: AlphaConfig) -> Logits:
    """Return the parameters after one step of torch's own Adam; nothing is changed in place."""
    a, m, v, t = (tensor.clone() for tensor in (logits.a, logits.m, logits.v, logits.t))
    adam(
        [a],
        [grad],
        [m],
        [v],
        [],
        [t],
        foreach=False,
        capturable=a.is_cuda,
        amsgrad=False,
        beta1=config.alpha_betas[0],
        beta2=config.alpha_betas[1],
        lr=lr,
        weight_decay=config.alpha_decay,
        eps=1e-8,
        maximize=False,
    )
    return Logits(a, m, v, t)


def bilevel_step(  # noqa: PLR0913 - one step has this much in it
    logits: Logits,
    gates_fn: Callable[[Tensor], Tensor],
    net: Supernet,
    batches: Mapping[str, Batch],
    *,
    config: AlphaConfig,
    lr: float,
    moving: bool,
    penalty_fn: Callable[[Tensor], Tensor] | None = None,
    sparse: bool = False,
) -> tuple[Logits, dict[str, Any]]:
    """Return moved parameters and the two losses; leaves the weight gradient in `net`'s parameters.

    Args:
        logits: free parameters.
        gates_fn: parameters (G,) -> gates (G,); draws anew at each call where the method draws.
        net: the supernet.
        batches: `architecture` and `weights`.
        config: Adam's settings.
        lr: architecture learning rate.
        moving: False leaves the parameters (warm-up, or nothing left to decide).
        penalty_fn: parameters -> a term added to the architecture loss, nats per example.
        sparse: compute only options whose gate is not 0.
    """
    info: dict[str, Any] = {}
    if moving:
        grad, info["architecture_loss"] = architecture_pass(
            logits.a, gates_fn, net, batches["architecture"], penalty_fn=penalty_fn, sparse=sparse
        )
        logits = adam_step(logits, grad, lr, config)
    with torch.no_grad():
        gates = gates_fn(logits.a)
    return logits, info | weights_pass(net, batches["weights"], gates, _active(gates) if sparse else None)


def architecture_pass(
    a: Tensor,
    gates_fn: Callable[[Tensor], Tensor],
    net: Supernet,
    batch: Batch,
    *,
    penalty_fn: Callable[[Tensor], Tensor] | None,
    sparse: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of parameters `a` (G,) on one batch, and the loss without its penalty.

    A function of its own, so that the graph is gone before the next pass begins: what is left of it lies between the
    holes that its tensors leave in the heap, and keeps these from growing together.
    """
    leaf = a.detach().requires_grad_()
    gates = gates_fn(leaf)
    with net.weights_held():
        output = net(batch.images, gates.view(1, 1, -1), _active(gates) if sparse else None)
        loss = batch_loss(output, batch)
        total = loss if penalty_fn is None else loss + penalty_fn(leaf)
        (grad,) = torch.autograd.grad(total, leaf, allow_unused=True) if total.requires_grad else (None,)
    # a sparse draw of options that pass nothing has no gradient at all
    return torch.zeros_like(leaf) if grad is None else grad, loss.detach()


def _active(gates: Tensor) -> frozenset[int]:
    return frozenset(gates.detach().nonzero().flatten().tolist())


def weights_pass(net: Supernet, batch: Batch, gates: Tensor, active: frozenset[int] | None = None) -> dict[str, Tensor]:
    """Leave the weight gradient of one batch at `gates` (G,) in `net`'s parameters, and return loss and accuracy."""
    output = net(batch.images, gates.view(1, 1, -1), active)
    loss = batch_loss(output, batch)
    loss.backward()
    right = (output.detach().argmax(1) == batch.labels).float().mean()
    return {"weights_loss": loss.detach(), "weights_accuracy": right}
