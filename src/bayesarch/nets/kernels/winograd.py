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
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bayesarch.nets.kernels.arguments import pointer, threads
from bayesarch.nets.kernels.build import kernel

__all__ = ["filtered_conv", "pays"]

POINTS = (0, 1, -1, 2, -2)
"""Where polynomials are multiplied; infinity is one more."""
PLACES = (len(POINTS) + 1) ** 2
"""Products of a tile, of each pair of channels."""
OUTS = 16
"""Output channels that a kernel sums side by side."""
FEWEST = 16
"""Channels from which it is taken: below, what goes through the points is most of the work."""
SHARE = 0.4
"""Of the products of a plain convolution, at most: where tiles reach far over the edges of images, more are left."""


def pays(x: Tensor, weight: Tensor, dilation: int) -> bool:
    """Return whether `filtered_conv` takes less than a plain convolution; on a CPU, in fp32 and float64.

    Args:
        x: shape (B, C, H, W).
        weight: shape (O, C, k, k).
        dilation: d.
    """
    outs, ins, side, _ = weight.shape
    if min(outs, ins) < FEWEST:
        return False
    if side not in (3, 5) or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    m, tiles, pixels = len(POINTS) + 2 - side, 1, 1
    for length in x.shape[2:]:
        seen = -(-length // dilation)  # pixels that one output can see, and tiles of them
        tiles *= dilation * -(-seen // m)
        pixels *= length
    return PLACES * tiles <= SHARE * side**2 * pixels


def filtered_conv(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """Return the convolution of x with kernels, padded by zeros so that it has the size of x.

    Args:
        x: shape (B, C, H, W).
        weight: shape (O, C, k, k), k 3 or 5.
        dilation: d.

    Returns:
        Shape (B, O, H, W), channels last. A second derivative is refused.
    """
    out: Tensor = _Winograd.apply(x, weight, dilation)
    return out


class _Winograd(torch.autograd.Function):
    """The convolution; kept are what it takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return _convolved(x, weight, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        slope = slope.contiguous(memory_format=torch.channels_last)
        turned = weight.flip(2, 3).transpose(0, 1)
        of_x = _convolved(slope, turned, ctx.dilation) if ctx.needs_input_grad[0] else None
        return of_x, _of_kernels(x, slope, weight, ctx.dilation) if ctx.needs_input_grad[1] else None, None


def _convolved(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    given = _powers(weight.shape[2], weight.dtype) @ _in_blocks(weight)
    size = (x.shape[0], weight.shape[0], *x.shape[2:])
    out = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    sizes = (*_sizes(x), *weight.shape[1::-1], weight.shape[2], dilation, threads(x.numel()))
    kernel("winograd", x.dtype)(*sizes, pointer(x), pointer(given), pointer(out))
    return out


def _of_kernels(x: Tensor, slope: Tensor, weight: Tensor, dilation: int) -> Tensor:
    outs, ins, side, _ = weight.shape
    blocks, parts = -(-outs // OUTS), threads(x.numel())
    found = torch.zeros(parts, PLACES, blocks * ins * OUTS, dtype=x.dtype)
    sizes = (*_sizes(x), ins, outs, side, dilation, parts)
    kernel("winograd_kernel", x.dtype)(*sizes, pointer(x), pointer(slope), pointer(found))
    whole = found[0] if parts == 1 else found.sum(0)
    of = (_powers(side, x.dtype).T @ whole).view(side, side, blocks, ins, OUTS).transpose(2, 3)
    of = of.reshape(side, side, ins, blocks * OUTS)[..., :outs].permute(3, 2, 0, 1)
    return of.contiguous(memory_format=torch.channels_last)


def _in_blocks(weight: Tensor) -> Tensor:
    """Return kernels (O, C, k, k) as (k k, blocks C block): output channels in whole blocks, zeros behind the last."""
    outs, ins, side, _ = weight.shape
    blocks = -(-outs // OUTS)
    taps = weight.detach().permute(2, 3, 1, 0)
    taps = F.pad(taps, (0, blocks * OUTS - outs)) if outs % OUTS else taps
    return taps.reshape(side**2, ins, blocks, OUTS).transpose(1, 2).reshape(side**2, -1)


@cache
def _powers(side: int, dtype: torch.dtype) -> Tensor:
    """Return G for both axes at once, shape (36, k k): powers of the points over their distances to the others."""
    rows = []
    for point in POINTS:
        apart = 1
        for other in POINTS:
            apart *= point - other if other != point else 1
        rows.append([point**power / apart for power in range(side)])
    one = torch.tensor([*rows, [0.0] * (side - 1) + [1.0]], dtype=torch.float64)
    return torch.kron(one, one).to(dtype)


def _sizes(x: Tensor) -> tuple[Any, ...]:
    images, _, height, width = x.shape
    return ctypes.c_int64(images), height, width
