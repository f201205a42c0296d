"""Convolutions between two nodes as one, where a network is only looked at.

A norm with running statistics is a scale and a shift of each channel, and a gate is a scale. With the mean m and the
deviation s of each option's convolution by w, behind a gate g,

    sum_k g_k (x * w_k - m_k) / s_k  =  x * (sum_k g_k w_k / s_k)  -  sum_k g_k m_k / s_k,

a single convolution of the largest size; smaller kernels lie in the middle of zeros. Ding et al., "RepVGG: Making
VGG-style ConvNets Great Again", CVPR 2021, section 3.3, do this once to the branches of a trained network; here it is
done at every pass, which costs no more than a few images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesarch.nets.conv_stack import EPS, ConvStack

__all__ = ["merged", "merges"]


def merges(training: bool, gates: Tensor) -> bool:
    """Return whether they may be: no batch has its own moments, all examples have the same gates, nobody a gradient."""
    return not training and gates.shape[0] == 1 and not torch.is_grad_enabled()


def merged(
    stacks: Sequence[ConvStack], h: Tensor, gates: Tensor, active: frozenset[int] | None
) -> list[tuple[str, Tensor]]:
    """Return (target node, sum of the gated outputs of all convolutions that go there).

    Args:
        stacks: convolutions that leave one node.
        h: rectified features of that node, shape (B, C, H, W).
        gates: shape (1, G).
        active: flat options to compute; None: all that are live.
    """
    reach = [max(stack.padding[axis] for stack in stacks) for axis in (0, 1)]
    kernels: dict[str, Tensor] = {}
    shifts: dict[str, Tensor] = {}
    for stack in stacks:
        scales = gates[0, stack.columns_index].unsqueeze(1) * (stack.running_var + EPS).rsqrt()
        offsets = scales * stack.running_mean
        tall, wide = (most - mine for most, mine in zip(reach, stack.padding, strict=True))
        for row, (column, target) in enumerate(zip(stack.columns, stack.targets, strict=True)):
            if active is not None and column not in active:
                continue
            kernel = stack.weights[str(column)] * scales[row].view(-1, 1, 1, 1)
            if tall or wide:
                kernel = F.pad(kernel, (wide, wide, tall, tall))
            kernels[target] = kernels[target] + kernel if target in kernels else kernel
            shifts[target] = shifts[target] - offsets[row] if target in shifts else -offsets[row]
    if not kernels:
        return []
    y = F.conv2d(h, torch.cat(list(kernels.values())), torch.cat(list(shifts.values())), padding=reach)
    return list(zip(kernels, y.split(stacks[0].channels, 1), strict=True))
