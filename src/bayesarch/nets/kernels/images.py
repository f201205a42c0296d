"""Means and maxima over windows, on images with their channels last."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bayesarch.nets.kernels.arguments import pointer, threads
from bayesarch.nets.kernels.build import kernel

__all__ = ["box_mean", "window_max"]


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
