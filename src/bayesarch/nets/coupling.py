"""Which weights of a network leave together, and the network without them.

A unit is a set of channels that can only go as one: a layer's output channel, the norms behind it, the slice of every
layer that reads it, and whatever is added to it on the way. `nets/following.py` finds them.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx, nn

from bayesarch.nets.slicing import PickChannels
from bayesarch.nets.tracing import graph_of

__all__ = ["CONVOLUTIONS", "NORMS", "Axis", "Units", "cut_units", "held_inputs", "mask_units", "pick_inputs"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Axis:
    """One axis of one tensor, whose places belong to units.

    Attributes:
        name: of the parameter or buffer.
        dim: which axis.
        units: the unit of each place, int64, shape (size of the axis,).
    """

    name: str
    dim: int
    units: Tensor


@dataclass(frozen=True)
class Units:
    """The units of a network.

    Attributes:
        count: how many, U.
        axes: where their weights are.
        free: which may leave, bool, shape (U,); outputs of the network and what is left whole may not.
        inputs: the units that are the network's input channels or features, int64; `cut_units` leaves their slices in
            place, as zeros, and `pick_inputs` takes them away.
        whole: what could not be followed, by place in the network, with the reason.
        baked: calls in the traced code whose sizes are written into it, so that only the traced form can be cut.
    """

    count: int
    axes: tuple[Axis, ...]
    free: Tensor
    inputs: Tensor
    whole: Mapping[str, str]
    baked: tuple[str, ...] = ()
    macs: Mapping[str, int] = field(default_factory=dict)
    """MACs of every weight of the whole network, by parameter name."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of all parameters of the whole network."""
    uses: Mapping[str, float] = field(default_factory=dict)
    """How often a layer's parameters are used on one image, over the average of all weights of the whole network; by
    parameter name. Those of norms are not in it."""

    def memberships(self, name: str) -> list[Tensor]:
        """Return the units of a tensor's weights, one index for each axis that has any, broadcasting to its shape."""
        mine = [axis for axis in self.axes if axis.name == name]
        ndim = len(self.shapes[name])
        return [axis.units.view([-1 if d == axis.dim else 1 for d in range(ndim)]) for axis in mine]

    def standing(self, keep: Tensor) -> Tensor:
        """Return `keep` with what a network needs to run: no axis of a tensor may lose all its places, shape (U,)."""
        stays = keep.cpu().clone()
        for axis in self.axes:
            if not bool(stays[axis.units].any()):
                stays[axis.units[0]] = True
        return stays

    def after(self, keep: Tensor) -> "Units":
        """Return the units of the network that `cut_units` leaves, under the numbers they had.

        Args:
            keep: which units stay, bool, shape (U,).
        """
        stays = self.standing(keep)
        stays[self.inputs] = True
        shares = self._shares(stays)
        axes, shapes = [], {name: list(shape) for name, shape in self.shapes.items()}
        for axis in self.axes:
            left = axis.units[stays[axis.units]]
            axes.append(Axis(axis.name, axis.dim, left))
            if axis.name in shapes:
                shapes[axis.name][axis.dim] = len(left)
        return replace(
            self,
            axes=tuple(axes),
            macs={name: round(macs * shares[name]) for name, macs in self.macs.items()},
            shapes={name: tuple(shape) for name, shape in shapes.items()},
        )

    def present(self) -> Tensor:
        """Return which units have weights here, bool, shape (U,)."""
        found = torch.zeros(self.count, dtype=torch.bool)
        for axis in self.axes:
            found[axis.units] = True
        return found

    def cost(self, keep: Tensor) -> tuple[int, int]:
        """Return parameters and MACs (of one image) of the network that is left.

        Args:
            keep: which units stay, bool, shape (U,).
        """
        shares = self._shares(self.standing(keep))
        params = sum(round(math.prod(shape) * shares[name]) for name, shape in self.shapes.items())
        return params, sum(round(macs * shares[name]) for name, macs in self.macs.items())

    def _shares(self, keep: Tensor) -> dict[str, float]:
        shares = dict.fromkeys(self.shapes, 1.0)
        for axis in self.axes:
            if axis.name in shares:
                shares[axis.name] *= float(keep[axis.units].double().mean())
        return shares


