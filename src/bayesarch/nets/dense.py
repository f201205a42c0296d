"""Dense convolutions of supernets that are computed by kernels of ours: with fewer products where that pays."""

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.nets.depthwise import keeps_size
from bayesarch.nets.kernels import filtered_conv, pays

__all__ = ["fused_dense", "is_dense"]


def is_dense(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether a module connects all channels, without bias, and would keep the size of its input at stride 1."""
    return keeps_size(module) and module.groups == 1


def fused_dense(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """Return the convolution of x, shape (B, C, H, W), with kernels of odd sides, padded to the size of x; on a CPU.

    Under autocast, and where filtering does not pay, it is the library's.
    """
    if weight.shape[2] == weight.shape[3] and not torch.is_autocast_enabled("cpu") and pays(x, weight, dilation):
        return filtered_conv(x, weight, dilation)
    padding = [dilation * (side - 1) // 2 for side in weight.shape[2:]]
    return F.conv2d(x, weight, padding=padding, dilation=dilation)
