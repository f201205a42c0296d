"""1 x 1 convolutions, most behind a depthwise one, all that leave one node together.

A chain is one or two such pairs, with a norm and its positive part between them and perhaps a norm behind the last. All
chains of a node take the same input. That is read once for all their first pairs, and on the way back one gradient of
it is written; what lies between the two convolutions of a pair is never in memory. Kept for the way back are the input
and what each pair gives, from which all else is computed again. What a chain without a norm at its end gives is not
kept: it is linear in what lies between, by which the gradient of its gate is found.
"""

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bayesarch.nets.kernels.arguments import in_rows, pointer, room, step, threads, working
from bayesarch.nets.kernels.build import kernel, library
from bayesarch.nets.kernels.rows import Moments, Norm, Part, check_running

__all__ = ["SIDES", "Chain", "Pair", "Rise", "separable_parts"]

SIDES = (3, 5, 7)
"""Sides of depthwise kernels."""


class Pair(NamedTuple):
    """A depthwise convolution, padded so that at stride 1 the size is kept, and the 1 x 1 convolution behind it.

    Attributes:
        depth: kernels, shape (C, 1, k, k), k of `SIDES`; None: the 1 x 1 convolution alone.
        point: kernels, shape (O, C, 1, 1).
        dilation: of the first.
        stride: of the first, along both axes.
        norm: what the output is normalised by; None: by nothing.
    """

    depth: Tensor | None
    point: Tensor
    dilation: int
    stride: int
    norm: Norm | None


class Chain(NamedTuple):
    """Pairs one behind the other, between which the positive part is taken of what is normalised.

    Attributes:
        pairs: all but the last have a norm; all but the first have stride 1.
        column: of the gate that the output is multiplied by.
    """

    pairs: tuple[Pair, ...]
    column: int


class Rise(NamedTuple):
    """The positive part of an input, which is never made.

    Attributes:
        moments: those of the input, by which it is normalised before; None: it is taken as it is.
    """

    moments: Moments | None


def separable_parts(x: Tensor, gates: Tensor, chains: Sequence[Chain], rise: Rise | None = None) -> list[Part]:
    """Return what chains bring to nodes, through gates; `sum_of` alone can read it.

    A second derivative is refused.

    Args:
        x: what all of them take, shape (B, C, H, W), on a CPU.
        gates: shape (1, G).
        chains: at least one; the first pairs have the same stride.
        rise: how they take the positive part of x; None: they take x.

    Raises:
        ValueError: if running moments are not what a kernel writes to.
    """
    found = [[None if pair.norm is None else _empty(pair) for pair in chain.pairs] for chain in chains]
    weights = [kernel for chain in chains for pair in chain.pairs for kernel in (pair.depth, pair.point)]
    stand: tuple[Tensor, ...] = _Chains.apply(in_rows(x), gates.contiguous(), chains, found, rise, *weights)
    return [Part(out, gates, chain.column, mine[-1]) for out, chain, mine in zip(stand, chains, found, strict=True)]


def _applied(rise: Rise | None, x: Tensor) -> tuple[Moments | None, int]:
    """Return what kernels normalise x by before they take its positive part, and whether gradients go through that."""
    if rise is None or rise.moments is not None:
        return rise and rise.moments, 1
    zeros = torch.zeros(x.shape[1], dtype=torch.float64)
    return Moments(zeros, torch.ones_like(zeros)), 0


def _empty(pair: Pair) -> Moments:
    return Moments(*torch.empty(2, len(pair.point), dtype=torch.float64))


