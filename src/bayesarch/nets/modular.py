"""Cells made of whole operations: the two-input cells of DARTS and BayesNAS, and tree cells in residual blocks.

One class serves supernets and plain networks: told gates, every live option is computed and multiplied; told none (only
a plain network does that), what is there is summed. Options without weights are computed once per source node.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.errors import ConfigError
from bayesarch.functional import seeded
from bayesarch.nets.cells import Growth, node_order
from bayesarch.nets.drop import PathDrop
from bayesarch.nets.operations import Halving, factorized_reduce, operation_module
from bayesarch.nets.skeletons import MakeCell, Shape, Trunk
from bayesarch.spaces import Space

__all__ = [
    "BAYESNAS",
    "DARTS",
    "Block",
    "Options",
    "Style",
    "TreeCell",
    "TwoInputCell",
    "TwoInputs",
    "pyramid",
    "two_input_stages",
]


class Options(nn.Module):
    """The options of one cell as modules, by source node.

    Args:
        space: the space.
        kind: the cell type.
        channels: C of every option.
        columns: flat options to make.
        stride_of: source node -> stride of what leaves it.
        affine: whether norms have scale and shift.
        norm_free: whether a norm without parameters stands behind pooling.
    """

    def __init__(
        self,
        space: Space,
        kind: str,
        channels: int,
        columns: Sequence[int],
        *,
        stride_of: Callable[[str], int],
        affine: bool,
        norm_free: bool,
    ) -> None:
        super().__init__()
        self.drop: PathDrop | None = None
        """What switches operations off while a plain network is trained."""
        self.modules_of = nn.ModuleDict()
        self.wiring: dict[str, tuple[str, list[tuple[int, str]]]] = {}
        """Key in `modules_of` -> source node, and (flat option, target node) of all that use it."""
        self.key_of: dict[int, str] = {}
        """Flat option -> key of the module that is its own."""
        wanted = set(columns)
        for position, choice in enumerate(space.choices):
            if choice.cell != kind or choice.source is None or choice.target is None:
                continue
            for g, name in zip(space.columns(position), choice.options, strict=True):
                module = operation_module(name, channels, stride_of(choice.source), affine=affine)
                if g not in wanted or module is None:
                    continue
                shared = not any(True for _ in module.parameters()) and not _normed(module)
                key = f"{name}_{choice.source}" if shared else f"{name}_{choice.source}_{choice.target}"
                if key not in self.modules_of:
                    pools = shared and not _passes(module)
                    norm = nn.BatchNorm2d(channels, affine=False) if norm_free and pools else None
                    self.modules_of[key] = module if norm is None else nn.Sequential(module, norm)
                    self.wiring[key] = (choice.source, [])
                    if not shared:
                        self.key_of[g] = key
                self.wiring[key][1].append((g, choice.target))

    def parameters_of(self, column: int) -> list[nn.Parameter]:
        """Return the parameters of one option; empty where it has none."""
        return list(self.modules_of[self.key_of[column]].parameters()) if column in self.key_of else []

    def keep(self, live: Tensor) -> None:
        """Remove the options whose entry in `live` (G,) is False."""
        for key, (source, users) in list(self.wiring.items()):
            left = [(g, target) for g, target in users if live[g]]
            self.wiring[key] = (source, left)
            if not left:
                del self.modules_of[key], self.wiring[key]
        self.key_of = {g: key for g, key in self.key_of.items() if key in self.wiring}

    def leaving(
        self, node: str, h: Tensor, gates: Tensor | None, active: frozenset[int] | None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (target node, gated output) of every option that leaves `node`, whose features are `h`."""
        for key, (source, users) in self.wiring.items():
            used = [(g, target) for g, target in users if active is None or g in active]
            if source != node or not used:
                continue
            out = self.modules_of[key](h)
            if self.drop is not None and self.training and out is not h:
                out = self.drop(out)
            for g, target in used:
                yield target, out if gates is None else out * _gate(gates, g, out.ndim)

    def hand_over(self, other: "Options") -> None:
        """Copy weights and norm statistics of the options that both have; the other's affine norms stay as they are."""
        for key, module in other.modules_of.items():
            if key in self.modules_of:
                module.load_state_dict(self.modules_of[key].state_dict(), strict=False)


