"""Cells: the mixed cell of a supernet, told its gates, and the plain cell of a finished network.

The mixed cell is exact and fast: one ReLU and one pooling per source node, all convolutions of one kernel size that
leave one node stacked into one call, and mixing weights folded into the norm's scale where all examples share them.
With partial channels (Xu et al., "PC-DARTS", ICLR 2020) the first C / K channels of a node go through the options and
the others pass each edge as they are, times the sum of the edge's gates; channels are shuffled at the target.
A naive version that computes every option by itself lives in the tests; outputs and gradients agree in float64.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayesarch.errors import SpaceError
from bayesarch.functional import seeded
from bayesarch.nets.conv_stack import ConvStack, Growth
from bayesarch.nets.drop import PathDrop
from bayesarch.nets.kernels import (
    Bunch,
    Outgoing,
    Part,
    Wired,
    Wiring,
    box_mean,
    cell_features,
    fan,
    fits,
    outgoing_fits,
    outgoing_parts,
    parts_of,
)
from bayesarch.nets.merging import merged, merges
from bayesarch.nets.operations import Operation, operation, operation_module
from bayesarch.nets.pieces import Piece, gates_of, mixed, total
from bayesarch.nets.regions import Region, as_they_are, fused
from bayesarch.spaces import Choice, Space

__all__ = ["MixedCell", "PlainCell", "node_order"]


def node_order(space: Space, cell: str) -> list[str]:
    """Return the nodes of a cell type so that every edge leads forward.

    Raises:
        SpaceError: if the edges form a cycle.
    """
    edges = [(c.source, c.target) for c in space.choices if c.cell == cell and c.source and c.target]
    waiting = sorted({node for edge in edges for node in edge})
    order: list[str] = []
    while waiting:
        ready = [n for n in waiting if all(source in order for source, target in edges if target == n)]
        if not ready:
            raise SpaceError(f"space {space.name!r}: the edges of cell {cell!r} form a cycle through {waiting}")
        order.extend(ready)
        waiting = [n for n in waiting if n not in ready]
    return order


@dataclass
class Leaves:
    """What leaves one node."""

    free: list[tuple[int, str, Operation]]
    """(flat option, target node, operation) of the options without weights."""
    stacks: list[str]
    """Keys of its convolutions."""
    at_once: bool
    """Whether there is one function of all of it."""


class MixedCell(nn.Module):
    """One copy of a cell with all its live options, mixed by gates.

    Args:
        space: the space; its choices of cell type `cell` are this cell's edges.
        channels: C, kept through the cell.
        cell: the cell type.
    """

    shuffle: Tensor

    def __init__(self, space: Space, channels: int, cell: str = "cell") -> None:
        super().__init__()
        self.space, self.cell, self.channels = space, cell, channels
        self.register_buffer("shuffle", torch.arange(channels), persistent=False)
        self.width = channels
        """Channels that go through the options; the others bypass them."""
        self.order = node_order(space, cell)
        self.outputs = sorted(space.outputs)
        self.region: Region = as_they_are
        """How what leaves a node is computed."""
        self.present = frozenset(range(space.n_options))
        self.edges = [(p, c) for p, c in enumerate(space.choices) if c.cell == cell]
        self.stacks = self._fresh_stacks()
        self.leaves: dict[str, Leaves] = {}
        """What leaves each node: all that a compiled region looks at, so that it outlives prunings elsewhere."""
        self.at_once = False
        """Whether there is one function of all nodes."""
        self._tell()

    def _fresh_stacks(self) -> nn.ModuleDict:
        stacks: dict[str, nn.Module] = {}
        for node in self.order:
            for sides in self._kernels(node):
                members = [(g, t) for g, t, op in self._options(node) if op.kernel and op.sides == sides]
                stacks[f"{node}_{sides[1]}"] = ConvStack(self.width, sides, *zip(*members, strict=True))
        return nn.ModuleDict(stacks)

    def _tell(self) -> None:
        for node in self.order:
            free = [(g, t, op) for g, t, op in self._options(node) if op.free is not None and g in self.present]
            keys = [key for key in self.stacks if key.split("_")[0] == node]
            small = all(self.stacks[key].padding in ((0, 0), (1, 1)) for key in keys)
            simple = all(op.passive or op.fused is box_mean for _, _, op in free)
            self.leaves[node] = Leaves(free, keys, small and simple)
        enters = any(choice.target in self.space.inputs for _, choice in self.edges)
        self.at_once = not enters and all(leaves.at_once for leaves in self.leaves.values())

    def resize(self, partial: int, generator: torch.Generator) -> dict[str, Growth]:
        """Send one in `partial` channels through the options from now on.

        A narrower cell starts with fresh weights, drawn from `generator`; a wider one copies channels at random.

        Returns:
            What was copied, by parameter name; empty where nothing was.
        """
        width = max(1, self.channels // partial)
        order = sorted(range(self.channels), key=lambda i: (i % width, i // width))
        self.shuffle = torch.tensor(order, device=self.shuffle.device)
        if width > self.width:
            self.width = width
            return {
                f"stacks.{name}.weights.{column}": growth
                for name, stack in self.stacks.items()
                if isinstance(stack, ConvStack)
                for column, growth in stack.widen(width, generator).items()
            }
        if width < self.width:
            like = next(self.stacks.parameters(), None)
            self.width = width
            with seeded(generator):
                self.stacks = self._fresh_stacks()
            if like is not None:
                self.stacks.to(like, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.prune(torch.tensor([g in self.present for g in range(self.space.n_options)]))
        return {}

    def _options(self, node: str) -> Iterator[tuple[int, str, Operation]]:
        """Yield (flat option, target node, operation) of every option that leaves `node`."""
        for position, choice in self.edges:
            if choice.source == node and choice.target is not None:
                for g, name in zip(self.space.columns(position), choice.options, strict=True):
                    yield g, choice.target, operation(name)

    def _kernels(self, node: str) -> list[tuple[int, int]]:
        return sorted({op.sides for _, _, op in self._options(node) if op.kernel is not None})

    def option_parameters(self, column: int) -> list[nn.Parameter]:
        """Return the parameters of one option; empty where it has none."""
        for stack in self.stacks.values():
            assert isinstance(stack, ConvStack)
            if column in stack.columns:
                return [stack.weights[str(column)]]
        return []

    def hand_over(self, other: "MixedCell | PlainCell") -> None:
        """Copy weights and norm statistics of the options that both cells have.

        A plain cell's affine norms stay at scale 1 and shift 0.
        """
        with torch.no_grad():
            for name, stack in self.stacks.items():
                assert isinstance(stack, ConvStack)
                for row, column in enumerate(stack.columns):
                    tensors = (stack.weights[str(column)], stack.running_mean[row], stack.running_var[row])
                    if isinstance(other, PlainCell):
                        other.take(column, *tensors)
                    elif name in other.stacks:
                        theirs = other.stacks[name]
                        assert isinstance(theirs, ConvStack)
                        theirs.take(column, *tensors)

    def prune(self, live: Tensor) -> None:
        """Physically remove the options whose entry in `live` (G,) is False."""
        self.present &= frozenset(live.nonzero().flatten().tolist())
        for name, stack in list(self.stacks.items()):
            assert isinstance(stack, ConvStack)
            stack.keep(live)
            if not stack.columns:
                del self.stacks[name]
        self._tell()

    def forward(self, x: Tensor, gates: Tensor, active: frozenset[int] | None = None) -> Tensor:
        """Return the cell's output, shape of `x`.

        Args:
            x: features at the input node, shape (B, C, ...).
            gates: shape (B or 1, G).
            active: flat options to compute; None: all live ones.
        """
        if self._is_one(x, gates):
            return self._at_once(x, gates, active)
        parts: dict[str, list[Piece]] = {node: [] for node in self.order}
        rest: dict[str, list[Piece]] = {node: [] for node in self.order}
        features: dict[str, Tensor] = {}
        for node in self.order:
            # popped: what has been summed need not be held
            h = x if node in self.space.inputs else self._join(parts.pop(node), rest.pop(node), x)
            if node in self.outputs:
                features[node] = h
            for target, piece in self.region(self, node, h[:, : self.width], gates, active):
                parts[target].append(piece)
            if self.width < self.channels:
                for target, gate in self._bypasses(node, h.ndim, gates, active):
                    rest[target].append((h[:, self.width :], gate))
        return total([features[node] for node in self.outputs], x)

    def _join(self, parts: Sequence[Piece], rest: Sequence[Piece], like: Tensor) -> Tensor:
        """Return a node's features: the sum of what came through options, beside the sum of what went past them."""
        if self.width == self.channels:
            return mixed(parts, like)
        both = torch.cat([mixed(parts, like[:, : self.width]), mixed(rest, like[:, self.width :])], 1)
        return both[:, self.shuffle]

    def _bypasses(
        self, node: str, ndim: int, gates: Tensor, active: frozenset[int] | None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (target node, sum of the gates) of every edge that leaves `node`."""
        for position, choice in self.edges:
            if choice.source == node and choice.target is not None:
                columns = [
                    g for g in self.space.columns(position) if g in self.present and (active is None or g in active)
                ]
                passed = gates_of(gates, columns).sum(1)
                yield choice.target, passed.view(-1, *[1] * (ndim - 1))

    def leaving(self, node: str, h: Tensor, gates: Tensor, active: frozenset[int] | None) -> list[tuple[str, Piece]]:
        """Return (target node, gated piece) for everything that leaves `node`, whose features are `h`."""
        pieces: list[tuple[str, Piece]] = []
        shared: dict[Callable[[Tensor], Tensor], Tensor] = {}
        leaves = self.leaves[node]
        for g, target, op in leaves.free:
            free = op.free
            if free is None or (active is not None and g not in active):
                continue
            if free not in shared:
                shared[free] = free(h)
            gate = gates[:, g].view(-1, *[1] * (h.ndim - 1)) if gates.shape[0] > 1 else gates[0, g]
            pieces.append((target, (shared[free], gate)))
        if leaves.stacks:
            rectified = torch.relu(h)
            if merges(self.training, gates):
                return [*pieces, *merged(self._stacks_of(leaves), rectified, gates, active)]
            for key in leaves.stacks:
                pieces.extend(self.stacks[key](rectified, gates, active))
        return pieces

    def parting(self, node: str, h: Tensor, gates: Tensor, active: frozenset[int] | None) -> list[tuple[str, Part]]:
        """Return the same as parts of sums; arguments as of `leaving`, gates of shape (1, G)."""
        leaves = self.leaves[node]
        if leaves.at_once and outgoing_fits(h):
            return self._parting_at_once(leaves, h, gates, active)
        parts: list[tuple[str, Part]] = []
        users: dict[Callable[[Tensor], Tensor], list[tuple[int, str]]] = {}
        for g, target, op in leaves.free:
            if op.free is not None and (active is None or g in active):
                users.setdefault(op.fused or op.free, []).append((g, target))
        risen, plain = fan(h, len(leaves.stacks), len(users))
        for (free, mine), x in zip(users.items(), plain, strict=True):
            (made,) = parts_of(free(x), gates, [[g for g, _ in mine]])
            parts.extend(zip([target for _, target in mine], made, strict=True))
        for key, x in zip(leaves.stacks, risen, strict=True):
            stack = self.stacks[key]
            assert isinstance(stack, ConvStack)
            parts.extend(stack.parting(x, gates, active))
        return parts

    def _parting_at_once(
        self, leaves: Leaves, h: Tensor, gates: Tensor, active: frozenset[int] | None
    ) -> list[tuple[str, Part]]:
        """Return the same by one function of all that leaves a node."""
        outgoing, targets = self._outgoing(leaves, active)
        if not targets:
            return []
        parts = outgoing_parts(h, gates, outgoing)
        self._told(leaves, outgoing)
        return list(zip(targets, parts, strict=True))

    def _outgoing(self, leaves: Leaves, active: frozenset[int] | None) -> tuple[Outgoing, list[str]]:
        """Return what leaves a node at once, and the nodes it goes to; when it is computed comes `_told`."""
        pooled: list[tuple[int, str]] = []
        itself: list[tuple[int, str]] = []
        for g, target, op in leaves.free:
            if active is None or g in active:
                (itself if op.fused is None else pooled).append((g, target))
        bunches = {stack.padding: stack.bunch(active) for stack in self._stacks_of(leaves)}
        (dense, first), (point, second) = (bunches.get(padding, (Bunch(), [])) for padding in ((1, 1), (0, 0)))
        outgoing = Outgoing(dense, point, [g for g, _ in pooled], [g for g, _ in itself])
        return outgoing, [*first, *second, *(target for _, target in (*pooled, *itself))]

    def _told(self, leaves: Leaves, outgoing: Outgoing) -> None:
        for stack in self._stacks_of(leaves):
            stack.told(outgoing.dense if stack.padding == (1, 1) else outgoing.point)

    def _stacks_of(self, leaves: Leaves) -> list[ConvStack]:
        return [stack for key in leaves.stacks if isinstance(stack := self.stacks[key], ConvStack)]

    def _is_one(self, x: Tensor, gates: Tensor) -> bool:
        """Return whether there is one function of the whole cell."""
        fast = self.region is fused and self.training and fits(x, gates) and outgoing_fits(x)
        return fast and self.width == self.channels and self.at_once

    def _at_once(self, x: Tensor, gates: Tensor, active: frozenset[int] | None) -> Tensor:
        """Return the cell's output by one function."""
        place = {node: at for at, node in enumerate(self.order)}
        leaving = [self._outgoing(self.leaves[node], active) for node in self.order]
        nodes = [Wired(outgoing, [place[target] for target in targets]) for outgoing, targets in leaving]
        inputs = frozenset(place[node] for node in self.space.inputs if node in place)
        asked = [place[node] for node in self.outputs]
        found = cell_features(x, gates, Wiring(nodes, inputs, [at for at in asked if at not in inputs]))
        for node, (outgoing, _) in zip(self.order, leaving, strict=True):
            self._told(self.leaves[node], outgoing)
        return total([*found, *(x for at in asked if at in inputs)], x)


class PlainCell(nn.Module):
    """One copy of a found cell: the picked operations only, no gates.

    Args:
        space: the space.
        channels: C, kept through the cell.
        cell: the cell type.
        columns: flat options to make; several on a choice are summed.
    """

    def __init__(self, space: Space, channels: int, cell: str, columns: Sequence[int]) -> None:
        super().__init__()
        self.order = node_order(space, cell)
        self.inputs, self.outputs = sorted(space.inputs), sorted(space.outputs)
        self.drop: PathDrop | None = None
        """What switches operations off while the network is trained."""
        self.ops = nn.ModuleDict()
        self.wiring: list[tuple[str, str, str]] = []
        """(source, target, key in `ops`) of every operation."""
        self.key_of: dict[int, str] = {}
        """Flat option -> its key in `ops`, where it computes anything."""
        wanted = set(columns)
        for position, choice in enumerate(space.choices):
            if choice.cell == cell:
                self._add(choice, [g for g in space.columns(position) if g in wanted], channels, space)

    def _add(self, choice: Choice, columns: Sequence[int], channels: int, space: Space) -> None:
        for g in columns:
            name = choice.options[g - space.columns(space.choice_index(choice.name))[0]]
            module = operation_module(name, channels)
            if module is not None:
                assert choice.source is not None
                assert choice.target is not None
                key = f"{name}_{choice.source}_{choice.target}"
                self.ops[key], self.key_of[g] = module, key
                self.wiring.append((choice.source, choice.target, key))

    def take(self, column: int, weight: Tensor, mean: Tensor, var: Tensor) -> None:
        """Copy one convolution's weight and norm statistics, if it is here."""
        if column in self.key_of:
            tensors = self.ops[self.key_of[column]].state_dict()
            tensors["1.weight"].copy_(weight)
            tensors["2.running_mean"].copy_(mean)
            tensors["2.running_var"].copy_(var)

    def option_parameters(self, column: int) -> list[nn.Parameter]:
        """Return the parameters of one option; empty where it has none."""
        return list(self.ops[self.key_of[column]].parameters()) if column in self.key_of else []

    def forward(self, x: Tensor) -> Tensor:
        """Return the cell's output, shape of `x` (B, C, ...)."""
        parts: dict[str, list[Tensor]] = {node: [] for node in self.order}
        for node in self.inputs:
            parts[node] = [x]
        for node in self.order:
            h = total(parts[node], x)
            parts[node] = [h]
            for source, target, key in self.wiring:
                if source == node:
                    out = self.ops[key](h)
                    parts[target].append(out if self.drop is None or not self.training or out is h else self.drop(out))
        return total([piece for node in self.outputs for piece in parts[node]], x)
