"""The supernet: owns weights, never architecture parameters; it is told its gates.

`net(images, gates)` takes one float tensor of shape (B or 1, L or 1, G): examples, copies of a cell, and all options
of the space laid flat. G never shrinks; columns of removed options are ignored and get zero gradient. There is no
silent "full network": gates of None are an error.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesarch.config import Config
from bayesarch.functional import seeded
from bayesarch.nets.cells import ConvStack, Growth, MixedCell, PlainCell
from bayesarch.nets.cost import option_costs
from bayesarch.nets.plain import PlainNetwork, build, skeleton, tidy_sizes
from bayesarch.nets.skeletons import Shape
from bayesarch.spaces import Architecture, Space

__all__ = ["Supernet"]


class Supernet(nn.Module):
    """All options of a space in one network with shared weights.

    Args:
        space: what may be built.
        input_shape: (channels, height, width) of an image.
        classes: number of classes.
        sizes: macro sizes; None: the space's defaults.
        generator: stream for the initial weights.
    """

    def __init__(
        self,
        space: Space,
        *,
        input_shape: Shape,
        classes: int,
        sizes: Config | Mapping[str, Any] | None = None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.space, self.input_shape, self.classes = space, input_shape, classes
        self.sizes = tidy_sizes(space, sizes)
        with seeded(generator):
            trunk = skeleton(space, self.sizes, input_shape, classes, lambda c, kind: MixedCell(space, c, kind))
        self.stem, self.layers, self.head = trunk.stem, nn.ModuleList(trunk.layers), trunk.head
        self._live_columns = frozenset(range(space.n_options))
        self.live = torch.ones(space.n_options, dtype=torch.bool)
        """Options that physically exist, shape (G,), on the CPU."""
        kinds = [kind for kind in trunk.kinds if kind is not None]
        cell_of = [choice.cell for choice in space.choices for _ in choice.options]
        self.occupancy = torch.tensor([[kind == cell for cell in cell_of] for kind in kinds])
        """Which copy has which option, shape (L, G)."""
        costs = option_costs(space, self.sizes, input_shape, classes)
        self.option_macs = torch.tensor([cost.macs for cost in costs.options])
        """MACs of each option over all copies for one image, shape (G,)."""
        self.partial = 1
        """K: one in K channels goes through the options (`resize`)."""
        self.images_seen, self.macs_spent = 0, 0
        """Forward passes so far, in images and in MACs: counted from the options computed, never read back here."""
        self._base_macs, self._macs = costs.base.macs, self.option_macs.tolist()

    @property
    def n_copies(self) -> int:
        """L: number of cells."""
        return int(self.occupancy.shape[0])

    def cells(self) -> list[MixedCell]:
        """Return the cells in order, length L."""
        return [layer for layer in self.layers if isinstance(layer, MixedCell)]

    def forward(self, images: Tensor, gates: Tensor | None = None, active: frozenset[int] | None = None) -> Tensor:
        """Return logits of shape (B, K).

        Args:
            images: shape (B, C, H, W).
            gates: shape (B or 1, L or 1, G).
            active: flat options to compute, on the host; others are skipped as if their gates were 0. None: all.

        Raises:
            ValueError: if gates are missing or of another shape.
        """
        if gates is None:
            raise ValueError("a supernet is told its gates: net(images, gates); there is no silent full network")
        b, copies, options = gates.shape if gates.ndim == 3 else (0, 0, 0)
        if b not in (1, images.shape[0]) or copies not in (1, self.n_copies) or options != self.space.n_options:
            raise ValueError(
                f"gates have shape (B or 1, L or 1, G) = ({images.shape[0]} or 1, {self.n_copies} or 1, "
                f"{self.space.n_options}); got {tuple(gates.shape)}"
            )
        self._count(images.shape[0], active)
        x = self.stem(images)
        copy = 0
        for layer in self.layers:
            if isinstance(layer, MixedCell):
                x = layer(x, gates[:, copy if copies > 1 else 0], active)
                copy += 1
            else:
                x = layer(x)
        logits: Tensor = self.head(x)
        return logits

    def _count(self, images: int, active: frozenset[int] | None) -> None:
        computed = self._live_columns if active is None else self._live_columns & active
        macs = self._base_macs + sum(self._macs[g] for g in computed) // self.partial**2
        self.images_seen += images
        self.macs_spent += images * macs

    def resize(self, partial: int, *, generator: torch.Generator) -> dict[str, Growth]:
        """Send one in `partial` channels through the options from now on (partial channels; 1: all of them).

        Narrower cells start with fresh weights; wider ones copy channels at random.

        Returns:
            Which channels were copied, by parameter name, so that momentum can follow.
        """
        grown = {}
        for index, layer in enumerate(self.layers):
            if isinstance(layer, MixedCell):
                for name, growth in layer.resize(partial, generator).items():
                    grown[f"layers.{index}.{name}"] = growth
        self.partial = partial
        return grown

    def prune(self, live: Tensor) -> None:
        """Physically remove every option whose entry in `live` (G,) is False; survivors keep weights and identity.

        Raises:
            ValueError: if `live` would bring back an option that was removed (`reopened` does that).
        """
        live = live.cpu()
        if bool((live & ~self.live).any()):
            raise ValueError("prune only removes; use reopened() to bring options back")
        for cell in self.cells():
            cell.prune(live)
        self.live = live.clone()
        self._live_columns = frozenset(live.nonzero().flatten().tolist())

    def reopened(self, live: Tensor, *, generator: torch.Generator) -> "Supernet":
        """Return a copy in which the options of `live` exist: survivors warm, the others freshly initialised.

        Args:
            live: shape (G,); may add options to this network's.
            generator: stream for the fresh weights.
        """
        fresh = Supernet(
            self.space,
            input_shape=self.input_shape,
            classes=self.classes,
            sizes=self.sizes,
            generator=generator,
        ).to(next(self.head.parameters()))
        fresh.prune(live.cpu())
        fresh.stem.load_state_dict(self.stem.state_dict())
        fresh.head.load_state_dict(self.head.state_dict())
        for mine, theirs in zip(self.layers, fresh.layers, strict=True):
            if isinstance(mine, MixedCell) and isinstance(theirs, MixedCell):
                _copy_survivors(mine, theirs)
            else:
                theirs.load_state_dict(mine.state_dict())
        return fresh.train(self.training)

    def inherit(self, arch: Architecture) -> PlainNetwork:
        """Return the plain sub-network of `arch` with this network's weights: the output of one-hot gates.

        Raises:
            ValueError: if an option of `arch` has been removed, or only part of the channels has been trained.
        """
        if self.partial != 1:
            raise ValueError(f"one in {self.partial} channels goes through the options: resize(1) first")
        gone = [self.space.labels[g] for g in arch.columns if not self.live[g]]
        if gone:
            raise ValueError(f"cannot inherit {', '.join(gone)}: removed from this supernet")
        with torch.random.fork_rng(devices=[]):
            plain = build(arch, input_shape=self.input_shape, classes=self.classes, sizes=self.sizes)
        plain = plain.to(next(self.head.parameters()))
        plain.stem.load_state_dict(self.stem.state_dict())
        plain.head.load_state_dict(self.head.state_dict())
        for mine, theirs in zip(self.layers, plain.layers, strict=True):
            if isinstance(mine, MixedCell) and isinstance(theirs, PlainCell):
                _copy_to_plain(mine, theirs)
            else:
                theirs.load_state_dict(mine.state_dict())
        return plain.train(self.training)

    def option_sqnorm(self) -> Tensor:
        """Return the squared norm of each option's weights over all copies, shape (G,); 0 where it has none."""
        total = next(self.head.parameters()).new_zeros(self.space.n_options)
        for cell in self.cells():
            for stack in cell.stacks.values():
                assert isinstance(stack, ConvStack)
                norms = torch.stack([stack.weights[str(c)].square().sum() for c in stack.columns])
                total = total.index_add(0, stack.columns_index, norms)
        return total

    def one_hot(self, arch: Architecture) -> Tensor:
        """Return gates of shape (1, 1, G) that are 1 on the picked options and 0 elsewhere."""
        parameter = next(self.head.parameters())
        gates = torch.zeros(1, 1, self.space.n_options, dtype=parameter.dtype, device=parameter.device)
        gates[0, 0, list(arch.columns)] = 1.0
        return gates


