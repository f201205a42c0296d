"""Channels followed through a network's code: what adds, joins or ties two of them makes them one unit.

Each channel gets a number when a layer makes it; numbers flow through the traced code as arrays (decision 19). What is
not known here freezes the channels that enter and leave it, and is named. To teach it a call, add to the tables.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from bayesarch.nets.coupling import CONVOLUTIONS, NORMS, Axis, Units
from bayesarch.nets.macs import macs_by_parameter
from bayesarch.nets.skeletons import Shape
from bayesarch.nets.tracing import CHANNELWISE, CHANNELWISE_FUNCTIONS, graph_of

__all__ = ["units_of"]

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
            uses=_uses(net, macs),
        )


def _uses(net: nn.Module, macs: Mapping[str, int]) -> dict[str, float]:
    """Return how often each layer's parameters are used, over all weights' average; a bias as often as its weight."""
    parameters = dict(net.named_parameters())
    average = sum(macs.values()) / max(sum(parameters[name].numel() for name in macs), 1)
    uses = {name: count / parameters[name].numel() / max(average, 1e-12) for name, count in macs.items()}
    biases = {name: f"{name.removesuffix('weight')}bias" for name in macs}
    return uses | {bias: uses[name] for name, bias in biases.items() if bias in parameters}


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
