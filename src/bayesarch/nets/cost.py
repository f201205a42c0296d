"""What a network costs: parameters, MACs (one multiply and one add) and a measured latency.

Costs of cell spaces are additive: a base for the skeleton plus one term per picked option. `option_costs` finds the
terms by building single operations on the meta device, so that all 15,625 cells of NAS-Bench-201 are priced in a
moment; `network_cost` prices a built network, and the two agree.
"""

import statistics
import time
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from bayesarch.config import Config
from bayesarch.nets.operations import operation_module
from bayesarch.nets.plain import skeleton
from bayesarch.nets.skeletons import Shape
from bayesarch.spaces import Architecture, Limits, Space

__all__ = ["Cost", "OptionCosts", "architecture_cost", "cost_limits", "latency_ms", "network_cost", "option_costs"]


@dataclass(frozen=True)
class Cost:
    """Parameters (a count) and MACs for one image (convolutions and linear layers)."""

    params: int
    macs: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.params + other.params, self.macs + other.macs)


@dataclass(frozen=True)
class OptionCosts:
    """Cost of the skeleton without cells, and of each flat option over all copies of its cell (length G)."""

    base: Cost
    options: tuple[Cost, ...]


class _Probe(nn.Module):
    """Stands where a cell would and remembers the shape of its input."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.channels, self.kind = channels, kind
        self.shape: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        self.shape = tuple(x.shape[1:])
        return x


def network_cost(net: nn.Module, input_shape: Shape) -> Cost:
    """Return parameters and MACs of a plain network for one image of `input_shape`; the network is not changed.

    Args:
        net: any module whose work is in `Conv2d` and `Linear`, on any device, the meta device included.
        input_shape: (channels, height, width).
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += output[0].numel() * module.in_features

    handles = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    training = net.training
    try:
        net.eval()
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
        with torch.no_grad():
            net(torch.zeros(1, *input_shape, device=device))
    finally:
        for handle in handles:
            handle.remove()
        net.train(training)
    return Cost(sum(p.numel() for p in net.parameters()), total)


@lru_cache(maxsize=64)
def option_costs(space: Space, sizes: Config, input_shape: Shape, classes: int) -> OptionCosts:
    """Return the additive costs of a space's options in the network of `sizes`; nothing is allocated."""
    probes: list[_Probe] = []

    def make_cell(channels: int, kind: str) -> nn.Module:
        probes.append(_Probe(channels, kind))
        return probes[-1]

    with torch.device("meta"):
        trunk = skeleton(space, sizes, input_shape, classes, make_cell)
        base = network_cost(nn.Sequential(trunk.stem, *trunk.layers, trunk.head), input_shape)
        costs = []
        for choice in space.choices:
            for option in choice.options:
                cost = Cost(0, 0)
                for probe in probes:
                    module = operation_module(option, probe.channels) if probe.kind == choice.cell else None
                    if module is not None:
                        cost += network_cost(module, probe.shape)  # type: ignore[arg-type]
                costs.append(cost)
    return OptionCosts(base, tuple(costs))


def architecture_cost(arch: Architecture, *, sizes: Config, input_shape: Shape, classes: int) -> Cost:
    """Return parameters and MACs of an architecture's plain network without building it."""
    costs = option_costs(arch.space, sizes, input_shape, classes)
    return sum((costs.options[g] for g in arch.columns), costs.base)


def latency_ms(net: nn.Module, input_shape: Shape, *, batch: int = 1, repeats: int = 20) -> float:
    """Return the median time of one forward pass in milliseconds, on the network's own device, after three warm-ups.

    A measurement: it depends on the machine and on what else runs there.
    """
    parameter = next(net.parameters())
    images = torch.zeros(batch, *input_shape, device=parameter.device, dtype=parameter.dtype)
    training = net.training
    net.eval()
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 3):
            start = time.perf_counter()
            net(images)
            if parameter.device.type == "cuda":
                torch.cuda.synchronize(parameter.device)
            times.append(1e3 * (time.perf_counter() - start))
    net.train(training)
    return statistics.median(times[3:])


def cost_limits(
    space: Space,
    *,
    sizes: Config,
    input_shape: Shape,
    classes: int,
    params: int | None = None,
    macs: int | None = None,
    latency: tuple[float, float, tuple[float, ...]] | None = None,
) -> Limits:
    """Return the limits on an architecture's plain network.

    Args:
        space: the space.
        sizes: macro sizes.
        input_shape: (channels, height, width) of an image.
        classes: number of classes.
        params: most parameters; None: no limit.
        macs: most MACs for one image; None: no limit.
        latency: most milliseconds, those of the network without cells, and those of each flat option; None: no limit.
    """
    costs = option_costs(space, sizes, input_shape, classes)
    rows: list[tuple[str, float, float, tuple[float, ...]]] = []
    if params is not None:
        rows.append(("params", params, costs.base.params, tuple(float(c.params) for c in costs.options)))
    if macs is not None:
        rows.append(("macs", macs, costs.base.macs, tuple(float(c.macs) for c in costs.options)))
    if latency is not None:
        rows.append(("latency_ms", *latency))
    names, budgets, base, table = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Limits(names, budgets, base, table)
