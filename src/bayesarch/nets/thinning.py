"""Convolutions that only ever look at every d-th pixel, as undilated ones of an image of those alone.

At a stride equal to the dilation d, and padding by a multiple of it, each output pixel sees input pixels whose rows and
columns are multiples of d: in DARTS's and BayesNAS's spaces the dilated options of cells that halve their image. The
library computes them as if the others mattered, and its backward pass takes many times as long (ours to notice).
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F

__all__ = ["by_torch_alone", "convolved", "sees_every_other", "thinned"]


def sees_every_other(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether a module is a convolution that looks at every d-th pixel, d > 1."""
    if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str):
        return False
    (d, across), zeros = module.dilation, module.padding_mode == "zeros"
    whole = all(side % d == 0 for side in module.padding)
    return d == across > 1 and module.stride == (d, d) and whole and zeros


def thinned(x: Tensor, d: int) -> Tensor:
    """Return every d-th pixel, (B, C, H, W) -> (B, C, ceil(H / d), ceil(W / d)), channels last."""
    if not by_torch_alone(x):
        return x[:, :, ::d, ::d].contiguous(memory_format=torch.channels_last)
    out: Tensor = _Thinned.apply(x, d)
    return out


def by_torch_alone(*tensors: Tensor) -> bool:
    """Return whether functions with gradients of their own may be used.

    A compiler fuses by itself, and functorch (per-example gradients, forward mode) knows torch's own operations alone.
    """
    return not torch.compiler.is_compiling() and not any(map(is_functorch_wrapped_tensor, tensors))


def convolved(x: Tensor, conv: nn.Conv2d, weight: Tensor) -> Tensor:
    """Return what a convolution that `sees_every_other` gives, from the pixels that it sees, `thinned`.

    Args:
        x: those pixels.
        conv: the convolution.
        weight: its kernels, or others in their place.
    """
    padding = [side // conv.dilation[0] for side in conv.padding if isinstance(side, int)]
    return F.conv2d(x, weight, conv.bias, padding=padding, groups=conv.groups)


class _Thinned(torch.autograd.Function):
    """Every d-th pixel; the others get a gradient of zero, written once and not once an axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, d: int) -> Tensor:
        ctx.size, ctx.d = x.shape, d
        return x[:, :, ::d, ::d].contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # new_zeros would lie otherwise, and be copied
        whole = torch.empty(
            ctx.size, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last
        ).zero_()
        whole[:, :, :: ctx.d, :: ctx.d] = gradient
        return whole, None