def _copy_survivors(mine: MixedCell, theirs: MixedCell) -> None:
    """Copy weights and norm statistics of the options both cells have."""
    with torch.no_grad():
        for name, stack in mine.stacks.items():
            if name not in theirs.stacks:
                continue
            other = theirs.stacks[name]
            assert isinstance(stack, ConvStack)
            assert isinstance(other, ConvStack)
            for row, column in enumerate(stack.columns):
                if column in other.columns:
                    to = other.columns.index(column)
                    other.weights[str(column)].copy_(stack.weights[str(column)])
                    other.running_mean[to] = stack.running_mean[row]
                    other.running_var[to] = stack.running_var[row]


def _copy_to_plain(mine: MixedCell, theirs: PlainCell) -> None:
    """Copy the convolutions that a plain cell has; its affine norms stay at scale 1 and shift 0."""
    with torch.no_grad():
        for stack in mine.stacks.values():
            assert isinstance(stack, ConvStack)
            for row, column in enumerate(stack.columns):
                choice_name, option = mine.space.labels[column].rsplit("/", 1)
                choice = mine.space.choices[mine.space.choice_index(choice_name)]
                key = f"{option}_{choice.source}_{choice.target}"
                if key in theirs.ops:
                    tensors = theirs.ops[key].state_dict()
                    tensors["1.weight"].copy_(stack.weights[str(column)])
                    tensors["2.running_mean"].copy_(stack.running_mean[row])
                    tensors["2.running_var"].copy_(stack.running_var[row])
