"""Many masks of one network: what each gives and what each costs, without building it.

A mask on a layer's input is a mask on its weights, and norms behind a convolution can be folded into it once for all
masks. Costs are counted from how many channels go in and out; they equal those of the network that `slice_inputs` cuts.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bayesarch.nets.macs import macs_by_parameter
from bayesarch.nets.skeletons import Shape
from bayesarch.nets.tracing import gateable, norm_pairs, producers, segments_of

__all__ = ["MaskCosts", "MaskedNetwork", "fold_norms"]


@torch.no_grad()
def fold_norms(net: nn.Module, pairs: Sequence[tuple[str, str]]) -> nn.Module:
    """Fold batch norms into the convolutions before them, in place, and return the network, for evaluation alone.

    Args:
        net: a plain network in eval mode; its output stays the same up to rounding.
        pairs: `norm_pairs` of the network, or of the one that it was cut from.
    """
    for conv_name, norm_name in pairs:
        conv, norm = (net.get_submodule(name) for name in (conv_name, norm_name))
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.affine:
            scale = scale * norm.weight
        shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
        conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
        conv.bias = nn.Parameter(shift * scale if not norm.affine else shift * scale + norm.bias)
        parent, _, last = norm_name.rpartition(".")
        setattr(net.get_submodule(parent), last, nn.Identity())
    return net


class MaskedNetwork:
    """A copy of a network for scoring many masks one after another, in eval mode.

    Args:
        net: a plain network of its own, in eval mode; it is taken over and changed.
        dtype: of the computation; None: as it is. bf16 halves the time on machines that have it and rounds coarsely.
    """

    def __init__(self, net: nn.Module, *, dtype: torch.dtype | None = None) -> None:
        fold_norms(net.eval(), norm_pairs(net))
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if dtype is not None:
            self.net = self.net.to(dtype)
        self.dtype = next(self.net.parameters()).dtype
        self._layers = gateable(net)
        self._whole = {name: layer.weight.detach().clone() for name, layer in self._layers.items()}

    @torch.no_grad()
    def mask(self, kept: Mapping[str, Tensor]) -> None:
        """Drop input channels; `kept` says which stay, per gated layer, bool, shape (C,). Others are as they were."""
        for name, layer in self._layers.items():
            whole = self._whole[name]
            if name in kept:
                shape = (1, -1, *[1] * (whole.ndim - 2))
                torch.mul(whole, kept[name].to(whole.device, whole.dtype).view(shape), out=layer.weight)
            else:
                layer.weight.copy_(whole)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, K), fp32."""
        logits: Tensor = self.net(images.to(self.dtype))
        return logits.float()


class MaskCosts:
    """Parameters and MACs of masked networks, once cut, by counting.

    Args:
        net: the whole network.
        input_shape: (channels, height, width) of an image.
    """

    def __init__(self, net: nn.Module, input_shape: Shape) -> None:
        macs, chains = macs_by_parameter(net, input_shape), producers(net)
        segments = segments_of(net)
        self._starts = np.cumsum([0, *(sum(sizes) for sizes in segments.values())])
        index = {name: i for i, name in enumerate(segments)}
        makes = {chain.modules[0]: index[name] for name, chain in chains.items() if chain.produced}
        self.channels = int(self._starts[-1])
        self.params = sum(p.numel() for p in net.parameters())
        self.macs = sum(macs.values())
        # a gated layer has in x out kernels; what lies in a chain follows the layer that reads it
        self._size = np.array([sum(sizes) for sizes in segments.values()], dtype=np.int64)
        gated, modules = gateable(net), dict(net.named_modules())
        layers = list(gated.values())
        self._outs = np.array([layer.weight.shape[0] for layer in layers], dtype=np.int64)
        self._kernel = np.array([layer.weight[0, 0].numel() for layer in layers], dtype=np.int64)
        self._places = np.array([macs.get(id(layer.weight), 0) for layer in layers]) // (self._size * self._outs)
        self._reader = np.array([makes.get(name, -1) for name in index])
        side_params = np.zeros(len(index), dtype=np.int64)
        side_macs = np.zeros(len(index), dtype=np.int64)
        for name, chain in chains.items():
            for module in (modules[m] for m in chain.modules if m not in index):
                side_params[index[name]] += sum(p[0].numel() for p in module.parameters())
                if isinstance(module, nn.Conv2d | nn.Linear):
                    side_macs[index[name]] += macs.get(id(module.weight), 0) // module.weight.shape[0]
        for name, reader in makes.items():
            if name in gated and gated[name].bias is not None:
                side_params[reader] += 1
        self._side_params, self._side_macs = side_params, side_macs

    def of(self, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return parameters and MACs of each mask; masks are bool of shape (n, G), results int64 of shape (n,)."""
        kept = np.add.reduceat(masks.astype(np.int64), self._starts[:-1], axis=1)
        kept = np.maximum(kept, 1)  # a layer that keeps nothing keeps one channel of zeros
        outs = np.where(self._reader >= 0, kept[:, self._reader], self._outs)
        pairs = self._size * self._outs - kept * outs
        gone = self._size - kept
        params = self.params - (pairs * self._kernel).sum(1) - (gone * self._side_params).sum(1)
        macs = self.macs - (pairs * self._places).sum(1) - (gone * self._side_macs).sum(1)
        return params, macs
