"""The two-input cells of DARTS and BayesNAS, and the macro network they sit in."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.functional import seeded
from bayesarch.nets.cells import node_order
from bayesarch.nets.conv_stack import Growth
from bayesarch.nets.operations import Halving, factorized_reduce
from bayesarch.nets.options import Options, in_supernet, load_shared
from bayesarch.nets.pieces import Piece, gates_of, mixed, total
from bayesarch.nets.regions import Region, as_they_are, fused
from bayesarch.nets.skeletons import MakeCell, Shape, Trunk
from bayesarch.spaces import Space

__all__ = ["BAYESNAS", "DARTS", "Style", "TwoInputCell", "TwoInputs", "two_input_stages"]


@dataclass(frozen=True)
class Style:
    """What a family of two-input cells has in common.

    Attributes:
        older: node that takes the output of the cell before the last.
        newer: node that takes the output of the last cell.
        adapt: (channels in, channels out, halve, affine) -> what brings an input to the cell's size.
        norm_free: whether a norm without parameters stands behind pooling.
        reduction: cell type whose edges from the inputs have stride 2.
    """

    older: str
    newer: str
    adapt: Callable[[int, int, bool, bool], nn.Module]
    norm_free: bool
    reduction: str = "reduce"


@dataclass(frozen=True)
class TwoInputs:
    """Geometry of a two-input cell: channels of its inputs, its own, and whether the older input is twice as large."""

    older: int
    newer: int
    channels: int
    older_is_larger: bool
    gates_first: bool = False
    """Whether a supernet's gates multiply what its options take."""


