"""What a plain network's code says of its layers: whose inputs can be gated, who makes them, which norms fold away."""

import inspect
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import fx, nn
from torch.nn import functional as F

__all__ = [
    "Chain",
    "Sourced",
    "gateable",
    "graph_of",
    "is_depthwise",
    "norm_pairs",
    "producers",
    "segments_of",
    "trace",
]

CHANNELWISE = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.Hardswish, nn.Identity,
    nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
"""Modules that treat every channel by itself."""
CHANNELWISE_FUNCTIONS = {
    torch.relu, F.relu, F.relu6, F.silu, F.gelu, F.leaky_relu, F.hardswish, F.dropout, F.dropout2d, F.max_pool2d,
    F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
}  # fmt: skip
"""Functions that do."""


@runtime_checkable
class Sourced(Protocol):
    """A network that says itself which layers are gated, and from how many sources their inputs come."""

    def segments(self) -> Mapping[str, Sequence[int]]:
        """Return, per gated layer, how many input channels come from each source; they lie side by side."""


class Chain(NamedTuple):
    """What lies in front of a gated layer and nobody else reads.

    Attributes:
        modules: names of the modules that have channels, in the order of the data.
        produced: whether the first of them makes the channels, so that nothing is left in front of them.
    """

    modules: tuple[str, ...]
    produced: bool


def gateable(net: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers whose input channels are gated, by name.

    All convolutions of one group and linear layers, unless the network names them itself (`Sourced`).
    """
    if isinstance(net, Sourced):
        return {name: net.get_submodule(name) for name in net.segments()}  # type: ignore[misc]
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }


def segments_of(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return, per gated layer, how many of its input channels come from each source: from one, unless it is said."""
    if isinstance(net, Sourced):
        return {name: tuple(sizes) for name, sizes in net.segments().items()}
    return {name: (layer.weight.shape[1],) for name, layer in gateable(net).items()}


def graph_of(net: nn.Module) -> fx.Graph | None:
    """Return what `trace` does; None where the network's code cannot be traced."""
    try:
        return trace(net)
    except Exception:  # whatever the user's code does with a proxy
        return None


def trace(net: nn.Module) -> fx.Graph:
    """Return the network's graph in eval mode, its layers as calls.

    What `forward` takes beside the images is as its defaults are. Raises whatever its code does when it meets a proxy.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        others = list(inspect.signature(net.forward).parameters.values())[1:]
        given = {p.name: p.default for p in others if p.default is not p.empty}
        graph = fx.Tracer().trace(net, concrete_args=given)
        for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
            _erase(graph, node)
        return graph
    finally:
        for module, mode in modes:
            module.training = mode


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Take a call out of a graph, with all that depend on it: checks that an argument is what was traced."""
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def producers(net: nn.Module) -> dict[str, Chain]:
    """Return, per gated layer, what only it reads: back to the layer that makes its channels, or to where they part.

    Norms, activations, poolings and depthwise convolutions are passed. Empty where the network's code cannot be traced;
    then only weights of the gated layers themselves are cut.
    """
    graph = graph_of(net)
    if graph is None:
        return {}
    layers, calls = gateable(net), [node.target for node in graph.nodes if node.op == "call_module"]
    once = {str(target) for target in calls if calls.count(target) == 1}
    modules, chains = dict(net.named_modules()), {}
    for node in graph.nodes:
        if node.op == "call_module" and node.target in layers and node.target in once:
            chain = _chain(modules, node, once)
            if chain.modules:
                chains[str(node.target)] = chain
    return chains


def _chain(modules: dict[str, nn.Module], node: fx.Node, once: set[str]) -> Chain:
    """Return what lies in front of the layer that `node` calls."""
    chain: list[str] = []
    before = node.args[0]
    while isinstance(before, fx.Node) and len(before.users) == 1:
        name = str(before.target)
        if before.op == "call_module" and name in once:
            module = modules[name]
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
                alike = isinstance(module, nn.Linear) == isinstance(modules[str(node.target)], nn.Linear)
                return Chain((name, *chain), True) if alike else Chain(tuple(chain), False)
            if is_depthwise(module) or isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                chain.insert(0, name)
            elif not isinstance(module, CHANNELWISE):
                break
        elif not (before.op == "call_function" and before.target in CHANNELWISE_FUNCTIONS):
            break
        before = before.args[0] if before.args else None
    return Chain(tuple(chain), False)


def is_depthwise(module: nn.Module) -> bool:
    """Return whether a module is a convolution of every channel by itself."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels


def norm_pairs(net: nn.Module) -> list[tuple[str, str]]:
    """Return (convolution, batch norm) by name wherever the norm alone reads the convolution; both called once."""
    graph = graph_of(net)
    if graph is None:
        return []
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    modules, pairs = dict(net.named_modules()), []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        made = before.op == "call_module" and isinstance(modules[before.target], nn.Conv2d) and len(before.users) == 1
        if made and calls.count(node.target) == calls.count(before.target) == 1:
            pairs.append((str(before.target), str(node.target)))
    return pairs
