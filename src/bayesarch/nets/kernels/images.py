"""Means over windows and gradients of depthwise kernels, on images with their channels last."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bayesarch.nets.kernels.arguments import SUFFIX, pointer, threads
from bayesarch.nets.kernels.build import library

__all__ = ["SIDES", "box_mean", "depthwise_gradient"]

SIDES = (3, 5, 7)
"""Sides of depthwise kernels."""


def box_mean(x: Tensor) -> Tensor:
    """Return means over 3 x 3 windows at stride 1, shape of x; at the border, of what is inside the image."""
    out: Tensor = _Box.apply(x)
    return out


def depthwise_gradient(x: Tensor, slope: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Return the gradient of the kernels of a depthwise convolution that keeps the size, shape and type of `weight`.

    Args:
        x: what was convolved, shape (B, C, H, W).
        slope: the gradient of the output, shape of x.
        weight: the kernels, shape (C, 1, k, k), k of `SIDES`; only their shape and type matter.
        dilation: d; x is padded by d (k - 1) / 2 zeros.
    """
    x, slope = (t.contiguous(memory_format=torch.channels_last) for t in (x, slope.to(x.dtype)))
    images, channels, height, width = x.shape
    side = weight.shape[2]
    found = torch.empty(side, side, channels, dtype=torch.float64)
    run, sizes = getattr(library(), f"kernel_{SUFFIX[x.dtype]}"), (height, width, channels, side, dilation)
    run(ctypes.c_int64(images), *sizes, threads(x.numel()), pointer(x), pointer(slope), pointer(found))
    return found.permute(2, 0, 1).unsqueeze(1).to(weight.dtype).contiguous()


class _Box(torch.autograd.Function):
    """Means over windows, which are linear."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _box(x, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return _box(slope, back=True)


def _box(x: Tensor, *, back: bool) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = x.shape
    out = torch.empty_like(x)
    run = getattr(library(), f"box_{SUFFIX[x.dtype]}")
    run(ctypes.c_int64(images), height, width, channels, int(back), threads(x.numel()), pointer(x), pointer(out))
    return out
