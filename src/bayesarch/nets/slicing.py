"""Smaller networks from masks: weights are cut, not multiplied by zero, and the output stays the same.

A convolution whose input channels are dropped loses those slices of its weight. Where these channels come straight
from one other layer, through norms, activations, poolings and depthwise convolutions that only it reads, that layer's
filters and norms go as well; otherwise the kept channels are picked from the shared tensor.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

__all__ = ["PickChannels", "gateable", "producers", "slice_inputs"]

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


class PickChannels(nn.Module):
    """A layer that reads only some channels of its input.

    Args:
        layer: the layer, its weight already cut.
        index: which channels it reads, ascending.
    """

    def __init__(self, layer: nn.Module, index: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.index: Tensor
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output on the channels it reads: dimension 1, the last one for a linear layer."""
        dim = -1 if isinstance(self.layer, nn.Linear) else 1
        out: Tensor = self.layer(x.index_select(dim, self.index))
        return out


def gateable(net: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers whose input channels can be gated, by name: convolutions of one group, and linear layers."""
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }


def producers(net: nn.Module) -> dict[str, list[str]]:
    """Return, per gated layer that alone reads another layer's output, what lies between: producer first.

    [producer, norm or depthwise convolution, ...], names of modules that have channels. Empty where the network's
    code cannot be traced; then only weights of the gated layers themselves are cut.
    """
    try:
        graph = fx.Tracer().trace(net)
    except Exception:
        return {}
    layers, calls = gateable(net), [node.target for node in graph.nodes if node.op == "call_module"]
    once = {str(target) for target in calls if calls.count(target) == 1}
    chains = {}
    for node in graph.nodes:
        if node.op == "call_module" and node.target in layers and node.target in once:
            chain = _chain(dict(net.named_modules()), node, layers, once)
            if chain:
                chains[str(node.target)] = chain
    return chains


def _chain(modules: dict[str, nn.Module], node: fx.Node, layers: Mapping[str, nn.Module], once: set[str]) -> list[str]:
    """Return what lies between a layer and its producer, the producer first; empty where the channels are shared."""
    chain: list[str] = []
    before = node.args[0]
    while isinstance(before, fx.Node) and len(before.users) == 1:
        name = str(before.target)
        if before.op == "call_module" and name in once:
            module = modules[name]
            if name in layers:
                alike = isinstance(module, nn.Linear) == isinstance(layers[str(node.target)], nn.Linear)
                return [name, *chain] if alike else []
            if not (_is_depthwise(module) or isinstance(module, CHANNELWISE)):
                return []
            if _is_depthwise(module) or isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                chain.insert(0, name)
        elif not (before.op == "call_function" and before.target in CHANNELWISE_FUNCTIONS):
            return []
        before = before.args[0] if before.args else None
    return []


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels


@torch.no_grad()
def slice_inputs(net: nn.Module, kept: Mapping[str, Tensor]) -> nn.Module:
    """Cut a network down to the channels kept, in place, and return it; its output is that of masked inputs.

    A layer that keeps no channel keeps its first with weights of zero: it then gives its bias and nothing else.

    Args:
        net: a plain network; nothing but its layers is changed.
        kept: for layers of `gateable(net)`, which input channels are kept, bool, shape (C,).
    """
    chains = producers(net)
    for name, mask in kept.items():
        if bool(mask.all()):
            continue
        layer = net.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        empty = not bool(mask.any())
        index = torch.zeros(1, dtype=torch.long) if empty else mask.cpu().nonzero().flatten()
        index = index.to(layer.weight.device)
        layer.weight = nn.Parameter(layer.weight[:, index].contiguous())
        if empty:
            layer.weight.zero_()
        if isinstance(layer, nn.Linear):
            layer.in_features = len(index)
        else:
            layer.in_channels = len(index)
        if name in chains:
            _cut_outputs(net, chains[name], index)
        else:
            parent, _, last = name.rpartition(".")
            setattr(net.get_submodule(parent), last, PickChannels(layer, index))
    return net


def _cut_outputs(net: nn.Module, chain: list[str], index: Tensor) -> None:
    """Keep only the outputs `index` of a producer and of the norms and depthwise convolutions behind it."""
    for name in chain:
        module = net.get_submodule(name)
        if isinstance(module, PickChannels):
            module = module.layer
        for key in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(module, key, None)
            if value is not None:
                cut = value[index].contiguous()
                setattr(module, key, nn.Parameter(cut) if isinstance(value, nn.Parameter) else cut)
        if _is_depthwise(module):
            module.__dict__.update(groups=len(index), in_channels=len(index))
        for key in ("num_features", "out_features", "out_channels"):
            if hasattr(module, key):
                setattr(module, key, len(index))
