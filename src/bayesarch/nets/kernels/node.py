"""All that leaves a node of a cell as one function: 3 x 3 and 1 x 1 convolutions, means over windows, the node itself.

Convolutions take the positive part of the node's features, and a norm is behind each. Kept for the way back are the
features and what convolutions give. There the gradient of what a norm takes is made for some images at a time, goes
through the convolutions and to their kernels while it lies in a near cache, and is forgotten. One tensor is written:
the gradient of the features.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bayesarch.nets.kernels.arguments import in_rows, pointer, room, step, threads
from bayesarch.nets.kernels.build import kernel, library
from bayesarch.nets.kernels.rows import Moments, Norm, Part, check_running

__all__ = ["Bunch", "Made", "Outgoing", "Wanted", "leave", "leave_back", "outgoing_fits", "outgoing_parts"]

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
    weights = [weight for bunch in outgoing.bunches for weight in bunch.weights]
    told: list[Tensor] = []
    stand: tuple[Tensor, ...] = _Outgoing.apply(in_rows(h), gates.contiguous(), outgoing, told, *weights)
    normed = [Moments(mean, inv) for mean, inv in zip(*told[0], strict=True)]
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


class Made(NamedTuple):
    """What is made of a node's features on the way.

    Attributes:
        y: what convolutions give, shape (n, B, H, W, C).
        moments: means and reciprocal deviations of y, double, shape (2, n, C).
        pooled: means over windows, shape (B, C, H, W), channels last; None: there are none, or nobody reads them.
        kernels: of convolutions, as they are computed with, shape (k,).
    """

    y: Tensor
    moments: Tensor
    pooled: Tensor | None
    kernels: Tensor


class Wanted(NamedTuple):
    """Tensors for gradients; None: nobody wants them.

    Attributes:
        features: shape (B, C, H, W), channels last.
        gates: shape (1, G); they are added to it.
        kernels: shape of `Made.kernels`.
    """

    features: Tensor | None
    gates: Tensor | None
    kernels: Tensor | None


def leave(h: Tensor, outgoing: Outgoing) -> Made:
    """Return what leaves a node, having moved running moments.

    Args:
        h: features, shape (B, C, H, W), as rows.
        outgoing: what leaves.

    Raises:
        ValueError: if running moments are not what a kernel writes to.
    """
    batch, width, *size = h.shape
    count = sum(len(bunch.weights) for bunch in outgoing.bunches)
    made = Made(
        torch.empty(count, batch, *size, width, dtype=h.dtype),
        torch.empty(2, count, width, dtype=torch.float64),
        torch.empty(h.shape, dtype=h.dtype, memory_format=torch.channels_last) if outgoing.pooled else None,
        _side_by_side(outgoing, h.dtype),
    )
    starts = _both(made.kernels, outgoing)
    bunches = [_moving(bunch, mine, h) for bunch, mine in zip(outgoing.bunches, starts, strict=True)]
    kernel("node", h.dtype)(*_given(h, bunches), pointer(made.y), *map(pointer, made.moments), pointer(made.pooled))
    return made


def leave_back(
    h: Tensor,
    gates: Tensor,
    outgoing: Outgoing,
    made: Made,
    slopes: Sequence[Tensor],
    wanted: Wanted,
) -> list[Tensor | None]:
    """Turn gradients of the sums that things leave to into those that are wanted; return those of kernels one by one.

    Args:
        h: features, as in `leave`.
        gates: shape (1, G).
        outgoing: what leaves.
        made: what was made there.
        slopes: the gradient of the sum behind each of `outgoing.columns`, as rows.
        wanted: where to.
    """
    starts = zip(outgoing.bunches, *(_both(mine, outgoing) for mine in (made.kernels, wanted.kernels)), strict=True)
    bunches = [_Bunch(len(bunch.weights), mine, dkernels=dmine) for bunch, mine, dmine in starts]
    sources = [*range(len(made.y)), *[POOLED] * len(outgoing.pooled), *[ITSELF] * len(outgoing.itself)]
    uses = [
        _Use(source, slope.data_ptr(), step(slope), _at(gates, column), _at(wanted.gates, column))
        for source, slope, column in zip(sources, slopes, outgoing.columns, strict=True)
    ]
    given = (pointer(made.y), *map(pointer, made.moments), len(uses), (_Use * len(uses))(*uses), pointer(made.pooled))
    kernel("node_back", h.dtype)(*_given(h, bunches), *given, pointer(wanted.features))
    return _one_by_one(wanted.kernels, outgoing)


class _Outgoing(torch.autograd.Function):
    """From features, gates and kernels to what leaves a node; back from the gradients of the sums behind it."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, gates: Tensor, outgoing: Outgoing, told: list[Tensor], *_: Tensor
    ) -> tuple[Tensor, ...]:
        made = leave(h, outgoing)
        told.append(made.moments)
        ctx.outgoing = outgoing
        kept = made if ctx.needs_input_grad[1] else made._replace(pooled=None)
        ctx.save_for_backward(h, gates, *kept)
        # detached: each is a tensor of its own on shared memory
        found = [mine.permute(0, 3, 1, 2).detach() for mine in made.y.unbind()]
        found += [made.pooled.detach() for _ in outgoing.pooled if made.pooled is not None]
        return (*found, *[h.detach() for _ in outgoing.itself])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        h, gates, *kept = ctx.saved_tensors
        of_h, of_gates, _, _, *of_weights = ctx.needs_input_grad
        made, mine = Made(*kept), [in_rows(slope) for slope in slopes]
        wanted = Wanted(
            torch.empty_like(h, memory_format=torch.channels_last) if of_h else None,
            torch.zeros_like(gates) if of_gates else None,
            torch.empty_like(made.kernels) if any(of_weights) else None,
        )
        of_kernels = leave_back(h, gates, ctx.outgoing, made, mine, wanted)
        return wanted.features, wanted.gates, None, None, *of_kernels


