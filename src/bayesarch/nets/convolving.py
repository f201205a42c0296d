"""Convolutions of any network by kernels of ours, where these are faster: found networks stay plain modules.

Inside of `convolving(True)` torch's own `conv2d` is looked at, whoever calls it: it takes fewer products where that
pays (`kernels/winograd.py`); else, of several groups, networks side by side among them, it is a kernel of ours
(`kernels/grouped.py`); all the rest is the library's. On a CPU, in fp32 and float64.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bayesarch.nets.kernels import filtered_conv, grouped_conv, pays

__all__ = ["convolving"]

FEWEST = 4
"""Output channels of a group from which it is taken: below, most of a register is empty."""


def convolving(fused: bool) -> AbstractContextManager[object]:
    """Return a context in which convolutions are computed by kernels of ours where they can; not `fused`: by torch."""
    return _ByKernels() if fused else nullcontext()


class _ByKernels(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d:
            out = _convolved(*args, **(kwargs or {}))
            if out is not None:
                return out
        return func(*args, **(kwargs or {}))


def _convolved(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Return what `torch.conv2d` does, of the same arguments; None: it is for the library."""
    if isinstance(padding, str) or input.ndim != 4 or input.dtype != weight.dtype:
        return None
    if {input.device.type, weight.device.type} != {"cpu"}:
        return None
    if input.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"):
        return None
    steps, zeros, apart = _both(stride), _both(padding), _both(dilation)
    if not _fits(input, weight, zeros, apart, groups):
        return None
    out = _summed(input, weight, steps, zeros, apart, groups)
    return out if out is None or bias is None else out + bias.view(-1, 1, 1)


def _fits(x: Tensor, weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int], groups: int) -> bool:
    """Return whether kernels fit the images: where not, the library says what is wrong."""
    whole = weight.ndim == 4 and x.shape[1] == groups * weight.shape[1] and weight.shape[0] % groups == 0
    axes = zip(x.shape[2:], weight.shape[2:], padding, dilation, strict=True)
    return whole and all(length + 2 * p > d * (side - 1) for length, side, p, d in axes)


def _summed(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor | None:
    apart, sides = dilation[0], weight.shape[2:]
    keeps = stride == (1, 1) and all(2 * p == apart * (side - 1) for p, side in zip(padding, sides, strict=True))
    if keeps and dilation[1] == apart and sides[0] == sides[1] and pays(x, weight, apart, groups):
        return filtered_conv(x, weight, apart, groups)
    if groups == 1 or weight.shape[0] < FEWEST * groups or weight.shape[1] == 1:
        return None
    return grouped_conv(x, weight, groups, stride=stride, padding=padding, dilation=dilation)


def _both(of: Any) -> tuple[int, int]:
    """Return what is told once or for each axis."""
    if isinstance(of, int):
        return of, of
    first, *more = of
    return first, more[0] if more else first
