"""Tree cells in the residual blocks of a PyramidNet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.errors import ConfigError
from bayesarch.nets.cells import node_order
from bayesarch.nets.conv_stack import Growth
from bayesarch.nets.options import Options, load_shared
from bayesarch.nets.pieces import gates_of, mixed, total
from bayesarch.nets.regions import Region, as_they_are
from bayesarch.nets.skeletons import MakeCell, Shape, Trunk
from bayesarch.spaces import Space

__all__ = ["Block", "TreeCell", "pyramid"]


@dataclass(frozen=True)
class Block:
    """Geometry of a residual block: channels in, inside and out, and whether it halves the side."""

    inputs: int
    middle: int
    outputs: int
    halve: bool


class TreeCell(nn.Module):
    """A residual block of PyramidNet whose 3 x 3 convolution is a tree of operations.

    Norm, 1 x 1; the tree; norm, ReLU, 1 x 1, norm; beside it the input, zeros in its new channels. A node's value is
    what its edge makes of its parent's; the tree's output is the sum of its leaves, and a node without a live child is
    a leaf, the root too, so that no pruning takes a block apart. Where the side is halved a 2 x 2 mean stands before
    the tree (ours).

    References: Han, Kim and Kim, "Deep Pyramidal Residual Networks", CVPR 2017; Cai et al., "Path-Level Network
    Transformation for Efficient Architecture Search", ICML 2018.

    Args:
        space: the space; its choices of cell type `kind` are the tree's edges, parent to child.
        geometry: channels.
        kind: the cell type.
        columns: flat options to make; None: all, for a supernet.
    """

    def __init__(self, space: Space, geometry: Block, kind: str, *, columns: Sequence[int] | None = None) -> None:
        super().__init__()
        self.space, self.cell, self.geometry = space, kind, geometry
        affine, wanted = columns is not None, range(space.n_options) if columns is None else columns
        middle = geometry.middle
        self.before = nn.Sequential(
            nn.BatchNorm2d(geometry.inputs, affine=affine),
            nn.Conv2d(geometry.inputs, middle, 1, bias=False),
            *([nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)] if geometry.halve else []),
        )
        self.after = nn.Sequential(
            nn.BatchNorm2d(middle, affine=affine),
            nn.ReLU(),
            nn.Conv2d(middle, geometry.outputs, 1, bias=False),
            nn.BatchNorm2d(geometry.outputs, affine=affine),
        )
        self.order = node_order(space, kind)
        self.region: Region = as_they_are
        """How what leaves a node is computed."""
        self.present = frozenset(wanted)
        self.options = Options(space, kind, middle, wanted, stride_of=lambda node: 1, affine=affine, norm_free=False)
        self.below = {
            node: [
                g
                for p, c in enumerate(space.choices)
                if c.cell == kind and c.source == node
                for i, g in enumerate(space.columns(p))
                if i != c.zero
            ]
            for node in self.order
        }
        """Flat options that leave each node."""

    def forward(self, x: Tensor, gates: Tensor | None = None, active: frozenset[int] | None = None) -> Tensor:
        """Return the block's output, shape (B, outputs, H or H / 2, W or W / 2)."""
        root = self.before(x)
        parts: dict[str, list[Any]] = {node: [] for node in self.order}
        add = total if gates is None else mixed
        leaves: list[Tensor] = []
        for node in self.order:
            h = root if node in self.space.inputs else add(parts[node], root)
            for target, piece in self.region(self.options, node, h, gates, active):
                parts[target].append(piece)
            if node in self.space.inputs or parts[node]:
                leaves.append(self._as_leaf(node, h, gates, active))
        out: Tensor = self.after(total(leaves, root)) + self._shortcut(x)
        return out

    def _as_leaf(self, node: str, h: Tensor, gates: Tensor | None, active: frozenset[int] | None) -> Tensor:
        """Return a node's value where it has no live child, zeros where it has one."""
        columns = [g for g in self.below[node] if g in self.present and (active is None or g in active)]
        if not columns:
            return h
        if gates is None:
            return torch.zeros_like(h)
        childless = (gates_of(gates, columns) == 0).all(1).to(h.dtype)
        return h * childless.view(-1, 1, 1, 1)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.geometry.halve:
            x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        return F.pad(x, (0, 0, 0, 0, 0, self.geometry.outputs - self.geometry.inputs))

    def prune(self, live: Tensor) -> None:
        """Physically remove the options whose entry in `live` (G,) is False."""
        self.present &= frozenset(live.nonzero().flatten().tolist())
        self.options.keep(live)

    def resize(self, partial: int, generator: torch.Generator) -> dict[str, Growth]:
        """Refuse partial channels.

        Raises:
            ConfigError: where `partial` is not 1.
        """
        if partial != 1:
            raise ConfigError("tree cells take no partial channels; use another method, or another space")
        return {}

    def hand_over(self, other: Any) -> None:
        """Copy what is shared, and the options that both cells have."""
        load_shared(self.before, other.before)
        load_shared(self.after, other.after)
        self.options.hand_over(other.options)

    def option_parameters(self, column: int) -> list[nn.Parameter]:
        """Return the parameters of one option; empty where it has none."""
        return self.options.parameters_of(column)


def pyramid(sizes: Any, input_shape: Shape, classes: int, make_cell: MakeCell) -> Trunk:
    """Return PyramidNet: three groups of residual blocks that widen by `alpha` in all, four times as wide outside.

    Args:
        sizes: `channels` of the stem, `alpha`, `blocks` per group.
        input_shape: (channels, height, width) of an image.
        classes: number of classes.
        make_cell: makes the blocks, each of a cell type of its own.
    """
    stem = nn.Sequential(
        nn.Conv2d(input_shape[0], sizes.channels, 3, padding=1, bias=False), nn.BatchNorm2d(sizes.channels)
    )
    layers: list[nn.Module] = []
    kinds: list[str | None] = []
    inputs, width = sizes.channels, float(sizes.channels)
    for number in range(3 * sizes.blocks):
        width += sizes.alpha / (3 * sizes.blocks)
        block = Block(inputs, round(width), 4 * round(width), number > 0 and number % sizes.blocks == 0)
        layers.append(make_cell(block, f"block{number}"))
        kinds.append(f"block{number}")
        inputs = block.outputs
    head = nn.Sequential(
        nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)
    )
    return Trunk(stem, layers, kinds, head)
