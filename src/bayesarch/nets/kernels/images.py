"""Means and maxima over windows, and gradients of depthwise convolutions, on images with their channels last."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bayesarch.nets.kernels.arguments import pointer, threads, working
from bayesarch.nets.kernels.build import kernel

__all__ = ["SIDES", "box_mean", "depthwise_gradients", "window_max"]

SIDES = (3, 5, 7)
"""Sides of depthwise kernels."""


def box_mean(x: Tensor) -> Tensor:
    """Return means over 3 x 3 windows at stride 1, shape of x; at the border, of what is inside the image."""
    out: Tensor = _Box.apply(x)
    return out


def window_max(x: Tensor, stride: int = 1) -> Tensor:
    """Return maxima over 3 x 3 windows around every `stride`-th pixel, of what is inside the image.

    Args:
        x: shape (B, C, H, W).
        stride: along both axes.

    Returns:
        Shape (B, C, ceil(H / stride), ceil(W / stride)); gradients go to the first of equal values, as in torch.
    """
    out: Tensor = _Top.apply(x, stride)
    return out


def depthwise_gradients(
    x: Tensor, slope: Tensor, weight: Tensor, *, dilation: int, stride: int, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of a depthwise convolution: of its input, shape and type of `x`, and of its kernels.

    Args:
        x: what was convolved, shape (B, C, H, W).
        slope: the gradient of the output, shape (B, C, ceil(H / stride), ceil(W / stride)).
        weight: the kernels, shape (C, 1, k, k), k of `SIDES`.
        dilation: d; x is padded by d (k - 1) / 2 zeros.
        stride: along both axes.
        wanted: which of the two; the other is None.
    """
    x, slope = (t.contiguous(memory_format=torch.channels_last) for t in (x, slope.to(x.dtype)))
    images, channels, height, width = x.shape
    side = weight.shape[2]
    sizes = (ctypes.c_int64(images), height, width, *slope.shape[2:], channels, side, dilation, stride)
    sizes = (*sizes, threads(x.numel()))
    of_x, of_weight = None, None
    if wanted[0]:
        taps = weight.detach().to(working(x.dtype)).permute(2, 3, 1, 0).contiguous()
        of_x = torch.empty_like(x)
        kernel("depth_back", x.dtype)(*sizes, pointer(slope), pointer(taps), pointer(of_x))
    if wanted[1]:
        found = torch.empty(side, side, channels, dtype=torch.float64)
        kernel("depth_kernel", x.dtype)(*sizes, pointer(x), pointer(slope), pointer(found))
        of_weight = found.permute(2, 0, 1).unsqueeze(1).to(weight.dtype).contiguous()
    return of_x, of_weight


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
    run = kernel("box", x.dtype)
    run(ctypes.c_int64(images), height, width, channels, int(back), threads(x.numel()), pointer(x), pointer(out))
    return out


class _Top(torch.autograd.Function):
    """Maxima over windows: kept is what they are taken of, and their places are looked for again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x)
        ctx.stride = stride
        size = [(side - 1) // stride + 1 for side in x.shape[2:]]
        out = torch.empty(*x.shape[:2], *size, dtype=x.dtype, memory_format=torch.channels_last)
        kernel("top", x.dtype)(*_sizes(x, stride), pointer(x), pointer(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        slope, dx = slope.contiguous(memory_format=torch.channels_last), torch.empty_like(x)
        run = kernel("top_back", x.dtype)
        run(*_sizes(x, ctx.stride), pointer(x), pointer(slope), pointer(dx))
        return dx, None


def _sizes(x: Tensor, stride: int) -> tuple[Any, ...]:
    images, channels, height, width = x.shape
    return ctypes.c_int64(images), height, width, channels, stride, threads(x.numel())
