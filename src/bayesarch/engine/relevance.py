"""The evidence of a network's units: priors on groups of its weights, and the penalty they make."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from bayesarch.engine.pressure import Pressure
from bayesarch.functional.groups import (
    group_sizes,
    group_slopes,
    group_squares,
    quadratic_optimum,
    saliency,
    shrink,
)
from bayesarch.nets.coupling import Units

__all__ = ["Relevance"]

LARGE = 1e10
"""Variance of a unit that may not leave: its prior is flat."""


class Relevance(Pressure):
    """Prior variances of a network's units.

    Args:
        net: the network.
        units: its units.
        free: which of them may leave, bool, shape (U,).
        lam: weight of the penalty beside the mean loss; 1 / n is the evidence of n examples, more is a colder choice
            of fewer weights.
        form: `sum` of the slopes in a group, whose variance is one of a weight; `mean`, as a public code has it.
    """

    def __init__(
        self, net: nn.Module, units: Units, free: Tensor, lam: float, form: Literal["sum", "mean"] = "sum"
    ) -> None:
        self.net, self.units, self.lam, self.form = net, units, lam, form
        like = next(net.parameters())
        device = like.device
        self.free = free.to(device)
        self.tensors = {
            name: [index.to(device) for index in units.memberships(name)]
            for name in units.shapes
            if units.memberships(name)
        }
        self.sizes = self._summed(lambda p, groups: group_sizes(p, groups, units.count))
        self.gamma = torch.full((units.count,), LARGE, device=device, dtype=like.dtype)
        self.slopes = torch.zeros_like(self.gamma)

    def _summed(self, part: Callable[[Tensor, list[Tensor]], Tensor]) -> Tensor:
        parameters = dict(self.net.named_parameters())
        with torch.no_grad():
            return torch.stack([part(parameters[n].detach(), g) for n, g in self.tensors.items()]).sum(0)

    def norms(self) -> Tensor:
        """Return the norm of every unit's weights, shape (U,)."""
        return self._summed(lambda p, groups: group_squares(p, groups, self.units.count)).sqrt()

    def _named(self, curvature: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
        """Return weights, curvature over lambda and memberships, tensor by tensor; missing curvature counts as flat."""
        parameters = dict(self.net.named_parameters())
        weights = [parameters[name].detach() for name in self.tensors]
        h = [
            curvature[name] / self.lam if name in curvature else torch.zeros_like(w)
            for name, w in zip(self.tensors, weights, strict=True)
        ]
        return weights, h, list(self.tensors.values())

    def settle(self, curvature: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Set variances and slopes to where they end in the quadratic model of the loss around the weights.

        Args:
            curvature: of the mean loss in the weights, by parameter name; what is missing counts as flat.

        Returns:
            What the evidence leaves of each unit's squared norm (1 where it may not leave), and each unit's saliency
            (below 1 where a unit alone would die), shapes (U,), on the CPU.
        """
        weights, h, groups = self._named(curvature)
        gamma, left = quadratic_optimum(weights, h, groups, self.free)
        self.gamma = gamma.to(self.gamma.dtype)
        slopes = torch.stack([group_slopes(self.gamma, c, g) for c, g in zip(h, groups, strict=True)]).sum(0)
        if self.form == "mean":
            slopes = slopes / self.sizes.clamp(min=1)
        self.slopes = torch.where(self.free, slopes, torch.zeros_like(slopes))
        left = torch.where(self.free, left, torch.ones_like(left))
        return left.float().cpu(), saliency(weights, h, groups, self.units.count).cpu()

    def step(self, amount: float) -> None:
        """Take the penalty's part of a step."""
        self.shrink(amount)

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """Take the penalty's part of a step: every unit's weights towards zero, and onto it.

        Args:
            amount: the step on the loss that it belongs to.
        """
        factors = torch.where(self.free, shrink(self.norms(), self.slopes, amount * self.lam), 1.0)
        parameters = dict(self.net.named_parameters())
        for name, groups in self.tensors.items():
            for index in groups:
                parameters[name].mul_(factors[index])
