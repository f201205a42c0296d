"""All of a cell as one function: what leaves its nodes, as in `node.py`, and the sums that it goes to.

It gives what functions of the nodes and of the sums would give, one after another, and keeps as much. What is saved is
the way through torch from each to the next, much of a step where networks are small. On the way back the gradient
of a sum is that of everything that goes to it, so that no gradient is ever added to another but at an output that
something leaves.
"""

import ctypes
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bayesarch.nets.kernels.arguments import in_rows, longs, pointer, room, step, threads
from bayesarch.nets.kernels.build import kernel
from bayesarch.nets.kernels.node import Made, Outgoing, Wanted, leave, leave_back

__all__ = ["Wired", "Wiring", "cell_features"]


class Wired(NamedTuple):
    """What leaves a node, and where to.

    Attributes:
        outgoing: what leaves.
        targets: for each of `outgoing.columns` the place of the node that it goes to, a later one.
    """

    outgoing: Outgoing
    targets: Sequence[int]


class Wiring(NamedTuple):
    """The nodes of a cell.

    Attributes:
        nodes: what leaves each, in an order in which everything leads forward.
        inputs: places of those that are the cell's input; nothing goes to them.
        outputs: places of those that are asked for, others than these; each is there once.
    """

    nodes: Sequence[Wired]
    inputs: frozenset[int]
    outputs: Sequence[int]


def cell_features(x: Tensor, gates: Tensor, wiring: Wiring) -> tuple[Tensor, ...]:
    """Return the features of the nodes that are outputs, shape of x, channels last; zeros where nothing goes to one.

    A second derivative is refused.

    Args:
        x: the input, shape (B, C, H, W), which `outgoing_fits`.
        gates: shape (1, G).
        wiring: the nodes.

    Raises:
        ValueError: if running moments are not what a kernel writes to.
    """
    weights = [w for node in wiring.nodes for bunch in node.outgoing.bunches for w in bunch.weights]
    found: tuple[Tensor, ...] = _Cell.apply(in_rows(x), gates.contiguous(), wiring, *weights)
    return found


class _Term(NamedTuple):
    """What goes to a sum: where it lies, how far its pixels are apart, its gate, its moments if it is normalised.

    The first is the tensor that it lies in, which must not be gone before.
    """

    held: Tensor
    address: int
    step: int
    gate: int
    mean: int | None
    inv: int | None


class _Cell(torch.autograd.Function):
    """From the input, gates and kernels to outputs, and back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor, wiring: Wiring, *_: Tensor) -> tuple[Tensor, ...]:
        coming: list[list[_Term]] = [[] for _ in wiring.nodes]
        features, kept = [], []
        for place, (outgoing, targets) in enumerate(wiring.nodes):
            h = x if place in wiring.inputs else _added_up(coming[place], x)
            features.append(h)
            if targets:
                made = leave(h, outgoing)
                for target, term in zip(targets, _terms(h, gates, outgoing, made), strict=True):
                    coming[target].append(term)
                kept += [h, *(made if ctx.needs_input_grad[1] else made._replace(pooled=None))]
        ctx.wiring = wiring
        ctx.save_for_backward(gates, *kept)
        # detached: each is a tensor of its own on shared memory
        return tuple(features[place].detach() for place in wiring.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        (gates, *kept), wiring = ctx.saved_tensors, ctx.wiring
        of_x, of_gates, _, *of_weights = ctx.needs_input_grad
        dgates = torch.zeros_like(gates) if of_gates else None
        found: list[Tensor | None] = [None] * len(wiring.nodes)  # gradients of features
        for place, slope in zip(wiring.outputs, slopes, strict=True):
            found[place] = in_rows(slope)
        of_kernels: list[Tensor | None] = []
        for place in reversed(range(len(found))):
            (outgoing, targets), inside = wiring.nodes[place], place not in wiring.inputs
            if targets:
                h, *mine = kept[-5:]
                del kept[-5:]
                made = Made(*mine)
                dx = torch.empty_like(h, memory_format=torch.channels_last) if of_x or inside else None
                dkernels = torch.empty_like(made.kernels) if any(of_weights) else None
                behind = [slope for target in targets if (slope := found[target]) is not None]
                of_kernels = leave_back(h, gates, outgoing, made, behind, Wanted(dx, dgates, dkernels)) + of_kernels
                found[place] = _sum(dx, found[place])
            elif found[place] is None and inside:
                found[place] = torch.zeros_like(slopes[0], memory_format=torch.channels_last)
        of_input = [found[place] for place in wiring.inputs] if of_x else []
        dx = reduce(_sum, of_input, None)
        return dx, dgates, None, *of_kernels


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _terms(h: Tensor, gates: Tensor, outgoing: Outgoing, made: Made) -> list[_Term]:
    """Return what leaves a node, in the order of `outgoing.columns`."""
    y, apart, channels = made.y.data_ptr(), h.numel() * h.element_size(), h.shape[1]
    columns, (mean, inv) = outgoing.columns, (mine.data_ptr() for mine in made.moments)
    at = [gates.data_ptr() + column * gates.element_size() for column in columns]
    found = [
        _Term(made.y, y + k * apart, channels, at[k], mean + k * channels * 8, inv + k * channels * 8)
        for k in range(len(made.y))
    ]
    free = [made.pooled] * len(outgoing.pooled) + [h] * len(outgoing.itself)
    return found + [
        _Term(x, x.data_ptr(), step(x), gate, None, None)
        for x, gate in zip(free, at[len(found) :], strict=True)
        if x is not None
    ]


def _added_up(terms: Sequence[_Term], like: Tensor) -> Tensor:
    """Return the sum of terms, of the shape and type of another tensor, channels last."""
    if not terms:
        return torch.zeros_like(like, memory_format=torch.channels_last)
    out = torch.empty_like(like, memory_format=torch.channels_last)
    (_, addresses, steps, *rest), n, channels = zip(*terms, strict=True), len(terms), like.shape[1]
    pointers = ctypes.c_void_p * n
    kernel("sum", like.dtype)(
        n,
        pointers(*addresses),
        longs(steps),
        *(pointers(*mine) for mine in rest),
        ctypes.c_int64(like.numel() // channels),
        channels,
        threads(like.numel()),
        room((n + 1) * channels, like.dtype),
        pointer(out),
    )
    return out