def _side_by_side(outgoing: Outgoing, dtype: torch.dtype) -> Tensor:
    """Return kernels as they are computed with, shape (n,): (C, k, k, C) each, one behind the other."""
    weights = [weight for bunch in outgoing.bunches for weight in bunch.weights]
    if not weights:
        return torch.empty(0, dtype=dtype)
    return torch.cat([weight.detach().permute(0, 2, 3, 1).reshape(-1) for weight in weights])


def _one_by_one(kernels: Tensor | None, outgoing: Outgoing) -> list[Tensor | None]:
    """Return the same as they were, (C, C, k, k) each; None for each where there are none."""
    weights = [weight for bunch in outgoing.bunches for weight in bunch.weights]
    if kernels is None or not weights:
        return [None] * len(weights)
    parts = kernels.split([weight.numel() for weight in weights])
    shapes = [[weight.shape[place] for place in (0, 2, 3, 1)] for weight in weights]
    return [part.view(shape).permute(0, 3, 1, 2) for part, shape in zip(parts, shapes, strict=True)]


def _both(kernels: Tensor | None, outgoing: Outgoing) -> list[int | None]:
    """Return where kernels of 3 x 3 and of 1 x 1 begin."""
    if kernels is None:
        return [None, None]
    first, dense = kernels.data_ptr(), sum(weight.numel() for weight in outgoing.dense.weights)
    return [first, first + dense * kernels.element_size()]


def _moving(bunch: Bunch, kernels: int | None, h: Tensor) -> _Bunch:
    """Return convolutions that a kernel finds moments of and moves the running ones."""
    norm, count = bunch.norm, len(bunch.weights)
    if norm is None:
        return _Bunch(0)
    check_running(norm, h.dtype, h.shape[1] * count)
    return _Bunch(count, kernels, norm.eps, norm.momentum, norm.mean.data_ptr(), norm.var.data_ptr())


def _given(h: Tensor, bunches: Sequence[_Bunch]) -> tuple[Any, ...]:
    """Return what both kernels are given first."""
    images, channels, height, width = h.shape
    sizes, parts = (ctypes.c_int64(images), height, width, channels), threads(h.numel())
    needed = _needed(library(h.dtype), h.shape, *(bunch.count for bunch in bunches), parts)
    return (*sizes, *map(ctypes.byref, bunches), parts, pointer(h), ctypes.c_int64(step(h)), room(needed, h.dtype))


@cache
def _needed(of: ctypes.CDLL, shape: torch.Size, dense: int, point: int, parts: int) -> int:
    """Return how many numbers kernels work in; a pass asks for every node of every cell."""
    images, channels, height, width = shape
    of.node_room.restype = ctypes.c_int64
    return int(of.node_room(ctypes.c_int64(images), height, width, channels, dense, point, parts))


def _at(gates: Tensor | None, column: int) -> int | None:
    return None if gates is None else gates.data_ptr() + column * gates.element_size()
