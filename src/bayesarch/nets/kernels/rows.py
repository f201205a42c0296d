"""Sums of gated and normalised features at one go, and their gradients; means over windows; kernels' gradients.

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

from bayesarch.nets.kernels.build import library

__all__ = ["SIDES", "Norm", "Part", "box_mean", "depthwise_gradient", "fan", "fits", "norm_relu", "parts_of", "sum_of"]

SUFFIX = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}
"""Types that there are kernels for."""
SIDES = (3, 5, 7)
"""Sides of depthwise kernels."""
BLOCK = 16
"""Values that the kernels take together."""
SMALL = 2**15
"""Values that one thread deals with, as in torch."""


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
        and h.dtype in SUFFIX
        and gates.dtype == _working(h.dtype)
        and gates.shape[0] == 1
    )


def parts_of(x: Tensor, gates: Tensor, users: Sequence[Sequence[int]], norm: Norm | None) -> list[list[Part]]:
    """Return what x brings to nodes, through gates.

    Args:
        x: what options compute, side by side: shape (B, S C, H, W).
        gates: shape (1, G).
        users: for each of the S options, the columns of the gates that it goes through, one for each node it goes to.
        norm: what all S C channels are normalised by; None: by nothing.

    Returns:
        A list of parts for each option, in the order of its columns.
    """
    x, gates = _in_rows(x), gates.contiguous()
    moments = None if norm is None else _moments(x.detach(), norm)
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
    found: tuple[Tensor, ...] = _Fan.apply(_in_rows(x), risen, plain)
    return list(found[:risen]), list(found[risen:])


def norm_relu(x: Tensor, norm: Norm) -> Tensor:
    """Return the positive part of x normalised by the moments of its channels, shape of x, channels last."""
    x = _in_rows(x)
    out: Tensor = _Rise.apply(x, _moments(x.detach(), norm))
    return out


def box_mean(x: Tensor) -> Tensor:
    """Return means over 3 x 3 windows at stride 1, shape of x; at the border, of what is inside the image."""
    out: Tensor = _Box.apply(x)
    return out


def depthwise_gradient(x: Tensor, slope: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Return the gradient of the kernels of a depthwise convolution that keeps the size, shape and type of `weight`.

    Args:
        x: what was convolved, shape (B, C, H, W).
        slope: the gradient of the output, shape of x.
        weight: the kernels, shape (C, 1, k, k), k of `SIDES`; only their shape and type matter.
        dilation: d; x is padded by d (k - 1) / 2 zeros.
    """
    x, slope = (t.contiguous(memory_format=torch.channels_last) for t in (x, slope.to(x.dtype)))
    images, channels, height, width = x.shape
    side = weight.shape[2]
    found = torch.empty(side, side, channels, dtype=torch.float64)
    run, sizes = getattr(library(), f"kernel_{SUFFIX[x.dtype]}"), (height, width, channels, side, dilation)
    run(ctypes.c_int64(images), *sizes, _threads(x.numel()), _pointer(x), _pointer(slope), _pointer(found))
    return found.permute(2, 0, 1).unsqueeze(1).to(weight.dtype).contiguous()


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
        mine = [_in_rows(slope.to(dtype)) for slope in slopes]
        getattr(library(), f"back_{SUFFIX[dtype]}")(
            len(ctx.users),
            _ints([0, *accumulate(len(columns) for columns in ctx.users)]),
            _pointers(mine),
            _longs([_step(slope) for slope in mine]),
            _pointer(gates),
            _ints([column for columns in ctx.users for column in columns]),
            _pointer(x),
            ctypes.c_int64(0 if x is None else _step(x)),
            _pointer(of and of.mean),
            _pointer(of and of.inv),
            ctypes.c_int64(rows),
            width,
            _threads(rows * shape[1]),
            _pointer(dx),
            _pointer(dgates),
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
        room = torch.empty((n + 1) * channels, dtype=_working(like.dtype))
        given = [part.moments for part in parts]
        getattr(library(), f"sum_{SUFFIX[like.dtype]}")(
            n,
            _pointers(stand),
            _longs([_step(tensor) for tensor in stand]),
            (ctypes.c_void_p * n)(*[p.gates.data_ptr() + p.column * p.gates.element_size() for p in parts]),
            (ctypes.c_void_p * n)(*[None if m is None else m.mean.data_ptr() for m in given]),
            (ctypes.c_void_p * n)(*[None if m is None else m.inv.data_ptr() for m in given]),
            ctypes.c_int64(rows),
            channels,
            _threads(rows * channels),
            _pointer(room),
            _pointer(out),
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        slope = _in_rows(slope)
        return (None, *[slope] * ctx.n)


class _Fan(torch.autograd.Function):
    """From one tensor to all that take it, and back from their gradients, those that there are, to its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, risen: int, plain: int) -> tuple[Tensor, ...]:
        y = x.relu() if risen else None
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
            [_in_rows(g.to(dtype)) for g in mine if g is not None]
            for mine in (slopes[: ctx.risen], slopes[ctx.risen :])
        )
        mine = [*first, *second]
        if not mine:
            return None, None, None
        dx = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
        steps = [_step(slope) for slope in mine]
        rows, width, far = shape.numel() // shape[1], shape[1], 0 if y is None else _step(y)
        if shape.numel() % BLOCK == 0 and {width} >= {*steps, far or width}:
            # nothing lies between: what is done to values alone may take them by whole blocks
            rows, width, steps, far = shape.numel() // BLOCK, BLOCK, [BLOCK] * len(mine), BLOCK
        getattr(library(), f"fan_{SUFFIX[dtype]}")(
            len(mine),
            len(first),
            _pointers(mine),
            _longs(steps),
            _pointer(y),
            ctypes.c_int64(far),
            ctypes.c_int64(rows),
            width,
            _threads(shape.numel()),
            _pointer(dx),
        )
        return dx, None, None


class _Rise(torch.autograd.Function):
    """The positive part of what is normalised: kept are what it was made of, and two numbers a channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, moments: Moments) -> Tensor:
        channels = x.shape[1]
        ctx.moments, ctx.room = moments, torch.empty(2 * channels, dtype=_working(x.dtype))
        ctx.save_for_backward(x)
        out = torch.empty_like(x, memory_format=torch.channels_last)
        sizes = (ctypes.c_int64(x.numel() // channels), channels, _threads(x.numel()))
        run = getattr(library(), f"rise_{SUFFIX[x.dtype]}")
        run(_pointer(x), ctypes.c_int64(_step(x)), *map(_pointer, moments), *sizes, _pointer(ctx.room), _pointer(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        slope, channels = _in_rows(slope), x.shape[1]
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        getattr(library(), f"rise_back_{SUFFIX[x.dtype]}")(
            _pointer(x),
            ctypes.c_int64(_step(x)),
            _pointer(slope),
            ctypes.c_int64(_step(slope)),
            *map(_pointer, ctx.moments),
            ctypes.c_int64(x.numel() // channels),
            channels,
            _threads(x.numel()),
            _pointer(ctx.room),
            _pointer(dx),
        )
        return dx, None


class _Box(torch.autograd.Function):
    """Means over windows, which are linear."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _box(x, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return _box(slope, back=True)


def _box(x: Tensor, *, back: bool) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = x.shape
    out = torch.empty_like(x)
    run = getattr(library(), f"box_{SUFFIX[x.dtype]}")
    run(ctypes.c_int64(images), height, width, channels, int(back), _threads(x.numel()), _pointer(x), _pointer(out))
    return out


def _moments(x: Tensor, norm: Norm) -> Moments:
    """Return the moments of x, and move the running ones.

    Raises:
        ValueError: if those are not what the kernel writes to.
    """
    channels = x.shape[1]
    for running in (norm.mean, norm.var):
        if running.dtype != _working(x.dtype) or running.shape != (channels,) or not running.is_contiguous():
            raise ValueError(
                f"running moments of {x.dtype} features are {channels} values of {_working(x.dtype)} in a row; got "
                f"{tuple(running.shape)} of {running.dtype}"
            )
    rows = x.numel() // channels
    mean, inv = torch.empty(2, channels, dtype=torch.float64)
    getattr(library(), f"moments_{SUFFIX[x.dtype]}")(
        _pointer(x),
        ctypes.c_int64(_step(x)),
        ctypes.c_int64(rows),
        channels,
        _threads(x.numel()),
        ctypes.c_double(norm.eps),
        ctypes.c_double(norm.momentum),
        _pointer(norm.mean),
        _pointer(norm.var),
        _pointer(mean),
        _pointer(inv),
    )
    return Moments(mean, inv)


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _in_rows(x: Tensor) -> Tensor:
    """Return x as rows of channels: as it is, where it is."""
    return x if _step(x) else x.contiguous(memory_format=torch.channels_last)


def _step(x: Tensor) -> int:
    """Return how far it is from pixel to pixel, where it is equally far everywhere and channels lie together, or 0."""
    sizes, strides = x.shape, x.stride()
    if strides[1] != 1 and sizes[1] != 1:
        return 0
    step, count = 0, 1
    for axis in (3, 2, 0):
        if sizes[axis] > 1:
            step = step or strides[axis] // count
            if not step or strides[axis] != step * count:
                return 0
        count *= sizes[axis]
    step = step or sizes[1]
    return step if step >= sizes[1] else 0


def _threads(values: int) -> int:
    return torch.get_num_threads() if values > SMALL else 1


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def _ints(numbers: Sequence[int]) -> Any:
    return (ctypes.c_int * len(numbers))(*numbers)


def _longs(numbers: Sequence[int]) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)
