"""What each option computes, by name: the only place where an option's name meets torch.

An operation is one of three kinds: *nothing* (`none`), *free* of weights (computed once per source node and shared by
all edges that leave it), or a *convolution* ReLU -> conv k x k without bias -> batch norm (convolutions that leave one
node are stacked into one). To add an operation of these kinds, add a line to `OPERATIONS`.

References: Dong and Yang, NAS-Bench-201, ICLR 2020 (`none` to `avg_pool_3x3`); `product` is ours (`spaces/toy.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.errors import SpaceError, nearest

__all__ = ["OPERATIONS", "Operation", "operation", "operation_module"]


@dataclass(frozen=True)
class Operation:
    """One option's computation; all fields empty: nothing passes."""

    kernel: int | None = None
    """Side k of the ReLU -> conv k x k -> batch norm block, or None."""
    free: Callable[[Tensor], Tensor] | None = None
    """A function of the source node's features that has no weights, or None."""

    @property
    def passive(self) -> bool:
        """Whether nothing is computed: nothing passes, or the features as they are."""
        return self.kernel is None and self.free in (None, _identity)


def _identity(h: Tensor) -> Tensor:
    return h


def _avg_pool_3x3(h: Tensor) -> Tensor:
    """Return the 3 x 3 mean at stride 1; border pixels average what is inside the image."""
    return F.avg_pool2d(h, 3, stride=1, padding=1, count_include_pad=False)


def _product(h: Tensor) -> Tensor:
    """Return x_i x_{i+1} over features, shape (B, D) as the input."""
    return h * torch.roll(h, -1, dims=1)


OPERATIONS: dict[str, Operation] = {
    "none": Operation(),
    "skip_connect": Operation(free=_identity),
    "nor_conv_1x1": Operation(kernel=1),
    "nor_conv_3x3": Operation(kernel=3),
    "avg_pool_3x3": Operation(free=_avg_pool_3x3),
    "skip": Operation(free=_identity),
    "product": Operation(free=_product),
}
"""Every operation by the name that spaces use."""


def operation(name: str) -> Operation:
    """Return the operation called `name`.

    Raises:
        SpaceError: if there is none; names the nearest.
    """
    if name not in OPERATIONS:
        raise SpaceError(f"no operation is called {name!r}, {nearest(name, OPERATIONS)}")
    return OPERATIONS[name]


class _Free(nn.Module):
    """A weight-free operation as a module, for plain networks."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, h: Tensor) -> Tensor:
        fn = OPERATIONS[self.name].free
        assert fn is not None
        return fn(h)

    def extra_repr(self) -> str:
        return self.name


def operation_module(name: str, channels: int) -> nn.Module | None:
    """Return the operation as a plain module on `channels` channels, or None where nothing passes.

    A convolution has an affine batch norm, as stand-alone networks of the benchmark do.
    """
    op = operation(name)
    if op.kernel is not None:
        return nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, op.kernel, padding=op.kernel // 2, bias=False),
            nn.BatchNorm2d(channels),
        )
    return _Free(name) if op.free is not None else None