class TwoInputCell(nn.Module):
    """A cell of two inputs whose intermediate nodes are sums and whose output is all of them, side by side.

    With partial channels (Xu et al., PC-DARTS, ICLR 2020) the first C / K channels of a node go through the options,
    the others pass, at stride 2 by max pooling, times the sum of the edge's gates; channels are shuffled at the target.

    Args:
        space: the space; its choices of cell type `kind` are this cell's edges.
        geometry: channels.
        kind: the cell type.
        style: the family.
        columns: flat options to make; None: all, for a supernet, whose norms have no scale and shift.
    """

    shuffle: Tensor

    def __init__(
        self, space: Space, geometry: TwoInputs, kind: str, *, style: Style, columns: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.space, self.cell, self.style, self.channels = space, kind, style, geometry.channels
        self.stride = 2 if kind == style.reduction else 1
        self.affine = columns is not None
        self.width = geometry.channels
        self.adapt_older = style.adapt(geometry.older, geometry.channels, geometry.older_is_larger, self.affine)
        self.adapt_newer = style.adapt(geometry.newer, geometry.channels, False, self.affine)
        self.order = node_order(space, kind)
        self.region: Region = as_they_are
        """How what leaves a node is computed."""
        self.inner = [node for node in self.order if node in space.outputs]
        self.present = frozenset(range(space.n_options))
        self.register_buffer("shuffle", torch.arange(geometry.channels), persistent=False)
        self.gates_first = geometry.gates_first
        self.options = self._made(range(space.n_options) if columns is None else columns)

    def _made(self, columns: Sequence[int]) -> Options:
        return Options(
            self.space,
            self.cell,
            self.width,
            columns,
            stride_of=lambda node: self.stride if node in self.space.inputs else 1,
            affine=self.affine,
            norm_free=self.style.norm_free,
            gates_first=self.gates_first,
        )

    def forward(
        self, older: Tensor, newer: Tensor, gates: Tensor | None = None, active: frozenset[int] | None = None
    ) -> Tensor:
        """Return the cell's output, shape (B, nodes times C, H / stride, W / stride).

        Args:
            older: output of the cell before the last, shape (B, C', H or 2 H, W or 2 W).
            newer: output of the last cell, shape (B, C'', H, W).
            gates: shape (B or 1, G); None in a plain network.
            active: flat options to compute; None: all that are there.
        """
        features = {
            self.style.older: self._adapted(self.adapt_older, older, gates),
            self.style.newer: self._adapted(self.adapt_newer, newer, gates),
        }
        like = features[self.style.newer][:, :, :: self.stride, :: self.stride]
        parts: dict[str, list[Any]] = {node: [] for node in self.order}
        rest: dict[str, list[Any]] = {node: [] for node in self.order}
        add = total if gates is None else mixed
        for node in self.order:
            if node not in features:
                features[node] = self._join(add, parts.pop(node), rest.pop(node), like)  # popped: not held any more
                if gates is not None and features[node].requires_grad:
                    features[node].register_hook(_dense)
            h = features[node]
            for target, piece in self.region(self.options, node, h[:, : self.width], gates, active):
                parts[target].append(piece)
            if self.width < self.channels and gates is not None:
                for target, piece in self._around(node, h[:, self.width :], gates, active):
                    rest[target].append(piece)
        return torch.cat([features[node] for node in self.inner], 1)

    def _adapted(self, adapter: nn.Module, x: Tensor, gates: Tensor | None) -> Tensor:
        out: Tensor = adapter(x) if gates is None else in_supernet(adapter, x, gates, fused=self.region is fused)
        return out

    def _join(self, add: Callable[..., Tensor], parts: Sequence[Any], rest: Sequence[Any], like: Tensor) -> Tensor:
        if self.width == self.channels:
            return add(parts, like)
        both = torch.cat([add(parts, like[:, : self.width]), add(rest, like[:, self.width :])], 1)
        return both[:, self.shuffle]

    def _around(
        self, node: str, h: Tensor, gates: Tensor, active: frozenset[int] | None
    ) -> Iterator[tuple[str, Piece]]:
        """Yield (target node, channels that pass) of every edge that leaves `node`."""
        if self.stride == 2 and node in self.space.inputs:
            h = F.max_pool2d(h, 2, 2, ceil_mode=True)
        for position, choice in enumerate(self.space.choices):
            if choice.cell == self.cell and choice.source == node and choice.target is not None:
                columns = [
                    g for g in self.space.columns(position) if g in self.present and (active is None or g in active)
                ]
                yield choice.target, (h, gates_of(gates, columns).sum(1).view(-1, 1, 1, 1))

    def prune(self, live: Tensor) -> None:
        """Physically remove the options whose entry in `live` (G,) is False."""
        self.present &= frozenset(live.nonzero().flatten().tolist())
        self.options.keep(live)

    def resize(self, partial: int, generator: torch.Generator) -> dict[str, Growth]:
        """Send one in `partial` channels through the options from now on; their weights start afresh."""
        width = max(1, self.channels // partial)
        order = sorted(range(self.channels), key=lambda i: (i % width, i // width))
        self.shuffle = torch.tensor(order, device=self.shuffle.device)
        if width != self.width:
            self.width = width
            like = next(self.adapt_newer.parameters())
            with seeded(generator):
                fresh = self._made(sorted(self.present))
            self.options = fresh.to(like, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return {}

    def hand_over(self, other: Any) -> None:
        """Copy what is shared, and the options that both cells have."""
        load_shared(self.adapt_older, other.adapt_older)
        load_shared(self.adapt_newer, other.adapt_newer)
        self.options.hand_over(other.options)

    def option_parameters(self, column: int) -> list[nn.Parameter]:
        """Return the parameters of one option; empty where it has none."""
        return self.options.parameters_of(column)


def _adapt_darts(inputs: int, outputs: int, halve: bool, affine: bool) -> nn.Module:
    """Return ReLU, 1 x 1, norm, or DARTS's reduction where the input is too large."""
    if halve:
        return factorized_reduce(inputs, outputs, affine)
    norm = nn.BatchNorm2d(outputs, affine=affine)
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), norm)


def _adapt_bayesnas(inputs: int, outputs: int, halve: bool, affine: bool) -> nn.Module:
    """Return norm, ReLU, 1 x 1, behind two halves of as many channels where the input is too large."""
    adapt = [nn.BatchNorm2d(inputs, affine=affine), nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False)]
    return nn.Sequential(*([Halving(inputs, inputs)] if halve else []), *adapt)


DARTS = Style(older="0", newer="1", adapt=_adapt_darts, norm_free=True)
"""DARTS: convolutions end in a norm. Its final networks have none behind pooling; ours keep it, so that a found network
computes what the supernet did. The norm has no parameters."""

BAYESNAS = Style(older="in1", newer="in0", adapt=_adapt_bayesnas, norm_free=False)
"""BayesNAS's released code: convolutions begin with a norm, pooling has none."""


class Steps(nn.Module):
    """Two stems in a row for large images: one output at a quarter of the side, one at an eighth."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of both."""
        early = self.first(images)
        return early, self.second(early)


def two_input_stages(
    sizes: Any, input_shape: Shape, classes: int, make_cell: MakeCell, *, stem_norm: bool, head_norm: bool
) -> Trunk:
    """Return the macro network of DARTS and BayesNAS: cells in a row, reductions at a third and two thirds.

    References: Liu et al., DARTS, ICLR 2019; Zhou et al., BayesNAS, ICML 2019, released code.

    Args:
        sizes: `channels` C, `layers` (cells), `large` (three halvings first, for 224 pixels).
        input_shape: (channels, height, width) of an image.
        classes: number of classes.
        make_cell: makes the cells.
        stem_norm: whether a norm ends the small stem.
        head_norm: whether a norm stands before the mean over pixels.
    """
    c, planes = sizes.channels, input_shape[0]
    stem: nn.Module
    if sizes.large:
        half = [nn.Conv2d(planes, c // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(c // 2), nn.ReLU()]
        first = nn.Sequential(*half, nn.Conv2d(c // 2, c, 3, 2, 1, bias=False), nn.BatchNorm2d(c))
        second = nn.Sequential(nn.ReLU(), nn.Conv2d(c, c, 3, 2, 1, bias=False), nn.BatchNorm2d(c))
        stem, older, newer, larger = Steps(first, second), c, c, True
    else:
        norm = [nn.BatchNorm2d(3 * c)] if stem_norm else []
        stem = nn.Sequential(nn.Conv2d(planes, 3 * c, 3, padding=1, bias=False), *norm)
        older, newer, larger = 3 * c, 3 * c, False
    layers: list[nn.Module] = []
    kinds: list[str | None] = []
    for place in range(sizes.layers):
        kind = "reduce" if place in (sizes.layers // 3, 2 * sizes.layers // 3) else "normal"
        c = 2 * c if kind == "reduce" else c
        layers.append(make_cell(TwoInputs(older, newer, c, larger, sizes.gate_position == "input"), kind))
        kinds.append(kind)
        older, newer, larger = newer, sizes.nodes * c, kind == "reduce"
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(newer, classes)]
    head = nn.Sequential(*([nn.BatchNorm2d(newer)] if head_norm else []), *pool)
    return Trunk(stem, layers, kinds, head, depth=2)


def _dense(gradient: Tensor) -> Tensor:
    """Return a gradient as a tensor of its own: one of a slice would send norms and convolutions a slow way."""
    return gradient.contiguous(memory_format=torch.channels_last)
