"""Convolutions of groups of channels: networks that lie side by side, each with channels of its own.

Sums over taps and channels as they stand. `alike` sorts the pixels of a target by the taps that they see, so that the
kernels in C neither pad nor ask.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bayesarch.nets.kernels.arguments import ints, pointer, room, threads
from bayesarch.nets.kernels.build import kernel, library

__all__ = ["Alike", "Sizes", "alike", "grouped_conv"]


class Sizes(NamedTuple):
    """What a convolution is along one axis.

    Attributes:
        length: of the input.
        side: of the kernel.
        stride: of the output.
        padding: zeros at either end.
        dilation: from tap to tap.
    """

    length: int
    side: int
    stride: int
    padding: int
    dilation: int

    @property
    def out(self) -> int:
        """Length of the output."""
        return (self.length + 2 * self.padding - self.dilation * (self.side - 1) - 1) // self.stride + 1

    def seen(self, place: int, tap: int, *, back: bool) -> int | None:
        """Return where in the source a place of the target sees by a tap; None: outside.

        Forward the source is the input, back it is the output's gradient, and the target the other.
        """
        if not back:
            at = place * self.stride - self.padding + tap * self.dilation
            return at if 0 <= at < self.length else None
        at, beside = divmod(place + self.padding - tap * self.dilation, self.stride)
        return at if beside == 0 and 0 <= at < self.out else None


class Alike(NamedTuple):
    """Places of a target that see the same taps.

    Attributes:
        at: the places.
        of: where each sees by the first of the taps.
        taps: the taps; none: nothing is seen there.
        far: how far behind that each tap sees.
    """

    at: list[int]
    of: list[int]
    taps: list[int]
    far: list[int]


def alike(sizes: Sizes, *, back: bool) -> list[Alike]:
    """Return the places of a target along one axis, by the taps that they see."""
    classes: dict[tuple[int, ...], Alike] = {}
    for place in range(sizes.length if back else sizes.out):
        seen = {tap: sizes.seen(place, tap, back=back) for tap in range(sizes.side)}
        where = {tap: at for tap, at in seen.items() if at is not None}
        first = next(iter(where.values()), 0)
        mine = classes.setdefault(tuple(where), Alike([], [], list(where), [at - first for at in where.values()]))
        mine.at.append(place)
        mine.of.append(first)
    return list(classes.values())


class _Alike(ctypes.Structure):
    """The same of both axes, as the kernels know it."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("pixels", "taps")),
        *((name, ctypes.c_void_p) for name in ("of", "at", "tap", "far")),
    ]


class _Layer(ctypes.Structure):
    """A convolution's sizes, as the kernels know them."""

    _fields_ = [
        ("images", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("classes", "source", "target", "groups", "in", "out", "taps", "threads")),
    ]


@cache
def _classes(rows: Sizes, columns: Sizes, back: bool) -> tuple[Any, list[Any]]:
    """Return pixels by the taps that they see, and what must live as long."""
    source, target = (columns.out, columns.length) if back else (columns.length, columns.out)
    found, kept = [], []
    for down in alike(rows, back=back):
        for along in alike(columns, back=back):
            lists = (
                [y * source + x for y in down.of for x in along.of],
                [y * target + x for y in down.at for x in along.at],
                [i * columns.side + j for i in down.taps for j in along.taps],
                [y * source + x for y in down.far for x in along.far],
            )
            arrays = [ints(numbers) for numbers in lists]
            kept += arrays
            found.append(_Alike(len(lists[0]), len(lists[2]), *map(ctypes.addressof, arrays)))
    return (_Alike * len(found))(*found), kept


def grouped_conv(
    x: Tensor, weight: Tensor, groups: int, *, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Return the convolution, as `torch.nn.functional.conv2d`, shape (B, O, H', W'), channels last.

    A second derivative is refused.

    Args:
        x: shape (B, groups C, H, W), fp32 or float64, on a CPU.
        weight: shape (O, C, k, l).
        groups: how many.
        stride: along both axes; so are the others.
        padding: zeros at either end.
        dilation: from tap to tap.
    """
    rows, columns = (
        Sizes(*sizes) for sizes in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    )
    out: Tensor = _Grouped.apply(x, weight, groups, rows, columns)
    return out


class _Grouped(torch.autograd.Function):
    """The convolution; kept are what it takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: int, rows: Sizes, columns: Sizes) -> Tensor:
        x, weight = _last(x), _last(weight)
        ctx.save_for_backward(x, weight)
        ctx.layer = groups, rows, columns
        return _convolved(x, weight, groups, rows, columns, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        slope = _last(slope)
        of_x = _convolved(slope, weight, *ctx.layer, back=True) if ctx.needs_input_grad[0] else None
        of_weight = _of_kernels(x, slope, weight, *ctx.layer) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None, None, None


def _convolved(x: Tensor, weight: Tensor, groups: int, rows: Sizes, columns: Sizes, *, back: bool) -> Tensor:
    outs, ins = weight.shape[0] // groups, weight.shape[1]
    size = (rows.length, columns.length) if back else (rows.out, columns.out)
    ins, outs = (outs, ins) if back else (ins, outs)
    out = torch.empty(len(x), groups * outs, *size, dtype=x.dtype, memory_format=torch.channels_last)
    classes, _ = _classes(rows, columns, back)
    layer = _layer(x, out, len(classes), groups, ins, outs, weight, threads(x.numel()))
    kernel("grouped", x.dtype)(
        ctypes.byref(layer), classes, int(back), pointer(x), pointer(weight), _room(layer, x.dtype), pointer(out)
    )
    return out


def _of_kernels(x: Tensor, slope: Tensor, weight: Tensor, groups: int, rows: Sizes, columns: Sizes) -> Tensor:
    classes, _ = _classes(rows, columns, False)
    layer = _layer(
        x, slope, len(classes), groups, weight.shape[1], weight.shape[0] // groups, weight, threads(x.numel())
    )
    out = torch.empty_like(weight)
    kernel("grouped_kernel", x.dtype)(
        ctypes.byref(layer), classes, pointer(x), pointer(slope), _room(layer, x.dtype), pointer(out)
    )
    return out


def _layer(
    x: Tensor, target: Tensor, classes: int, groups: int, ins: int, outs: int, weight: Tensor, parts: int
) -> _Layer:
    pixels = [tensor.shape[2] * tensor.shape[3] for tensor in (x, target)]
    return _Layer(len(x), classes, *pixels, groups, ins, outs, weight.shape[2] * weight.shape[3], parts)


def _room(layer: _Layer, dtype: torch.dtype) -> ctypes.c_void_p:
    needed = library(dtype).grouped_room
    needed.restype = ctypes.c_int64
    return room(needed(ctypes.byref(layer)), dtype)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
