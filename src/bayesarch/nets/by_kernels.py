"""What layers of a supernet's options give, by kernels of ours where there are some (`engine.fused`)."""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from bayesarch.nets.dense import fused_dense, is_dense
from bayesarch.nets.depthwise import depthwise, is_depthwise, is_point
from bayesarch.nets.kernels import (
    SIDES,
    Chain,
    Moments,
    Norm,
    Pair,
    Part,
    Rise,
    moments_of,
    norm_relu,
    separable_parts,
    sum_of,
    window_max,
)
from bayesarch.nets.operations import Free, Halving
from bayesarch.nets.straight import Straight, kernels_of
from bayesarch.nets.thinning import convolved, sees_every_other, thinned

__all__ = ["adapted", "by_kernels", "chain_of", "chained", "is_bare_norm", "usual"]


def by_kernels(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, Moments | None]:
    """Return what layers give, in training, and its moments where it is yet to be normalised by them.

    That is where they end in a norm without scale and shift, whose output is never made.

    Args:
        layers: any, of an option.
        x: shape (B, C, H, W), on a CPU.
    """
    moments = None
    while layers:
        norm, layer = _taken(layers), layers[0]
        if norm is None:
            x, layers = _of_one(layer, x), layers[1:]
        elif len(layers) == 1:
            moments, layers = moments_of(x, norm), []
        else:
            x, layers = norm_relu(x, moments_of(x, norm)), layers[2:]
    return x, moments


def chain_of(layers: Sequence[nn.Module], column: int) -> Chain | None:
    """Return layers as a chain of separable convolutions, whose norms have been told of a batch; None: they are none.

    Args:
        layers: depthwise and 1 x 1 convolutions, a norm and a ReLU, and so on; perhaps a norm behind the last.
        column: of the gate behind them.
    """
    found: list[tuple[nn.Conv2d, nn.Conv2d, Sequence[nn.Module]]] = []
    while layers:
        pair, behind = layers[:2], layers[2:]
        if not _is_separable(pair) or (found and pair[0].stride != (1, 1)) or (behind and not _is_taken(behind)):
            return None
        found.append((pair[0], pair[1], behind))
        layers = behind[2:]
        if len(behind) == 2:  # a ReLU at the end, which nothing here takes
            return None
    if not found:
        return None
    pairs = [Pair(a.weight, b.weight, a.dilation[0], a.stride[0], _taken(behind)) for a, b, behind in found]
    return Chain(tuple(pairs), column)


def chained(
    x: Tensor, gates: Tensor, chains: Sequence[Chain], *, risen: bool = False, norm: Norm | None = None
) -> list[Part]:
    """Return what chains bring to nodes, in the type that convolutions have here.

    Args:
        x: what all of them take, shape (B, C, H, W), on a CPU.
        gates: shape (1, G).
        chains: at least one.
        risen: whether they take the positive part of x.
        norm: what x is normalised by before that, told of a batch here; None: by nothing.
    """
    x = _as_convolved(x)
    rise = Rise(None if norm is None else moments_of(x, norm)) if risen else None
    return separable_parts(x, gates, chains, rise)


def _as_convolved(x: Tensor) -> Tensor:
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


def adapted(layers: Sequence[nn.Module], x: Tensor, gates: Tensor) -> Tensor | None:
    """Return what brings an input to a cell's size, in training: a 1 x 1 convolution with ReLU and norm about it.

    Neither the positive part nor what a norm before it gives is made. None: these layers are others.

    Args:
        layers: ReLU, convolution and norm, or norm, ReLU and convolution, perhaps behind two halves.
        x: shape (B, C, H, W), on a CPU.
        gates: of the options, shape (1, G); their type is what counts.
    """
    halving, rest = (layers[:1], layers[1:]) if isinstance(layers[0], Halving) else ([], layers)
    kinds, norm_first = [type(layer) for layer in rest], len(rest) > 0 and isinstance(rest[0], nn.BatchNorm2d)
    if kinds != ([nn.BatchNorm2d, nn.ReLU, nn.Conv2d] if norm_first else [nn.ReLU, nn.Conv2d, nn.BatchNorm2d]):
        return None
    norm, conv = (rest[0], rest[2]) if norm_first else (rest[2], rest[1])
    if not is_point(conv) or not _is_taken([norm]):
        return None
    for layer in halving:
        x = usual(layer, x)
    x, told = _as_convolved(x), _taken([norm])
    before = moments_of(x, told) if norm_first and told is not None else None
    chain = Chain((Pair(None, conv.weight, 1, 1, None if norm_first else told),), 0)
    (part,) = separable_parts(x, gates.new_ones(1, 1), [chain], Rise(before))
    return part.stands if part.moments is None else sum_of([part])


def _is_separable(layers: Sequence[nn.Module]) -> TypeGuard[Sequence[nn.Conv2d]]:
    """Return whether layers are a depthwise convolution of a size that there is a kernel for, and a 1 x 1 one."""
    if len(layers) < 2 or not is_depthwise(layers[0], strides=(1, 2)):
        return False
    (depth, point), side = layers, layers[0].kernel_size[0]
    return bool(side in SIDES and depth.kernel_size == (side, side) and is_point(point))


def _of_one(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, Straight) and not layer.pays(x):
        return _of_one(layer.second, _of_one(layer.first, x))
    conv = layer.first if isinstance(layer, Straight) else layer
    if is_dense(conv) and conv.stride == (1, 1):
        return fused_dense(x, kernels_of(layer), conv.dilation[0])
    if sees_every_other(conv):
        x = thinned(x, conv.dilation[0])
        return fused_dense(x, kernels_of(layer)) if is_dense(conv) else convolved(x, conv, kernels_of(layer))
    if isinstance(layer, Free) and layer.kernel is not None:
        return layer.kernel(x)
    stride = _window_stride(layer)
    return usual(layer, x) if stride is None else window_max(x, stride)


def usual(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what a layer of a supernet gives by torch alone."""
    if is_depthwise(layer) and layer.dilation[0] > 1:
        return depthwise(x, layer)
    if isinstance(layer, Halving):
        return layer.at_once(x)
    out: Tensor = layer(x)
    return out


def _window_stride(layer: nn.Module) -> int | None:
    """Return the stride of maximal pooling as operations have it; None: another layer."""
    sizes = (3, 1, 1, False, False)
    if not isinstance(layer, nn.MaxPool2d) or not isinstance(layer.stride, int):
        return None
    given = (layer.kernel_size, layer.padding, layer.dilation, layer.ceil_mode, layer.return_indices)
    return layer.stride if given == sizes else None


def is_bare_norm(layer: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Return whether a layer is a norm without scale and shift."""
    return isinstance(layer, nn.BatchNorm2d) and not layer.affine and layer.momentum is not None


def _is_taken(layers: Sequence[nn.Module]) -> bool:
    """Return whether layers begin with a norm whose output need not be made.

    It has no scale and shift, is in training, and is the last layer or in front of a ReLU.
    """
    bare = bool(layers) and is_bare_norm(layers[0]) and bool(layers[0].training)
    return bare and (len(layers) == 1 or isinstance(layers[1], nn.ReLU))


def _taken(layers: Sequence[nn.Module]) -> Norm | None:
    """Return the norm that layers begin with, having told it of a batch, if it `_is_taken`; or None."""
    if not _is_taken(layers):
        return None
    layer = layers[0]
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.momentum is not None
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    return Norm(layer.running_mean, layer.running_var, layer.momentum, layer.eps)
