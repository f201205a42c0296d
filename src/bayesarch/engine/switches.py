"""BayesNAS's switches, on the units of a plain network: one scalar on whatever reads a unit, which the weights hide.

Reference: Zhou, Yang, Wang and Pan, BayesNAS, ICML 2019. A switch has the value 1 and the curvature of the loss in it,
with all weights of the unit moving together; that of `weight_curvature` is a sum over weights as if each moved alone,
and is too small where they pull the same way. What a switch is charged for is ours: see `functional.groups`.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from bayesarch.data import Split
from bayesarch.engine.pressure import Pressure
from bayesarch.engine.unit_gates import UnitGates, readers
from bayesarch.engine.weight_curvature import logit_pulls
from bayesarch.functional.groups import switch_slope
from bayesarch.nets import Units

__all__ = ["Switches", "switch_curvature"]


def switch_curvature(
    net: nn.Module,
    units: Units,
    split: Split,
    *,
    mode: Literal["exact", "mc"] = "exact",
    draws: int = 1,
    batch_size: int = 64,
    limit: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the GGN diagonal of the mean cross-entropy in the units' switches, shape (U,), on the network's device.

    Arguments as in `weight_curvature`; a layer may be used more than once.
    """
    gates, like = UnitGates(net, units), next(net.parameters())
    total, n, training = torch.zeros(units.count, device=like.device, dtype=like.dtype), 0, net.training
    net.eval()
    try:
        for batch in split.in_order(batch_size, None if limit is None else -(-limit // batch_size)):
            each = torch.ones(len(batch.labels), units.count, device=like.device, dtype=like.dtype, requires_grad=True)
            with gates.at(each), torch.enable_grad():
                logits = net(batch.images)
            for pull in logit_pulls(logits.detach(), mode, draws, generator):
                (slopes,) = torch.autograd.grad(logits, each, pull, retain_graph=True)
                total += slopes.square().sum(0)
            n += len(batch.labels)
    finally:
        net.train(training)
        gates.close()
    return total / n


class Switches(Pressure):
    """The penalty on switches, which are taken into the weights of what reads the units after every step.

    Args:
        net: the network.
        units: its units.
        h: curvature in the switches over lambda, shape (U,).
        counts: what each unit is charged for, shape (U,).
        free: which may leave, bool, shape (U,).
        lam: weight of the penalty beside the mean loss.
    """

    def __init__(self, net: nn.Module, units: Units, h: Tensor, counts: Tensor, free: Tensor, lam: float) -> None:
        self.slopes = torch.where(free.to(h.device), lam * switch_slope(h, counts), torch.zeros_like(h))
        self._read = readers(net, units)

    @torch.no_grad()
    def step(self, amount: float) -> None:
        """Take the penalty's part of a step: every switch towards zero."""
        factors = (1.0 - amount * self.slopes).clamp(min=0.0)
        for module, axis in self._read:
            weight = module.get_parameter("weight")
            weight.mul_(factors[axis.units.to(weight.device)].view(1, -1, *[1] * (weight.ndim - 2)))
