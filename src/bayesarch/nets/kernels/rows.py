"""Sums of gated and normalised features at one go, and their gradients.

What an option brings to a node is `gate * norm(x)` or `gate * x`. Here neither is ever made. A `Part` holds x itself
and says what it stands for, the sum at the node reads every x once, and the sum's gradient goes back to each part as it
is: `parts_of`, which made the parts, turns the gradients of all sums that x went to into those of x and of the gates,
in one pass where nothing is normalised and in two where something is.

The gradient of a normalised x is that of `torch.nn.functional.batch_norm`: with z = (x - m) / s over the n rows, and G
the sum of gate times gradient over the sums that z goes to, it is (G - mean(G) - z mean(G z)) / s, and the gradient of
a gate is the sum over rows and channels of gradient times z. Sums over rows are taken in double.
"""

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bayesarch.nets.kernels.arguments import (
    BLOCK,
    in_rows,
    ints,
    longs,
    pointer,
    pointers,
    step,
    threads,
    working,
)
from bayesarch.nets.kernels.build import TYPES, kernel

__all__ = ["Moments", "Norm", "Part", "check_running", "fan", "fits", "moments_of", "norm_relu", "parts_of", "sum_of"]


class Norm(NamedTuple):
    """A batch norm without scale and shift, in training.

    Attributes:
        mean: running mean, shape (C,) of x, moved in place.
        var: running variance, likewise.
        momentum: weight of a new batch.
        eps: added to the variance.
    """

    mean: Tensor
    var: Tensor
    momentum: float
    eps: float


class Moments(NamedTuple):
    """Means and reciprocal deviations of channels, double, shape (C,)."""

    mean: Tensor
    inv: Tensor


class Part(NamedTuple):
    """What one option brings to a node; `sum_of` alone can read it.

    Attributes:
        stands: holds x, shape (B, C, H, W); its gradient is that of gate times (normalised) x.
        gates: shape (1, G).
        column: of the gate.
        moments: of x's channels; None: it is not normalised.
    """

    stands: Tensor
    gates: Tensor
    column: int
    moments: Moments | None


def fits(h: Tensor, gates: Tensor) -> bool:
    """Return whether there are kernels for features `h` under gates of shape (B or 1, G)."""
    return (
        h.device.type == "cpu"
        and h.ndim == 4
        and h.dtype in TYPES
        and gates.dtype == working(h.dtype)
        and gates.shape[0] == 1
    )


def parts_of(
    x: Tensor, gates: Tensor, users: Sequence[Sequence[int]], moments: Moments | None = None
) -> list[list[Part]]:
    """Return what x brings to nodes, through gates.

    Args:
        x: what options compute, side by side: shape (B, S C, H, W).
        gates: shape (1, G).
        users: for each of the S options, the columns of the gates that it goes through, one for each node it goes to.
        moments: what all S C channels are normalised by; None: by nothing.

    Returns:
        A list of parts for each option, in the order of its columns.
    """
    x, gates = in_rows(x), gates.contiguous()
    stand: tuple[Tensor, ...] = _Leave.apply(x, gates, users, moments)
    width, found, place = x.shape[1] // len(users), [], 0
    for s, columns in enumerate(users):
        mine = moments and Moments(*(tensor[s * width : (s + 1) * width] for tensor in moments))
        found.append([Part(stand[place + i], gates, column, mine) for i, column in enumerate(columns)])
        place += len(columns)
    return found


