"""Which weights of a network leave together: units, found by following channels through its code.

A unit is a set of channels that can only go as one: a layer's output channel, the norms behind it, the slice of every
layer that reads it, and whatever is added to it on the way. Channels are followed through residual additions,
concatenations, depthwise and grouped convolutions, poolings and the flattening in front of a linear layer. Where the
code does something that is not known here, the channels that enter and leave it stay whole, and the place is named.
"""

import copy
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from bayesarch.nets.macs import macs_by_parameter
from bayesarch.nets.skeletons import Shape
from bayesarch.nets.slicing import PickChannels
from bayesarch.nets.tracing import CHANNELWISE, CHANNELWISE_FUNCTIONS, graph_of

__all__ = ["Axis", "Units", "cut_units", "held_inputs", "mask_units", "pick_inputs", "units_of"]

SAME_MODULES = (
    *CHANNELWISE, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Mish, nn.Upsample,
    nn.ZeroPad2d,
)  # fmt: skip
"""Modules that treat every channel by itself and have no weights, beside norms."""
SAME_FUNCTIONS = {
    *CHANNELWISE_FUNCTIONS, torch.sigmoid, torch.tanh, F.sigmoid, F.tanh, F.elu, F.softplus, F.mish, F.interpolate,
    torch.abs, torch.sqrt, torch.exp,
}  # fmt: skip
SAME_METHODS = {"relu", "sigmoid", "tanh", "contiguous", "clone", "float", "abs", "to"}
PAIRWISE = {
    operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv, torch.add, torch.mul,
    torch.sub, torch.maximum, torch.minimum,
}  # fmt: skip
PAIRWISE_METHODS = {"add", "add_", "mul", "mul_", "sub"}
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


@dataclass
class _Flow:
    """A tensor's channels: their provisional numbers, and the axis they lie along."""

    ids: np.ndarray
    dim: int


