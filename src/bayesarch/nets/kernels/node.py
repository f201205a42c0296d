"""All that leaves a node of a cell as one function: 3 x 3 and 1 x 1 convolutions, means over windows, the node itself.

Convolutions take the positive part of the node's features, and a norm is behind each. Kept for the way back are the
features and what convolutions give. There the gradient of what a norm takes is made for some images at a time, goes
through the convolutions and to their kernels while it lies in a near cache, and is forgotten. One tensor is written:
the gradient of the features.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bayesarch.nets.kernels.arguments import in_rows, pointer, room, step, threads
from bayesarch.nets.kernels.build import kernel, library
from bayesarch.nets.kernels.rows import Moments, Norm, Part, check_running

__all__ = ["Bunch", "Outgoing", "outgoing_fits", "outgoing_parts"]

ITSELF, POOLED = -1, -2
"""What is no convolution, as `node.h` has it."""


class Bunch(NamedTuple):
    """Convolutions of one size, padded so that it is kept.

    Attributes:
        weights: kernels of each, shape (C, C, k, k).
        columns: of their gates.
        norm: what all outputs, side by side, are normalised by; None where there are none.
    """

    weights: Sequence[Tensor] = ()
    columns: Sequence[int] = ()
    norm: Norm | None = None


class Outgoing(NamedTuple):
    """What leaves a node.

    Attributes:
        dense: convolutions of 3 x 3.
        point: those of 1 x 1.
        pooled: columns of the gates behind means over 3 x 3 windows, which count what is inside the image.
        itself: columns of the gates behind the features as they are.
    """

    dense: Bunch
    point: Bunch
    pooled: Sequence[int]
    itself: Sequence[int]

    @property
    def bunches(self) -> tuple[Bunch, Bunch]:
        """Both kinds of convolutions."""
        return self.dense, self.point

    @property
    def columns(self) -> list[int]:
        """Of all gates, in this order."""
        return [*self.dense.columns, *self.point.columns, *self.pooled, *self.itself]


def outgoing_fits(h: Tensor) -> bool:
    """Return whether there is such a function of features `h` on a CPU: not in 16 bits."""
    return h.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")


def outgoing_parts(h: Tensor, gates: Tensor, outgoing: Outgoing) -> list[Part]:
    """Return what leaves a node, in the order of `outgoing.columns`; `sum_of` alone can read it.

    A second derivative is refused.

    Args:
        h: features of the node, shape (B, C, H, W), which `outgoing_fits`.
        gates: shape (1, G).
        outgoing: at least one option.

    Raises:
        ValueError: if running moments are not what a kernel writes to.
    """
    width, weights = h.shape[1], [weight for bunch in outgoing.bunches for weight in bunch.weights]
    moments = Moments(*torch.empty(2, len(weights), width, dtype=torch.float64))
    stand: tuple[Tensor, ...] = _Outgoing.apply(in_rows(h), gates.contiguous(), outgoing, moments, *weights)
    normed = [Moments(mean, inv) for mean, inv in zip(*moments, strict=True)]
    of_parts = [*normed, *[None] * (len(stand) - len(normed))]
    return [Part(*mine) for mine in zip(stand, [gates] * len(stand), outgoing.columns, of_parts, strict=True)]


class _Bunch(ctypes.Structure):
    """Convolutions of one size as the kernels know them."""

    _fields_ = [
        ("count", ctypes.c_int),
        ("kernels", ctypes.c_void_p),
        ("eps", ctypes.c_double),
        ("momentum", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("running_mean", "running_var", "dkernels")),
    ]


class _Use(ctypes.Structure):
    """What goes to a sum, and the gradient of that."""

    _fields_ = [
        ("source", ctypes.c_int),
        ("g", ctypes.c_void_p),
        ("step", ctypes.c_int64),
        ("gate", ctypes.c_void_p),
        ("of_gate", ctypes.c_void_p),
    ]


class _Outgoing(torch.autograd.Function):
    """From features, gates and kernels to what leaves a node; back from the gradients of the sums behind it."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, gates: Tensor, outgoing: Outgoing, moments: Moments, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        batch, width, *size = h.shape
        y = torch.empty(len(weights), batch, *size, width, dtype=h.dtype)
        kernels = [_side_by_side(bunch) for bunch in outgoing.bunches]
        bunches = [_moving(bunch, mine, h) for bunch, mine in zip(outgoing.bunches, kernels, strict=True)]
        pooled = torch.empty(h.shape, dtype=h.dtype, memory_format=torch.channels_last) if outgoing.pooled else None
        kernel("node", h.dtype)(*_given(h, bunches), pointer(y), *map(pointer, moments), pointer(pooled))
        ctx.outgoing, ctx.moments = outgoing, moments
        ctx.save_for_backward(h, gates, y, pooled if ctx.needs_input_grad[1] else None, *kernels)
        # detached: each is a tensor of its own on shared memory
        made = [mine.permute(0, 3, 1, 2).detach() for mine in y.unbind()]
        made += [pooled.detach() for _ in outgoing.pooled if pooled is not None]
        return (*made, *[h.detach() for _ in outgoing.itself])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        h, gates, y, pooled, *kernels = ctx.saved_tensors
        outgoing, count, mine = ctx.outgoing, len(y), [in_rows(slope) for slope in slopes]
        of_h, of_gates, _, _, *of_weights = ctx.needs_input_grad
        dx = torch.empty(h.shape, dtype=h.dtype, memory_format=torch.channels_last) if of_h else None
        dgates = torch.zeros_like(gates) if of_gates else None
        dkernels = [torch.empty_like(both) if any(of_weights) else None for both in kernels]
        bunches = [
            _Bunch(len(k), k.data_ptr(), dkernels=None if dk is None else dk.data_ptr())
            for k, dk in zip(kernels, dkernels, strict=True)
        ]
        sources = [*range(count), *[POOLED] * len(outgoing.pooled), *[ITSELF] * len(outgoing.itself)]
        uses = [
            _Use(source, slope.data_ptr(), step(slope), _at(gates, column), _at(dgates, column))
            for source, slope, column in zip(sources, mine, outgoing.columns, strict=True)
        ]
        made = (pointer(y), *map(pointer, ctx.moments), len(uses), (_Use * len(uses))(*uses))
        kernel("node_back", h.dtype)(*_given(h, bunches), *made, pointer(pooled), pointer(dx))
        found = [dw for dk in dkernels if dk is not None for dw in dk.permute(0, 1, 4, 2, 3)]
        return dx, dgates, None, None, *(found or [None] * count)


