"""The evidence of a network's units: priors on groups of its weights, and training under the penalty they make."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from bayesarch.engine.trainer import Trainer
from bayesarch.functional.groups import group_sizes, group_slopes, group_squares, group_update, shrink
from bayesarch.nets.coupling import Units

__all__ = ["PenalisedTrainer", "Relevance"]

LARGE, SMALL = 1e10, 1e-10
"""Bounds of the variances, as in the public code; a unit that may not leave keeps the upper one: its prior is flat."""


class Relevance:
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
        device = next(net.parameters()).device
        self.free = free.to(device)
        self.tensors = {
            name: [index.to(device) for index in units.memberships(name)]
            for name in units.shapes
            if units.memberships(name)
        }
        self.sizes = self._summed(lambda p, groups: group_sizes(p, groups, units.count))
        ones = torch.ones(units.count, device=device)
        self.gamma = torch.where(self.free, ones, LARGE * ones)
        self.slopes = torch.zeros_like(ones)

    def _summed(self, part) -> Tensor:  # type: ignore[no-untyped-def]
        parameters = dict(self.net.named_parameters())
        with torch.no_grad():
            return torch.stack([part(parameters[n].detach(), g) for n, g in self.tensors.items()]).sum(0)

    def norms(self) -> Tensor:
        """Return the norm of every unit's weights, shape (U,)."""
        return self._summed(lambda p, groups: group_squares(p, groups, self.units.count)).sqrt()

    def begin(self) -> None:
        """Set the variances to what the weights' sizes say, ||W||^2 / n: another scale of a layer, the same course."""
        start = (self.norms().square() / self.sizes.clamp(min=1)).clamp(SMALL, LARGE)
        self.gamma = torch.where(self.free, start, self.gamma)

    def look(self, curvature: Mapping[str, Tensor]) -> None:
        """Take the penalty's slopes from the curvature at the current weights and variances.

        Args:
            curvature: of the mean loss in the weights, by parameter name; what is missing counts as flat.
        """
        total = torch.zeros_like(self.gamma)
        for name, groups in self.tensors.items():
            if name in curvature:
                total += group_slopes(self.gamma, curvature[name] / self.lam, groups)
        if self.form == "mean":
            total = total / self.sizes.clamp(min=1)
        self.slopes = torch.where(self.free, total, torch.zeros_like(total))

    def update(self) -> None:
        """Set the variances to those of highest evidence bound at the current weights: gamma = ||W|| / omega."""
        found = group_update(self.norms(), self.slopes, self.gamma).clamp(SMALL, LARGE)
        self.gamma = torch.where(self.free, found, self.gamma)

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

    def alive(self) -> Tensor:
        """Return which units still have weights that are not zero, or may not leave; bool, shape (U,), on the CPU."""
        return ((self.norms() > 0) | ~self.free).cpu() & self.units.present()


class PenalisedTrainer(Trainer):
    """A training whose every step ends with the penalty's.

    With momentum m a step's displacement is lr / (1 - m) times a lasting gradient, and so the penalty's is made.
    """

    relevance: Relevance | None = None

    def move(self) -> None:
        """Take the weights' step, and the penalty's."""
        super().move()
        if self.relevance is not None:
            self.relevance.shrink(self._lr() / (1.0 - self.config.momentum))