class _Follower:
    """Goes through a traced network once and joins what must stay together."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.parent: list[int] = []
        self.stuck: set[int] = set()
        self.axes: list[tuple[str, int, np.ndarray]] = []
        self.whole: dict[str, str] = {}
        self.baked: list[str] = []
        self.inputs: np.ndarray = np.zeros(0, dtype=np.int64)
        self._called: dict[str, tuple[_Flow, _Flow]] = {}

    def fresh(self, n: int) -> np.ndarray:
        start = len(self.parent)
        self.parent += range(start, start + n)
        return np.arange(start, start + n)

    def root(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            self.parent[self.root(i)] = self.root(j)

    def stop(self, where: str, why: str, flows: Sequence[_Flow | None]) -> None:
        """Leave channels whole."""
        touched = [flow for flow in flows if flow is not None]
        if touched:
            self.whole.setdefault(where, why)
        for flow in touched:
            self.stuck.update(flow.ids.tolist())

    def axis(self, layer: str, key: str, dim: int, ids: np.ndarray) -> None:
        owner = self.net.get_submodule(layer)
        if getattr(owner, key, None) is not None:
            self.axes.append((f"{layer}.{key}" if layer else key, dim, ids))

    def module(self, node: fx.Node, flow: _Flow | None, shape: Sequence[int]) -> _Flow | None:
        """Return what leaves a module."""
        name, module = str(node.target), self.net.get_submodule(str(node.target))
        if flow is None:
            self.stop(name, "what enters it was not followed", [])
            return self.unknown(name, f"a {type(module).__name__} on what was not followed", [], shape)
        if name in self._called:  # used twice: what entered and left the first time enters and leaves again
            before, after = self._called[name]
            if len(before.ids) == len(flow.ids):
                self.join(before.ids, flow.ids)
                if before is after:
                    return flow
                return _Flow(after.ids, after.dim)
            return self.unknown(name, "used twice in different ways", [flow, before, after], shape)
        out = self._module(name, module, flow, shape)
        if out is not None and any(True for _ in module.parameters()):
            self._called[name] = (flow, out)
        return out

    def _module(self, name: str, module: nn.Module, flow: _Flow, shape: Sequence[int]) -> _Flow | None:
        if isinstance(module, CONVOLUTIONS) and flow.dim == 1:
            return _Flow(self._convolution(name, module, flow.ids), 1)
        if isinstance(module, nn.Linear) and flow.dim == len(shape) - 1:
            self.axis(name, "weight", 1, flow.ids)
            out = self.fresh(module.out_features)
            self.axis(name, "weight", 0, out)
            self.axis(name, "bias", 0, out)
            return _Flow(out, flow.dim)
        if isinstance(module, NORMS) and flow.dim == 1:
            for key in ("weight", "bias", "running_mean", "running_var"):
                self.axis(name, key, 0, flow.ids)
            return flow
        if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
            return self._flattened(flow, shape)
        if isinstance(module, SAME_MODULES) and flow.dim == 1:
            return flow
        if isinstance(module, nn.PReLU) and module.num_parameters > 1 and flow.dim == 1:
            self.axis(name, "weight", 0, flow.ids)
            return flow
        return self.unknown(name, f"a {type(module).__name__}", [flow], shape)

    def _convolution(self, name: str, module: Any, ids: np.ndarray) -> np.ndarray:
        groups, outs = module.groups, module.out_channels
        if groups == 1:
            self.axis(name, "weight", 1, ids)
            out = self.fresh(outs)
        elif groups == module.in_channels:
            out = np.repeat(ids, outs // groups)
        else:  # one place of every group goes with the same place of all others, so that the groups stay equal
            inside = ids.reshape(groups, -1)
            for other in inside[1:]:
                self.join(other, inside[0])
            self.axis(name, "weight", 1, inside[0])
            out = np.tile(self.fresh(outs // groups), groups)
        self.axis(name, "weight", 0, out)
        self.axis(name, "bias", 0, out)
        return out

    def _flattened(self, flow: _Flow, shape: Sequence[int]) -> _Flow:
        if len(flow.ids) < shape[1] and set(flow.ids.tolist()) <= set(self.inputs.tolist()):
            flow = _Flow(self.fresh(shape[1]), 1)  # every pixel is an input of its own
            self.inputs = np.concatenate([self.inputs, flow.ids])
        return _Flow(np.repeat(flow.ids, shape[1] // len(flow.ids)), 1)

    def unknown(self, where: str, why: str, flows: Sequence[_Flow | None], shape: Sequence[int]) -> _Flow | None:
        """Return channels that may not leave, after what entered may not either."""
        self.stop(where, why, flows)
        if len(shape) < 2:
            return None
        ids = self.fresh(shape[1])
        self.stuck.update(ids.tolist())
        return _Flow(ids, 1)

    def pair(self, where: str, flows: Sequence[_Flow | None], shape: Sequence[int]) -> _Flow | None:
        """Return what leaves a sum, a product, or the like."""
        tensors = [flow for flow in flows if flow is not None]
        if len(tensors) == 1:
            return tensors[0]
        if len({flow.dim for flow in tensors}) != 1:
            return self.unknown(where, "tensors whose channels lie along different axes meet", tensors, shape)
        widest = max(tensors, key=lambda flow: len(flow.ids))
        for flow in tensors:
            if flow is widest or len(flow.ids) == 1:
                continue
            if len(flow.ids) != len(widest.ids):
                return self.unknown(where, "tensors of different sizes meet", tensors, shape)
            self.join(flow.ids, widest.ids)
        return widest

    def joined(self, where: str, flows: Sequence[_Flow | None], dim: int, shape: Sequence[int]) -> _Flow | None:
        """Return what leaves a concatenation."""
        tensors = [flow for flow in flows if flow is not None]
        if len(tensors) < len(flows) or len({flow.dim for flow in tensors}) != 1:
            return self.unknown(where, "not everything that is concatenated was followed", tensors, shape)
        if dim % len(shape) == tensors[0].dim:
            return _Flow(np.concatenate([flow.ids for flow in tensors]), tensors[0].dim)
        return self.pair(where, flows, shape)

    def viewed(self, node: fx.Node, flow: _Flow, before: Sequence[int], shape: Sequence[int]) -> _Flow | None:
        """Return what leaves a view: flattened features, the same shape, or something unknown."""
        if tuple(before) == tuple(shape):
            return flow
        if flow.dim == 1 and len(shape) == 2 and shape[0] == before[0]:
            if any(isinstance(size, int) and size not in (-1, 1) for size in node.args[1:]) or _fixed(node.args[1:]):
                self.baked.append(node.name)
            return self._flattened(flow, shape)
        return self.unknown(node.name, f"a {node.target} to a shape that is not followed", [flow], shape)

    def chunked(self, flow: _Flow, parts: int, dim: int, ndim: int) -> tuple[_Flow, ...] | None:
        """Return the halves of a chunk; along the channels they lose the same places, so that they stay equal."""
        if dim % ndim != flow.dim:
            return tuple(_Flow(flow.ids, flow.dim) for _ in range(parts))
        if len(flow.ids) % parts:
            return None
        pieces = np.split(flow.ids, parts)
        for piece in pieces[1:]:
            self.join(piece, pieces[0])
        return tuple(_Flow(piece, flow.dim) for piece in pieces)

    def units(self, net: nn.Module, macs: Mapping[str, int]) -> Units:
        roots = np.array([self.root(i) for i in range(len(self.parent))], dtype=np.int64)
        used, number = np.unique(roots, return_inverse=True)
        unit = torch.from_numpy(number.astype(np.int64))
        free = torch.zeros(len(used), dtype=torch.bool)
        for _, _, ids in self.axes:  # what no weight belongs to has nothing to lose
            free[unit[torch.from_numpy(ids)]] = True
        if self.stuck:
            free[unit[sorted(self.stuck)]] = False
        return Units(
            count=len(used),
            axes=tuple(Axis(name, dim, unit[torch.from_numpy(ids)]) for name, dim, ids in self.axes),
            free=free,
            inputs=unit[torch.from_numpy(self.inputs)].unique(),
            whole=dict(self.whole),
            baked=tuple(self.baked),
            macs=dict(macs),
            shapes={name: tuple(p.shape) for name, p in net.named_parameters()},
        )


def _fixed(sizes: Sequence[Any]) -> bool:
    """Return whether a view's sizes, given as a tuple, hold a number of features."""
    return any(isinstance(s, tuple | list) and any(isinstance(n, int) and n not in (-1, 1) for n in s) for s in sizes)


