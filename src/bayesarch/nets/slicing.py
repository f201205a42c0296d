"""Smaller networks from masks: weights are cut, not multiplied by zero, and the output stays the same.

A convolution whose input channels are dropped loses those slices of its weight. Where these channels come straight
from one other layer, through norms, activations, poolings and depthwise convolutions that only it reads, that layer's
filters and norms go as well; otherwise the kept channels are picked from the shared tensor, in front of whatever norms
and depthwise convolutions the layer has for itself.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bayesarch.nets.tracing import Chain, is_depthwise, producers

__all__ = ["PickChannels", "bare", "slice_inputs"]


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


@torch.no_grad()
def slice_inputs(net: nn.Module, kept: Mapping[str, Tensor], chains: Mapping[str, Chain] | None = None) -> nn.Module:
    """Cut a network down to the channels kept, in place, and return it; its output is that of masked inputs.

    A layer that keeps no channel keeps its first with weights of zero: it then gives its bias and nothing else.

    Args:
        net: a plain network; nothing but its layers is changed.
        kept: for layers of `gateable(net)`, which input channels are kept, bool, shape (C,).
        chains: `producers(net)`, where they are known already.
    """
    chains = producers(net) if chains is None else chains
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
        chain = chains.get(name, Chain((), False))
        _cut_outputs(net, chain.modules, index)
        if not chain.produced:
            _pick(net, chain.modules[0] if chain.modules else name, index)
    return net


def _pick(net: nn.Module, name: str, index: Tensor) -> None:
    """Have the module of that name read only some channels."""
    parent, _, last = name.rpartition(".")
    owner = net.get_submodule(parent)
    setattr(owner, last, PickChannels(getattr(owner, last), index))


def _cut_outputs(net: nn.Module, names: Sequence[str], index: Tensor) -> None:
    """Keep only the outputs `index` of a layer, and of the norms and depthwise convolutions behind it."""
    for name in names:
        module = bare(net.get_submodule(name))
        for key in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(module, key, None)
            if value is not None:
                cut = value[index].contiguous()
                setattr(module, key, nn.Parameter(cut) if isinstance(value, nn.Parameter) else cut)
        if is_depthwise(module):
            module.__dict__.update(groups=len(index), in_channels=len(index))
        for key in ("num_features", "out_features", "out_channels"):
            if hasattr(module, key):
                setattr(module, key, len(index))


def bare(module: nn.Module) -> nn.Module:
    """Return the layer itself, without what picks its channels."""
    return module.layer if isinstance(module, PickChannels) else module