@torch.no_grad()
def mask_units(net: nn.Module, units: Units, keep: Tensor) -> nn.Module:
    """Set the weights of units that leave to zero, in place, and return the network.

    Args:
        net: the network that `units` are of.
        units: its units.
        keep: which stay, bool, shape (U,).
    """
    parameters = dict(net.named_parameters())
    for axis in units.axes:
        if axis.name in parameters:
            p = parameters[axis.name]
            shape = [-1 if d == axis.dim else 1 for d in range(p.ndim)]
            p.mul_(keep[axis.units].to(p.device, p.dtype).view(shape))
    return net


@torch.no_grad()
def cut_units(net: nn.Module, units: Units, keep: Tensor) -> nn.Module:
    """Return a copy of a network without the units that leave; its output is that of the masked one.

    It is of the same class, unless sizes of features are written into the network's code: then the traced code is cut.

    Args:
        net: the network that `units` are of.
        units: its units.
        keep: which stay, bool, shape (U,); an axis that would lose everything keeps its first place, as zeros.
    """
    small = mask_units(copy.deepcopy(net), units, keep)
    stays = units.standing(keep)
    stays[units.inputs] = True
    for axis in units.axes:
        owner_name, _, key = axis.name.rpartition(".")
        owner = small.get_submodule(owner_name)
        value = getattr(owner, key)
        index = stays[axis.units].nonzero().flatten().to(value.device)
        part = value.index_select(axis.dim, index).contiguous()
        setattr(owner, key, nn.Parameter(part, value.requires_grad) if isinstance(value, nn.Parameter) else part)
    for module in small.modules():
        _resize(module)
    return _unbaked(small, net, units) if units.baked else small


def held_inputs(net: nn.Module, units: Units, keep: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
    """Return weights that read inputs which have left, each with what holds them at zero: 1 where a weight stays.

    Args:
        net: what `cut_units` left.
        units: its units (`Units.after`).
        keep: which stay, bool, shape (U,).
    """
    parameters, held = dict(net.named_parameters()), []
    ours = torch.zeros(units.count, dtype=torch.bool)
    ours[units.inputs] = True
    for axis in units.axes:
        p = parameters.get(axis.name)
        if p is not None and bool((ours & ~keep)[axis.units].any()):
            shape = [-1 if d == axis.dim else 1 for d in range(p.ndim)]
            held.append((p, keep[axis.units].to(p.device, p.dtype).view(shape)))
    return held


@torch.no_grad()
def pick_inputs(net: nn.Module, units: Units, keep: Tensor) -> nn.Module:
    """Have every layer that reads the network's inputs read those alone that stay, in place; return the network.

    Args:
        net: what `cut_units` left.
        units: its units (`Units.after`).
        keep: which stay, bool, shape (U,).
    """
    ours = torch.zeros(units.count, dtype=torch.bool)
    ours[units.inputs] = True
    for axis in units.axes:
        name, _, key = axis.name.rpartition(".")
        index = units.standing(keep)[axis.units].nonzero().flatten()
        if key != "weight" or axis.dim != 1 or len(index) == len(axis.units) or not bool(ours[axis.units].all()):
            continue
        layer = net.get_submodule(name)
        if not isinstance(layer, nn.Linear | nn.Conv2d) or getattr(layer, "groups", 1) > 1:
            continue
        layer.weight = nn.Parameter(layer.weight[:, index.to(layer.weight.device)].contiguous())
        _resize(layer)
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, PickChannels(layer, index.to(layer.weight.device)))
    return net


def _resize(module: nn.Module) -> None:
    """Make a layer's sizes those of its weights."""
    if isinstance(module, CONVOLUTIONS):
        outs, inside = module.weight.shape[:2]
        if module.groups == module.in_channels and module.groups > 1:
            module.groups = outs * module.groups // module.out_channels
        module.out_channels, module.in_channels = outs, inside * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, NORMS):
        like = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if like is None else len(like)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _unbaked(small: nn.Module, net: nn.Module, units: Units) -> nn.Module:
    """Return a cut network whose views of fixed sizes flatten whatever they get."""
    graph = graph_of(net)
    assert graph is not None
    for node in graph.nodes:
        if node.name in units.baked:
            node.target, node.args, node.kwargs = "flatten", (node.args[0], 1), {}
            node.op = "call_method"
    graph.lint()
    return fx.GraphModule(small, graph, type(net).__name__)
