"""What a network costs: parameters, MACs (one multiply and one add) and a measured latency.

Costs of cell spaces are additive: a base for the skeleton plus one term per picked option. `option_costs` finds the
terms by building one network with all options, so that all 15,625 cells of NAS-Bench-201 are priced in a moment;
`network_cost` prices a built network, and the two agree. A batch without images goes through our own networks, which
computes nothing; the meta device would do as well, but it loads torch's compiler.
"""

import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from bayesarch.config import Config
from bayesarch.nets.gated import NETWORKS, kept_by, network_of
from bayesarch.nets.macs import macs_by_parameter
from bayesarch.nets.plain import PlainNetwork, plain_trunk
from bayesarch.nets.skeletons import Shape
from bayesarch.nets.slicing import slice_inputs
from bayesarch.spaces import Architecture, Limits, Space

__all__ = [
    "Cost",
    "OptionCosts",
    "architecture_cost",
    "cost_limits",
    "latency_ms",
    "network_cost",
    "option_costs",
    "widest",
]


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


def network_cost(net: nn.Module, input_shape: Shape, *, images: int = 1) -> Cost:
    """Return parameters and MACs of a plain network for one image of `input_shape`; the network is not changed.

    Args:
        net: any module whose work is in `Conv2d` and `Linear`, on any device, the meta device included.
        input_shape: (channels, height, width).
        images: how many go through it, as in `macs_by_parameter`.
    """
    macs = macs_by_parameter(net, input_shape, images=images)
    return Cost(sum(p.numel() for p in net.parameters()), sum(macs.values()))


def _plain(space: Space, sizes: Config, input_shape: Shape, classes: int, options: Sequence[int]) -> PlainNetwork:
    with torch.random.fork_rng(devices=[]):
        return PlainNetwork(plain_trunk(space, sizes, input_shape, classes, options))


@lru_cache(maxsize=64)
def option_costs(space: Space, sizes: Config, input_shape: Shape, classes: int) -> OptionCosts:
    """Return the additive costs of a space's options in the network of `sizes`."""
    net = _plain(space, sizes, input_shape, classes, range(space.n_options))
    macs = macs_by_parameter(net, input_shape, images=0)
    if not space.additive:  # then at least what all of them together cost is known
        whole = Cost(sum(p.numel() for p in net.parameters()), sum(macs.values()))
        return OptionCosts(whole, (Cost(0, 0),) * space.n_options)
    owner: dict[int, int] = {}
    for layer, kind in zip(net.layers, net.kinds, strict=True):
        if kind is not None:
            for g in range(space.n_options):
                owner |= {id(p): g for p in layer.option_parameters(g)}  # type: ignore[operator]
    base, options = Cost(0, 0), [Cost(0, 0)] * space.n_options
    for p in net.parameters():
        cost = Cost(p.numel(), macs.get(id(p), 0))
        if id(p) in owner:
            options[owner[id(p)]] += cost
        else:
            base += cost
    return OptionCosts(base, tuple(options))


MANY = 64
"""Options above which pricing one architecture by itself is quicker than pricing all options first."""


@lru_cache(maxsize=1024)
def _alone(arch: Architecture, sizes: Config, input_shape: Shape, classes: int) -> Cost:
    return network_cost(_plain(arch.space, sizes, input_shape, classes, arch.columns), input_shape, images=0)


@lru_cache(maxsize=1024)
def _cut(arch: Architecture, sizes: Config, input_shape: Shape, classes: int) -> Cost:
    with torch.random.fork_rng(devices=[]):
        whole = network_of(arch.space, sizes, input_shape, classes)
    return network_cost(slice_inputs(whole, kept_by(arch)), input_shape)


def architecture_cost(arch: Architecture, *, sizes: Config, input_shape: Shape, classes: int) -> Cost:
    """Return parameters and MACs of an architecture's plain network."""
    if arch.space.skeleton in NETWORKS:
        return _cut(arch, sizes, input_shape, classes)
    if arch.space.n_options > MANY or not arch.space.additive:
        return _alone(arch, sizes, input_shape, classes)
    costs = option_costs(arch.space, sizes, input_shape, classes)
    return sum((costs.options[g] for g in arch.columns), costs.base)


def widest(macs: Callable[[int], int], most: int) -> int:
    """Return the largest number of channels whose MACs are at most `most`, or 1; `macs` grows with the channels."""
    above = 2
    while macs(above) <= most:
        above *= 2
    return max(1, bisect_right(range(above), most, lo=1, key=macs) - 1)


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
