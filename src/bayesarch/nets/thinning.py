"""Convolutions that only ever look at every d-th pixel, as undilated ones of an image of those alone.

At a stride equal to the dilation d, and padding by a multiple of it, each output pixel sees input pixels whose rows and
columns are multiples of d: in DARTS's and BayesNAS's spaces the dilated options of cells that halve their image. The
library computes them as if the others mattered, and its backward pass takes ten times as long (ours to notice).
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["convolved", "sees_every_other", "thinned"]


def sees_every_other(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether a module is a convolution that looks at every d-th pixel, d > 1."""
    if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str):
        return False
    (d, across), zeros = module.dilation, module.padding_mode == "zeros"
    whole = all(side % d == 0 for side in module.padding)
    return d == across > 1 and module.stride == (d, d) and whole and zeros


def thinned(x: Tensor, d: int) -> Tensor:
    """Return every d-th pixel, (B, C, H, W) -> (B, C, ceil(H / d), ceil(W / d)), channels last."""
    if torch.compiler.is_compiling():  # a program fuses the slices' gradients by itself
        return x[:, :, ::d, ::d].contiguous(memory_format=torch.channels_last)
    out: Tensor = _Thinned.apply(x, d)
    return out


def convolved(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return what a convolution that `sees_every_other` gives, from the pixels that it sees, `thinned`."""
    padding = [side // conv.dilation[0] for side in conv.padding if isinstance(side, int)]
    return F.conv2d(x, conv.weight, conv.bias, padding=padding, groups=conv.groups)


class _Thinned(torch.autograd.Function):
    """Every d-th pixel; the others get a gradient of zero, written once and not once an axis."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, d: int) -> Tensor:
        return x[:, :, ::d, ::d].contiguous(memory_format=torch.channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.size, ctx.d = inputs[0].shape, inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        whole = gradient.new_zeros(ctx.size).contiguous(memory_format=torch.channels_last)
        whole[:, :, :: ctx.d, :: ctx.d] = gradient
        return whole, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent[:, :, :: ctx.d, :: ctx.d].contiguous(memory_format=torch.channels_last)