def units_of(net: nn.Module, input_shape: Shape) -> Units:
    """Return the units of a network; where its code cannot be traced, none may leave.

    Args:
        net: a plain network.
        input_shape: (channels, height, width) of an image; a network of features takes what its first layer takes.
    """
    graph, follower = graph_of(net), _Follower(net)
    names = {id(p): name for name, p in net.named_parameters()}
    macs = {names[key]: value for key, value in macs_by_parameter(net, input_shape).items()}
    if graph is None:
        follower.whole[""] = f"the code of {type(net).__name__} cannot be traced by torch.fx"
        return follower.units(net, macs)
    like = next(net.parameters())
    training = net.training
    net.eval()
    with torch.no_grad():
        ShapeProp(fx.GraphModule(net, graph)).propagate(
            torch.zeros(2, *input_shape, device=like.device, dtype=like.dtype)
        )
    net.train(training)
    flows: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        flows[node] = _flow(follower, node, flows)
    return follower.units(net, macs)


def _shape(node: Any) -> tuple[int, ...]:
    meta: Any = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(meta.shape) if hasattr(meta, "shape") else ()


def _flow(follower: _Follower, node: fx.Node, flows: Mapping[fx.Node, Any]) -> Any:
    """Return what is known of the channels that leave a call."""
    shape = _shape(node)
    entering = [flows.get(arg) for arg in node.all_input_nodes]
    tensors = [flow for flow in entering if isinstance(flow, _Flow)]
    if node.op == "placeholder":
        ids = follower.fresh(shape[1])
        follower.inputs = np.concatenate([follower.inputs, ids])
        return _Flow(ids, 1)
    if node.op == "output":
        follower.stuck.update(i for flow in tensors for i in flow.ids.tolist())
        return None
    if node.op == "call_module":
        single = len(node.all_input_nodes) == 1
        return follower.module(node, tensors[0] if single and tensors else None, shape)
    if node.op == "get_attr":
        return None
    known = _call(follower, node, flows, shape)
    if known is not _UNKNOWN:
        return known
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return follower.unknown(node.name, f"a call of {what}", tensors, shape)