def _side_by_side(bunch: Bunch) -> Tensor:
    """Return kernels of one size as they are computed with, shape (n, C, k, k, C)."""
    if not bunch.weights:
        return torch.empty(0, 0, 0, 0, 0)
    return torch.stack([weight.detach().permute(0, 2, 3, 1) for weight in bunch.weights])


def _moving(bunch: Bunch, kernels: Tensor, h: Tensor) -> _Bunch:
    """Return convolutions that a kernel finds moments of and moves the running ones."""
    norm = bunch.norm
    if norm is None:
        return _Bunch(0)
    check_running(norm, h.dtype, h.shape[1] * len(bunch.weights))
    return _Bunch(len(kernels), kernels.data_ptr(), norm.eps, norm.momentum, norm.mean.data_ptr(), norm.var.data_ptr())


def _given(h: Tensor, bunches: Sequence[_Bunch]) -> tuple[Any, ...]:
    """Return what both kernels are given first."""
    images, channels, height, width = h.shape
    sizes, parts = (ctypes.c_int64(images), height, width, channels), threads(h.numel())
    needed = library(h.dtype).node_room
    needed.restype = ctypes.c_int64
    work = room(needed(*sizes, *(bunch.count for bunch in bunches), parts), h.dtype)
    return (*sizes, *map(ctypes.byref, bunches), parts, pointer(h), ctypes.c_int64(step(h)), work)


def _at(gates: Tensor | None, column: int) -> int | None:
    return None if gates is None else gates.data_ptr() + column * gates.element_size()