class _Unit(ctypes.Structure):
    """A pair as the kernels know it; `separable.h` says what each is."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("side", "dilation", "out")),
        *((name, ctypes.c_void_p) for name in ("taps", "point", "y")),
        *((name, ctypes.c_double) for name in ("eps", "momentum")),
        *((name, ctypes.c_void_p) for name in ("mean", "inv", "running_mean", "running_var", "g")),
        ("step", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("gate", "of_gate", "dtaps", "dpoint")),
    ]


class _Made(NamedTuple):
    """A pair, what it gives and the moments of that, and its kernels in the type that is computed in.

    What it gives is empty where it was not kept.
    """

    pair: Pair
    out: Tensor
    moments: Moments | None
    kernels: tuple[Tensor | None, Tensor]

    def unit(self, told: dict[str, Any]) -> _Unit:
        """Return what kernels are told of it, and what else this one is."""
        taps, point = self.kernels
        addresses = {"point": point, "y": self.out} | ({} if taps is None else {"taps": taps})
        if self.moments is not None:
            addresses |= {"mean": self.moments.mean, "inv": self.moments.inv}
        sizes = (1 if taps is None else taps.shape[2], self.pair.dilation, point.shape[0])
        return _Unit(*sizes, **{name: tensor.data_ptr() for name, tensor in addresses.items()}, **told)


class _Chains(torch.autograd.Function):
    """From what chains take, gates and kernels to what they give; back from the gradients of the sums behind them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gates: Tensor, chains: Any, moments: Any, rise: Any, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        made: list[list[_Made]] = []
        for chain, mine in zip(chains, moments, strict=True):
            made.append([])
            for pair, of_out in zip(chain.pairs, mine, strict=True):
                out = _empty_out(made[-1][-1].out if made[-1] else x, pair)
                made[-1].append(_Made(pair, out, of_out, _working(pair, x.dtype)))
        _run("separable", x, _applied(rise, x)[0], [line[0] for line in made], [_moving(line[0]) for line in made])
        for line in made:
            for before, one in pairwise(line):
                _run("separable", before.out, before.moments, [one], [_moving(one)])
        ctx.chains, ctx.moments, ctx.rise = chains, moments, rise
        outs = [one.out if _read_again(one.pair) else x.new_empty(0) for line in made for one in line]
        ctx.save_for_backward(x, gates, *weights, *outs)
        return tuple(line[-1].out.detach() for line in made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        x, gates, *saved = ctx.saved_tensors
        weights, wanted = saved[: len(ctx.needs_input_grad) - 5], iter(ctx.needs_input_grad[5:])
        outs = iter(saved[len(weights) :])
        dx = torch.empty_like(x, memory_format=torch.channels_last) if ctx.needs_input_grad[0] else None
        dgates = torch.zeros_like(gates) if ctx.needs_input_grad[1] else None
        firsts, told, found = [], [], []
        for chain, moments, slope in zip(ctx.chains, ctx.moments, slopes, strict=True):
            line = [
                _Made(pair, next(outs), mine, _working(pair, x.dtype))
                for pair, mine in zip(chain.pairs, moments, strict=True)
            ]
            asked = [[_room_for(w, next(wanted)) for w in one.kernels] for one in line]
            found += [dw for both in asked for dw in both]
            g = _Slope(in_rows(slope.to(x.dtype)), _at(gates, chain.column), _at(dgates, chain.column))
            for k in range(len(line) - 1, 0, -1):
                below = torch.empty_like(line[k - 1].out)
                given = (line[k - 1].out, line[k - 1].moments, [line[k]], [g.told(asked[k])])
                _run("separable_back", *given, pointer(below), 1)
                g = _Slope(below)
            firsts.append(line[0])
            told.append((g, asked[0]))
        before, through = _applied(ctx.rise, x)
        _run("separable_back", x, before, firsts, [g.told(dw) for g, dw in told], pointer(dx), through)
        of_weights = [None if dw is None else dw.to(w.dtype) for dw, w in zip(found, weights, strict=True)]
        return dx, dgates, None, None, None, *of_weights


class _Slope(NamedTuple):
    """The gradient of what a pair gives; or, with where its gate lies, of the sum behind that."""

    g: Tensor
    gate: int | None = None
    of_gate: int | None = None

    def told(self, of_weights: Sequence[Tensor | None]) -> dict[str, Any]:
        """Return what a kernel is told of it, and of the gradients of weights."""
        taps, point = (None if dw is None else dw.data_ptr() for dw in of_weights)
        found = {"gate": self.gate, "of_gate": self.of_gate, "dtaps": taps, "dpoint": point}
        return {"g": self.g.data_ptr(), "step": step(self.g), **found}


def _read_again(pair: Pair) -> bool:
    """Return whether what a pair gives is read on the way back."""
    return pair.norm is not None or pair.depth is None


def _room_for(w: Tensor | None, wanted: bool) -> Tensor | None:
    return torch.empty_like(w) if wanted and w is not None else None


def _at(gates: Tensor | None, column: int) -> int | None:
    return None if gates is None else gates.data_ptr() + column * gates.element_size()


def _working(pair: Pair, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    depth = None if pair.depth is None else pair.depth.detach().to(working(dtype)).contiguous()
    return depth, pair.point.detach().to(working(dtype)).contiguous()


def _empty_out(x: Tensor, pair: Pair) -> Tensor:
    size = [(length - 1) // pair.stride + 1 for length in x.shape[2:]]
    return torch.empty(len(x), len(pair.point), *size, dtype=x.dtype, memory_format=torch.channels_last)


def _moving(one: _Made) -> dict[str, Any]:
    """Return what a kernel is told that finds moments and moves the running ones."""
    norm = one.pair.norm
    if norm is None:
        return {}
    check_running(norm, one.out.dtype, one.out.shape[1])
    running = {"running_mean": norm.mean.data_ptr(), "running_var": norm.var.data_ptr()}
    return {"eps": norm.eps, "momentum": norm.momentum, **running}


def _run(
    name: str, x: Tensor, moments: Moments | None, made: Sequence[_Made], told: Sequence[dict[str, Any]], *more: Any
) -> None:
    """Run a kernel on what pairs take, normalised by its moments where there are some, and on the pairs."""
    images, channels, height, width = x.shape
    units = (_Unit * len(made))(*[one.unit(mine) for one, mine in zip(made, told, strict=True)])
    sizes = (ctypes.c_int64(images), height, width, channels, made[0].pair.stride, threads(x.numel()))
    needed = library(x.dtype).separable_room
    needed.restype = ctypes.c_int64
    kernel(name, x.dtype)(
        len(made),
        units,
        *sizes,
        pointer(x),
        ctypes.c_int64(step(x)),
        pointer(moments and moments.mean),
        pointer(moments and moments.inv),
        room(needed(len(made), units, *sizes), working(x.dtype)),
        *more,
    )
