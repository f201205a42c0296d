"""Depthwise convolutions whose backward pass is as fast as the forward one, on the CPU.

The library's backward pass of a depthwise convolution is up to ten times slower than its forward pass, and dilation
makes it worse. The gradient of the input is a forward convolution of the gradient with the kernel turned round; the
gradient of a dilated kernel is that of an undilated one over the d x d interleaved images that the dilation sees.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["depthwise", "is_depthwise", "is_point", "keeps_size"]


def is_depthwise(module: nn.Module, *, strides: tuple[int, ...] = (1,)) -> TypeGuard[nn.Conv2d]:
    """Return whether a module has one kernel per channel and, at stride 1, an output of the size of its input.

    Args:
        module: any.
        strides: which are allowed, the same along both axes.
    """
    return (
        keeps_size(module)
        and module.groups == module.in_channels == module.out_channels > 1
        and module.stride[0] == module.stride[1]
        and module.stride[0] in strides
    )


def keeps_size(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether a module is a convolution without bias whose output has, at stride 1, the size of its input."""
    return (
        isinstance(module, nn.Conv2d)
        and module.bias is None
        and module.padding_mode == "zeros"
        and module.dilation[0] == module.dilation[1]
        and module.padding == tuple(module.dilation[0] * (side - 1) // 2 for side in module.kernel_size)
        and all(side % 2 == 1 for side in module.kernel_size)
    )


def is_point(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether a module is a 1 x 1 convolution of all channels and pixels, without bias."""
    return keeps_size(module) and module.kernel_size == module.stride == (1, 1) and module.groups == 1


def depthwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return `conv(x)` for a module that `is_depthwise`, shape of `x`; gradients agree with torch's up to rounding."""
    fast = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    out: Tensor = _Depthwise.apply(x, conv.weight, conv.dilation[0]) if fast else conv(x)
    return out


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution whose output has the size of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return _same(x, weight, dilation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x = _same(gradient, weight.flip(2, 3), ctx.dilation) if ctx.needs_input_grad[0] else None
        of_weight = kernel_gradient(x, gradient, weight, ctx.dilation) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None


def kernel_gradient(x: Tensor, gradient: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Return the gradient of the kernels, shape (C, 1, kh, kw).

    Args:
        x: what was convolved, shape (B, C, H, W).
        gradient: of the output, shape of `x`.
        weight: the kernels; only their shape matters.
        dilation: d.
    """
    if dilation > 1 and all(side % dilation == 0 for side in x.shape[2:]):
        # the library is slow with kernels that are larger than the image
        small = min(x.shape[2:]) // dilation < max(weight.shape[2:])
        gap = max(weight.shape[2:]) // 2
        x, gradient = (_beside(t, dilation, gap) if small else _interleaved(t, dilation) for t in (x, gradient))
        dilation = 1
    padding, groups = [dilation * (side - 1) // 2 for side in weight.shape[2:]], x.shape[1]
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], padding, [dilation] * 2, False, [0, 0], groups, [False, True, False]
    )[1]
    return found


def _same(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    padding = [dilation * (side - 1) // 2 for side in weight.shape[2:]]
    return F.conv2d(x, weight, padding=padding, dilation=dilation, groups=x.shape[1])


def _interleaved(x: Tensor, d: int) -> Tensor:
    """Return the d x d images of every d-th pixel, (B, C, H, W) -> (d d B, C, H / d, W / d), channels last."""
    b, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(b, h // d, d, w // d, d, c)
    return pixels.permute(2, 4, 0, 1, 3, 5).reshape(d * d * b, h // d, w // d, c).permute(0, 3, 1, 2)


def _beside(x: Tensor, d: int, gap: int) -> Tensor:
    """Return the same side by side, zeros between: (B, C, H, W) -> (B, C, H + d gap, W + d gap), channels last."""
    b, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(b, h // d, d, w // d, d, c).permute(0, 2, 1, 4, 3, 5)
    apart = F.pad(pixels, (0, 0, 0, gap, 0, 0, 0, gap))
    return apart.reshape(b, h + d * gap, w + d * gap, c).permute(0, 3, 1, 2)