_UNKNOWN = object()


def _call(follower: _Follower, node: fx.Node, flows: Mapping[fx.Node, Any], shape: Sequence[int]) -> Any:
    """Return what leaves a function or a method, or `_UNKNOWN`."""
    first = flows.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
    if node.target in ("size", getattr) and not shape:
        return None
    if node.target is operator.getitem:
        return _item(first, node.args[1])
    if node.target in PAIRWISE or node.target in PAIRWISE_METHODS:
        nodes = [arg for arg in node.args if isinstance(arg, fx.Node) and (_shape(arg) or flows.get(arg))]
        if any(not isinstance(flows.get(arg), _Flow) for arg in nodes):
            return _UNKNOWN  # a bare parameter takes part
        return follower.pair(node.name, [flows[arg] for arg in nodes], shape)
    if node.target is torch.cat:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        parts = node.args[0]
        assert isinstance(parts, list | tuple)
        assert isinstance(dim, int)
        return follower.joined(node.name, [flows.get(part) for part in parts], dim, shape)  # type: ignore[arg-type]
    if not isinstance(first, _Flow):
        return _UNKNOWN if shape else None
    return _on_one(follower, node, first, _shape(node.args[0]), shape)


def _on_one(follower: _Follower, node: fx.Node, flow: _Flow, before: Sequence[int], shape: Sequence[int]) -> Any:
    """Return what leaves a call on one followed tensor, or `_UNKNOWN`."""
    target, rest = node.target, [arg for arg in node.args[1:] if not isinstance(arg, fx.Node)]
    if (target in SAME_FUNCTIONS or target in SAME_METHODS) and len(before) == len(shape):
        return flow if flow.dim == 1 and before[1] == shape[1] else _UNKNOWN
    if target is F.pad and before[flow.dim] == shape[flow.dim]:
        return flow
    if target in (torch.flatten, "flatten") and flow.dim == 1 and len(shape) == 2 and shape[0] == before[0]:
        return follower._flattened(flow, shape)
    if target in ("view", "reshape", torch.reshape):
        return follower.viewed(node, flow, before, shape)
    if target in (torch.mean, "mean", torch.sum, "sum", torch.amax, "amax"):
        return _reduced(node, flow, before, shape)
    if target in (torch.chunk, "chunk"):
        dim = node.kwargs.get("dim", rest[1] if len(rest) > 1 else 0)
        chunked = follower.chunked(flow, rest[0], dim, len(before))  # type: ignore[arg-type]
        return _UNKNOWN if chunked is None else chunked
    return _UNKNOWN


def _reduced(node: fx.Node, flow: _Flow, before: Sequence[int], shape: Sequence[int]) -> Any:
    """Return what leaves a mean or a sum over other axes than the channels'."""
    over: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    if over is None:
        return _UNKNOWN
    axes: set[int] = {d % len(before) for d in ([over] if isinstance(over, int) else over)}
    if flow.dim in axes:
        return _UNKNOWN
    gone = 0 if len(shape) == len(before) else sum(d < flow.dim for d in axes)
    return _Flow(flow.ids, flow.dim - gone)


def _item(first: Any, index: Any) -> Any:
    """Return what leaves an index: a part of a tuple, or a tensor with all its channels."""
    if isinstance(first, tuple) and isinstance(index, int):
        return first[index]
    if first is None:
        return None
    if isinstance(first, _Flow) and isinstance(index, tuple) and all(isinstance(part, slice) for part in index):
        whole = len(index) <= first.dim or index[first.dim] in (slice(None), slice(0, len(first.ids)))
        whole = whole or index[first.dim] == slice(None, len(first.ids))
        return first if whole else _UNKNOWN
    return _UNKNOWN


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