def _gate(gates: Tensor, g: int, ndim: int) -> Tensor:
    return gates[:, g].view(-1, *[1] * (ndim - 1)) if gates.shape[0] > 1 else gates[0, g]


def _normed(module: nn.Module) -> bool:
    return any(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def _passes(module: nn.Module) -> bool:
    """Return whether a module gives its input back."""
    probe = torch.arange(9.0, device="cpu").view(1, 1, 3, 3)
    with torch.device("cpu"), torch.no_grad():
        out = module(probe)
    return out.shape == probe.shape and bool(torch.equal(out, probe))


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
        self.inner = [node for node in self.order if node in space.outputs]
        self.present = frozenset(range(space.n_options))
        self.register_buffer("shuffle", torch.arange(geometry.channels), persistent=False)
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
        features = {self.style.older: self.adapt_older(older), self.style.newer: self.adapt_newer(newer)}
        like = features[self.style.newer][:, :, :: self.stride, :: self.stride]
        parts: dict[str, list[Tensor]] = {node: [] for node in self.order}
        rest: dict[str, list[Tensor]] = {node: [] for node in self.order}
        for node in self.order:
            if node not in features:
                features[node] = self._join(parts[node], rest[node], like)
            h = features[node]
            for target, piece in self.options.leaving(node, h[:, : self.width], gates, active):
                parts[target].append(piece)
            if self.width < self.channels and gates is not None:
                for target, piece in self._around(node, h[:, self.width :], gates, active):
                    rest[target].append(piece)
        return torch.cat([features[node] for node in self.inner], 1)

    def _join(self, parts: Sequence[Tensor], rest: Sequence[Tensor], like: Tensor) -> Tensor:
        if self.width == self.channels:
            return _sum(parts, like)
        both = torch.cat([_sum(parts, like[:, : self.width]), _sum(rest, like[:, self.width :])], 1)
        return both[:, self.shuffle]

    def _around(
        self, node: str, h: Tensor, gates: Tensor, active: frozenset[int] | None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (target node, channels that pass) of every edge that leaves `node`."""
        if self.stride == 2 and node in self.space.inputs:
            h = F.max_pool2d(h, 2, 2, ceil_mode=True)
        for position, choice in enumerate(self.space.choices):
            if choice.cell == self.cell and choice.source == node and choice.target is not None:
                columns = [
                    g for g in self.space.columns(position) if g in self.present and (active is None or g in active)
                ]
                yield choice.target, h * gates[:, columns].sum(1).view(-1, 1, 1, 1)

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
        _load(self.adapt_older, other.adapt_older)
        _load(self.adapt_newer, other.adapt_newer)
        self.options.hand_over(other.options)

    def option_parameters(self, column: int) -> list[nn.Parameter]:
        """Return the parameters of one option; empty where it has none."""
        return self.options.parameters_of(column)


def _load(mine: nn.Module, theirs: nn.Module) -> None:
    theirs.load_state_dict(mine.state_dict(), strict=False)


def _sum(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    if not parts:
        return torch.zeros_like(like)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


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
        layers.append(make_cell(TwoInputs(older, newer, c, larger), kind))
        kinds.append(kind)
        older, newer, larger = newer, sizes.nodes * c, kind == "reduce"
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(newer, classes)]
    head = nn.Sequential(*([nn.BatchNorm2d(newer)] if head_norm else []), *pool)
    return Trunk(stem, layers, kinds, head, depth=2)


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
        parts: dict[str, list[Tensor]] = {node: [] for node in self.order}
        leaves: list[Tensor] = []
        for node in self.order:
            h = root if node in self.space.inputs else _sum(parts[node], root)
            for target, piece in self.options.leaving(node, h, gates, active):
                parts[target].append(piece)
            if node in self.space.inputs or parts[node]:
                leaves.append(self._as_leaf(node, h, gates, active))
        out: Tensor = self.after(_sum(leaves, root)) + self._shortcut(x)
        return out

    def _as_leaf(self, node: str, h: Tensor, gates: Tensor | None, active: frozenset[int] | None) -> Tensor:
        """Return a node's value where it has no live child, zeros where it has one."""
        columns = [g for g in self.below[node] if g in self.present and (active is None or g in active)]
        if not columns:
            return h
        if gates is None:
            return torch.zeros_like(h)
        childless = (gates[:, columns] == 0).all(1).to(h.dtype)
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
        _load(self.before, other.before)
        _load(self.after, other.after)
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