def sum_of(parts: Sequence[Part]) -> Tensor:
    """Return the sum of what parts stand for, shape (B, C, H, W), channels last."""
    stand = [part.stands for part in parts]
    dtype = stand[0].dtype
    for tensor in stand[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    out: Tensor = _Sum.apply(parts, *[tensor.to(dtype) for tensor in stand])
    return out


def fan(x: Tensor, risen: int, plain: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return x for each of those that take its positive part, and for those that take it as it is.

    Each has a tensor of its own on shared memory, never to be written to; their gradients are summed in one pass.

    Args:
        x: shape (B, C, H, W).
        risen: how many take the positive part; some may be left unused.
        plain: how many take x; likewise.
    """
    if not risen and plain < 2:
        return [], [x] * plain
    found: tuple[Tensor, ...] = _Fan.apply(in_rows(x), risen, plain)
    return list(found[:risen]), list(found[risen:])


def norm_relu(x: Tensor, moments: Moments) -> Tensor:
    """Return the positive part of x normalised by the moments of its channels, shape of x, channels last."""
    out: Tensor = _Rise.apply(in_rows(x), moments)
    return out


class _Leave(torch.autograd.Function):
    """From x to the parts that it goes out as, and back from their gradients to those of x and of the gates."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gates: Tensor, users: Sequence[Sequence[int]], moments: Moments | None
    ) -> tuple[Tensor, ...]:
        ctx.users, ctx.moments, ctx.like = users, moments, (x.shape, x.dtype)
        read = moments is not None or ctx.needs_input_grad[1]  # on the way back
        ctx.save_for_backward(x if read else None, gates)
        width = x.shape[1] // len(users)
        # detached: each is a tensor of its own on the memory of x
        return tuple(x[:, s * width : (s + 1) * width].detach() for s, columns in enumerate(users) for _ in columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, gates = ctx.saved_tensors
        of_x, of_gates = ctx.needs_input_grad[:2]
        shape, dtype = ctx.like
        dx = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last) if of_x else None
        dgates = torch.zeros_like(gates) if of_gates else None
        rows, width, of = shape.numel() // shape[1], shape[1] // len(ctx.users), ctx.moments
        mine = [in_rows(slope.to(dtype)) for slope in slopes]
        kernel("back", dtype)(
            len(ctx.users),
            ints([0, *accumulate(len(columns) for columns in ctx.users)]),
            pointers(mine),
            longs([step(slope) for slope in mine]),
            pointer(gates),
            ints([column for columns in ctx.users for column in columns]),
            pointer(x),
            ctypes.c_int64(0 if x is None else step(x)),
            pointer(of and of.mean),
            pointer(of and of.inv),
            ctypes.c_int64(rows),
            width,
            threads(rows * shape[1]),
            pointer(dx),
            pointer(dgates),
        )
        return dx, dgates, None, None


class _Sum(torch.autograd.Function):
    """The sum of what parts stand for; to each, the gradient of the sum as it is."""

    @staticmethod
    def forward(ctx: Any, parts: Sequence[Part], *stand: Tensor) -> Tensor:
        ctx.n = len(parts)
        like = stand[0]
        n, channels, rows = len(parts), like.shape[1], like.numel() // like.shape[1]
        out = torch.empty_like(like, memory_format=torch.channels_last)
        room = torch.empty((n + 1) * channels, dtype=working(like.dtype))
        given = [part.moments for part in parts]
        kernel("sum", like.dtype)(
            n,
            pointers(stand),
            longs([step(tensor) for tensor in stand]),
            (ctypes.c_void_p * n)(*[p.gates.data_ptr() + p.column * p.gates.element_size() for p in parts]),
            (ctypes.c_void_p * n)(*[None if m is None else m.mean.data_ptr() for m in given]),
            (ctypes.c_void_p * n)(*[None if m is None else m.inv.data_ptr() for m in given]),
            ctypes.c_int64(rows),
            channels,
            threads(rows * channels),
            pointer(room),
            pointer(out),
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        slope = in_rows(slope)
        return (None, *[slope] * ctx.n)


class _Fan(torch.autograd.Function):
    """From one tensor to all that take it, and back from their gradients, those that there are, to its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, risen: int, plain: int) -> tuple[Tensor, ...]:
        y = x.relu().contiguous(memory_format=torch.channels_last) if risen else None
        ctx.risen, ctx.like = risen, (x.shape, x.dtype)
        ctx.save_for_backward(y)
        ctx.set_materialize_grads(False)
        return (*[y.detach() for _ in range(risen) if y is not None], *[x.detach() for _ in range(plain)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, None, None]:
        (y,) = ctx.saved_tensors
        shape, dtype = ctx.like
        first, second = (
            [in_rows(g.to(dtype)) for g in mine if g is not None] for mine in (slopes[: ctx.risen], slopes[ctx.risen :])
        )
        mine = [*first, *second]
        dx = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
        steps = [step(slope) for slope in mine]
        rows, width = shape.numel() // shape[1], shape[1]
        if shape.numel() % BLOCK == 0 and set(steps) <= {width}:
            # nothing lies between: what is done to values alone may take them by whole blocks
            rows, width, steps = shape.numel() // BLOCK, BLOCK, [BLOCK] * len(mine)
        kernel("fan", dtype)(
            len(mine),
            len(first),
            pointers(mine),
            longs(steps),
            pointer(y),
            ctypes.c_int64(width),
            ctypes.c_int64(rows),
            width,
            threads(shape.numel()),
            pointer(dx),
        )
        return dx, None, None


class _Rise(torch.autograd.Function):
    """The positive part of what is normalised: kept are what it was made of, and two numbers a channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, moments: Moments) -> Tensor:
        channels = x.shape[1]
        ctx.moments, ctx.room = moments, torch.empty(2 * channels, dtype=working(x.dtype))
        ctx.save_for_backward(x)
        out = torch.empty_like(x, memory_format=torch.channels_last)
        sizes = (ctypes.c_int64(x.numel() // channels), channels, threads(x.numel()))
        run = kernel("rise", x.dtype)
        run(pointer(x), ctypes.c_int64(step(x)), *map(pointer, moments), *sizes, pointer(ctx.room), pointer(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        slope, channels = in_rows(slope), x.shape[1]
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        kernel("rise_back", x.dtype)(
            pointer(x),
            ctypes.c_int64(step(x)),
            pointer(slope),
            ctypes.c_int64(step(slope)),
            *map(pointer, ctx.moments),
            ctypes.c_int64(x.numel() // channels),
            channels,
            threads(x.numel()),
            pointer(ctx.room),
            pointer(dx),
        )
        return dx, None


def moments_of(x: Tensor, norm: Norm) -> Moments:
    """Return the moments of x, shape (B, C, H, W), and move the running ones.

    Raises:
        ValueError: if those are not what the kernel writes to.
    """
    x = in_rows(x.detach())
    channels = x.shape[1]
    check_running(norm, x.dtype, channels)
    mean, inv = torch.empty(2, channels, dtype=torch.float64)
    kernel("moments", x.dtype)(
        pointer(x),
        ctypes.c_int64(step(x)),
        ctypes.c_int64(x.numel() // channels),
        channels,
        threads(x.numel()),
        ctypes.c_double(norm.eps),
        ctypes.c_double(norm.momentum),
        pointer(norm.mean),
        pointer(norm.var),
        pointer(mean),
        pointer(inv),
    )
    return Moments(mean, inv)


def check_running(norm: Norm, dtype: torch.dtype, channels: int) -> None:
    """Refuse running moments that a kernel cannot write to.

    Raises:
        ValueError: if they are not so many values in a row of what features of this type are computed in.
    """
    for running in (norm.mean, norm.var):
        if running.dtype != working(dtype) or running.shape != (channels,) or not running.is_contiguous():
            raise ValueError(
                f"running moments of {dtype} features are {channels} values of {working(dtype)} in a row; got "
                f"{tuple(running.shape)} of {running.dtype}"
            )
