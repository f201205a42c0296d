"""The evidence of a network's units: priors on groups of its weights, and the penalty they make."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bayesarch.engine.pressure import Pressure
from bayesarch.functional.groups import (
    group_index,
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
    """Prior variances of a network's units, and of other groups of its weights, whose numbers G follow the units' U.

    Args:
        net: the network.
        units: its units.
        free: which of them may leave, bool, shape (U,).
        lam: weight of the penalty beside the mean loss; 1 / n is the evidence of n examples, more is a colder choice
            of fewer weights.
        form: `sum` of the slopes in a group, whose variance is one of a weight; `mean`, as a public code has it.
        also: types of further groups, each on the weights of every layer (`functional.groups.GROUP_TYPES`).
        uses: whether a weight counts as often as it is used on one image (`Units.uses`), and not once.
    """

    def __init__(
        self,
        net: nn.Module,
        units: Units,
        free: Tensor,
        lam: float,
        form: Literal["sum", "mean"] = "sum",
        also: Sequence[str] = (),
        *,
        uses: bool = False,
    ) -> None:
        self.net, self.units, self.lam, self.form = net, units, lam, form
        like = next(net.parameters())
        device = like.device
        self.tensors = {name: units.memberships(name) for name in units.shapes}
        self.count = units.count
        self.within: dict[str, list[Tensor]] = {name: [] for name in (units.macs if also else ())}
        for name, kind in ((name, kind) for name in self.within for kind in also):
            index = group_index(kind, units.shapes[name], self.count)
            self.count += index.numel()
            self.within[name].append(index)
            self.tensors[name] = [*self.tensors[name], index]
        self.tensors = {name: [index.to(device) for index in g] for name, g in self.tensors.items() if g}
        self.counts = {name: units.uses.get(name, 1.0) if uses else 1.0 for name in self.tensors}
        others = torch.ones(self.count - units.count, dtype=torch.bool, device=device)
        self.free = torch.cat([free.to(device), others])
        self.sizes = self._summed(lambda p, groups: group_sizes(p, groups, self.count))
        self.gamma = torch.full((self.count,), LARGE, device=device, dtype=like.dtype)
        self.slopes = torch.zeros_like(self.gamma)

    def _summed(self, part: Callable[[Tensor, list[Tensor]], Tensor]) -> Tensor:
        parameters = dict(self.net.named_parameters())
        with torch.no_grad():
            parts = [self.counts[n] * part(parameters[n].detach(), g) for n, g in self.tensors.items()]
            return torch.stack(parts).sum(0)

    def norms(self) -> Tensor:
        """Return the norm of every group's weights, each as often as it counts, shape (G,)."""
        return self._summed(lambda p, groups: group_squares(p, groups, self.count)).sqrt()

    def staying(self, gone: Tensor) -> dict[str, Tensor]:
        """Return which weights of each tensor stay when groups go that are no units, bool, by parameter name.

        Args:
            gone: which go, bool, shape (G,).
        """
        stays = {}
        for name, indexes in self.within.items():
            stays[name] = torch.ones(self.units.shapes[name], dtype=torch.bool)
            for index in indexes:
                stays[name] &= ~gone.cpu()[index]
        return stays

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
            What the evidence leaves of each group's squared norm (1 where it may not leave), and each group's saliency
            (below 1 where a group alone would die), shapes (G,), on the CPU.
        """
        weights, h, groups = self._named(curvature)
        counts = list(self.counts.values())
        gamma, left = quadratic_optimum(weights, h, groups, self.free, counts=counts)
        self.gamma = gamma.to(self.gamma.dtype)
        parts = [c * group_slopes(self.gamma, k / c, g) for k, g, c in zip(h, groups, counts, strict=True)]
        slopes = torch.stack(parts).sum(0)
        if self.form == "mean":
            slopes = slopes / self.sizes.clamp(min=1)
        self.slopes = torch.where(self.free, slopes, torch.zeros_like(slopes))
        left = torch.where(self.free, left, torch.ones_like(left))
        return left.float().cpu(), saliency(weights, h, groups, self.count, counts).cpu()

    def step(self, amount: float) -> None:
        """Take the penalty's part of a step."""
        self.shrink(amount)

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """Take the penalty's part of a step: every group's weights towards zero, and onto it.

        Args:
            amount: the step on the loss that it belongs to.
        """
        norms, parameters = self.norms(), dict(self.net.named_parameters())
        for name, groups in self.tensors.items():
            own = amount * self.lam * self.counts[name]
            factors = torch.where(self.free, shrink(norms, self.slopes, own), 1.0)
            for index in groups:
                parameters[name].mul_(factors[index])
