"""Dense 3 x 3 and 5 x 5 convolutions by Winograd's minimal filtering, on images with their channels last.

An m x m tile of a convolution by k x k kernels sees n = m + k - 1 pixels along each axis. With polynomials that are
multiplied at n points (here 0, 1, -1, 2, -2 and infinity, so n = 6), it is

    y = R' [ (G w G') * (B' d B) ] R,

* element by element, where row p of G holds the powers of point p (over the product of its distances to the others),
and R' and B' are small whole numbers: 36 products for 16 outputs of a 3 x 3 kernel in place of 144, and for 4 of a
5 x 5 one in place of 100. Gradients are the same, turned round: that of d is a convolution of the outputs' with the
kernels turned round, and that of w is G' [ (R g R') * (B' d B) ] G summed over tiles. In float, results are right to
a few millionths of their norm, a digit less than sums of the products themselves.

References: Winograd, "Arithmetic Complexity of Computations", SIAM 1980; Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", CVPR 2016, equation 8.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bayesarch.nets.kernels.arguments import pointer, room, threads
from bayesarch.nets.kernels.build import kernel, library

__all__ = ["filtered_conv", "pays"]

POINTS = 6
"""Where polynomials are multiplied, along each axis."""
FEWEST, FEWEST_OF_GROUP = 16, 32
"""Channels from which it is taken: below, what goes through the points is most of the work, the more so where a group's
pixels lie far from one another."""
SHARE = 0.4
"""Of the products of a plain convolution, at most: where tiles reach far over the edges of images, more are left."""


def pays(x: Tensor, weight: Tensor, dilation: int, groups: int = 1) -> bool:
    """Return whether `filtered_conv` takes less than a plain convolution; on a CPU, in fp32 and float64.

    Args:
        x: shape (B, C, H, W).
        weight: shape (O, C / groups, k, k).
        dilation: d.
        groups: of channels.
    """
    outs, ins, side, _ = weight.shape
    if min(outs // groups, ins) < (FEWEST if groups == 1 else FEWEST_OF_GROUP):
        return False
    if side not in (3, 5) or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    m, tiles, pixels = POINTS + 1 - side, 1, 1
    for length in x.shape[2:]:
        seen = -(-length // dilation)  # pixels that one output can see, and tiles of them
        tiles *= dilation * -(-seen // m)
        pixels *= length
    return POINTS**2 * tiles <= SHARE * side**2 * pixels


def filtered_conv(x: Tensor, weight: Tensor, dilation: int = 1, groups: int = 1) -> Tensor:
    """Return the convolution of x with kernels, padded by zeros so that it has the size of x.

    Args:
        x: shape (B, C, H, W).
        weight: shape (O, C / groups, k, k), k 3 or 5.
        dilation: d.
        groups: of channels.

    Returns:
        Shape (B, O, H, W), channels last. A second derivative is refused.
    """
    out: Tensor = _Winograd.apply(x, weight, dilation, groups)
    return out


class _Winograd(torch.autograd.Function):
    """The convolution; kept are what it takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int, groups: int) -> Tensor:
        x, weight = _last(x), _last(weight)
        ctx.save_for_backward(x, weight)
        ctx.given = dilation, groups
        return _convolved(x, weight, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        slope = _last(slope)
        of_x = _convolved(slope, weight, *ctx.given, turned=True) if ctx.needs_input_grad[0] else None
        return of_x, _of_kernels(x, slope, weight, *ctx.given) if ctx.needs_input_grad[1] else None, None, None


def _convolved(x: Tensor, weight: Tensor, dilation: int, groups: int, *, turned: bool = False) -> Tensor:
    """Return the convolution, or, turned, what has it as its gradient: with weights turned round and transposed."""
    outs, ins, side = weight.shape[0] // groups, *weight.shape[1:3]
    ins, outs = (outs, ins) if turned else (ins, outs)
    out = torch.empty(x.shape[0], groups * outs, *x.shape[2:], dtype=x.dtype, memory_format=torch.channels_last)
    parts = threads(x.numel())
    sizes = (*_sizes(x), groups, ins, outs, side, dilation, turned, parts)
    kernel("winograd", x.dtype)(*sizes, pointer(x), pointer(weight), _room(ins, outs, parts, x.dtype), pointer(out))
    return out


def _of_kernels(x: Tensor, slope: Tensor, weight: Tensor, dilation: int, groups: int) -> Tensor:
    outs, ins, side = weight.shape[0] // groups, *weight.shape[1:3]
    out = torch.empty_like(weight)
    parts = threads(x.numel())
    sizes, room = (*_sizes(x), groups, ins, outs, side, dilation, parts), _room(ins, outs, parts, x.dtype)
    kernel("winograd_kernel", x.dtype)(*sizes, pointer(x), pointer(slope), room, pointer(out))
    return out


def _room(ins: int, outs: int, parts: int, dtype: torch.dtype) -> ctypes.c_void_p:
    """Return what so many threads work in."""
    needed = library(dtype).winograd_room
    needed.restype = ctypes.c_int64
    return room(parts * needed(ins, outs), dtype)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _sizes(x: Tensor) -> tuple[Any, ...]:
    images, _, height, width = x.shape
    return ctypes.c_int64(images), height, width
