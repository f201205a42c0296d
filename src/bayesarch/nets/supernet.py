"""The supernet: owns weights, never architecture parameters; it is told its gates.

`net(images, gates)` takes one float tensor of shape (B or 1, L or 1, G): examples, copies of a cell, and all options
of the space laid flat. G never shrinks; columns of removed options are ignored and get zero gradient. There is no
silent "full network": gates of None are an error.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bayesarch.config import Config
from bayesarch.errors import ConfigError
from bayesarch.functional import seeded
from bayesarch.nets.conv_stack import Growth
from bayesarch.nets.cost import option_costs
from bayesarch.nets.kernels import fits, library
from bayesarch.nets.plain import PlainNetwork, build, skeleton_of, tidy_sizes, trunk_of
from bayesarch.nets.regions import Region, Regional, compiled, fused
from bayesarch.nets.skeletons import Shape, walk
from bayesarch.spaces import Architecture, Space

__all__ = ["Cell", "Supernet"]


@runtime_checkable
class Cell(Protocol):
    """A cell of a supernet: called as `cell(*inputs, gates, active)`, gates of shape (B or 1, G)."""

    def prune(self, live: Tensor) -> None:
        """Physically remove the options whose entry in `live` (G,) is False."""

    def resize(self, partial: int, generator: torch.Generator) -> dict[str, Growth]:
        """Send one in `partial` channels through the options; return what was copied, by parameter name."""

    def hand_over(self, other: Any) -> None:
        """Copy to another cell, mixed or plain, what both have."""

    def option_parameters(self, column: int) -> list[nn.Parameter]:
        """Return the parameters of one option; empty where it has none."""


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
            family = skeleton_of(space)
            trunk = trunk_of(space, self.sizes, input_shape, classes, partial(family.mixed, space))
        self.stem, self.layers, self.head = trunk.stem, nn.ModuleList(trunk.layers), trunk.head
        self.depth = trunk.depth
        self._cells: list[Any] = [layer for layer in self.layers if isinstance(layer, Cell)]
        self._live_columns = frozenset(range(space.n_options))
        self.live = torch.ones(space.n_options, dtype=torch.bool)
        """Options that physically exist, shape (G,), on the CPU."""
        kinds = [kind for kind in trunk.kinds if kind is not None]
        cell_of = [choice.cell for choice in space.choices for _ in choice.options]
        self.occupancy: Tensor  # lies where the weights do, as `option_macs`: a step asks for both
        self.register_buffer(
            "occupancy", torch.tensor([[kind == cell for cell in cell_of] for kind in kinds]), persistent=False
        )
        """Which copy has which option, shape (L, G)."""
        costs = option_costs(space, self.sizes, input_shape, classes)
        self.option_macs: Tensor
        self.register_buffer("option_macs", torch.tensor([cost.macs for cost in costs.options]), persistent=False)
        """MACs of each option over all copies for one image, shape (G,)."""
        self.partial = 1
        """K: one in K channels goes through the options (`resize`)."""
        self.recomputes = False
        """Whether what a pass would keep is computed again on the way back."""
        self.fused = False
        """Whether kernels of ours compute what is trained, where they can (`fuse`)."""
        self.images_seen, self.macs_spent = 0, 0
        """Forward passes so far, in images and in MACs: counted from the options computed, never read back here."""
        self._base_macs, self._macs = costs.base.macs, self.option_macs.tolist()
        self._weights: list[nn.Parameter] | None = None
        """All parameters, until there are others: to look for them in thousands of modules takes a while."""

    @property
    def full_macs(self) -> int:
        """MACs of one image with all options."""
        return self._base_macs + sum(self._macs)

    @property
    def n_copies(self) -> int:
        """L: number of cells."""
        return int(self.occupancy.shape[0])

    def cells(self) -> list[Any]:
        """Return the cells in order, length L; each is a `Cell`."""
        return list(self._cells)

    def option_parameters(self, column: int) -> list[nn.Parameter]:
        """Return the parameters of one flat option in all cells; empty where it has none."""
        return [parameter for cell in self.cells() for parameter in cell.option_parameters(column)]

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
        if active is not None and active >= self._live_columns:
            active = None
        self._count(images.shape[0], active)
        fast = self.fused and self.training and fits(images, gates[:, 0])
        row_of = {id(cell): row if copies > 1 else 0 for row, cell in enumerate(self._cells)}

        def call(layer: nn.Module, *before: Tensor) -> Tensor:
            told = (gates[:, row_of[id(layer)]], active) if id(layer) in row_of else ()
            run = getattr(layer, "by_kernels", layer) if fast else layer
            out: Tensor = run(*before, *told)
            return out

        logits: Tensor = self.head(walk(self.stem(images), self.layers, self.depth, call)[-1])
        return logits

    @contextmanager
    def weights_held(self) -> Iterator[None]:
        """Let weights be constants, for a pass that wants the gradient of gates alone and keeps nothing for theirs."""
        if self._weights is None:
            self._weights = list(self.parameters())
        moving = [weight for weight in self._weights if weight.requires_grad]
        for weight in moving:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in moving:
                weight.requires_grad_(True)

    def compile_regions(self, **how: Any) -> None:
        """Compile what leaves each node of the cells, when it is first trained; `how` is of `torch.compile`.

        Raises:
            ConfigError: if the cells have no regions (those of a table's space).
        """
        self._take_region(compiled(**how), "engine.compile")

    def fuse(self) -> None:
        """Compute cells and reductions by kernels of ours, on a CPU, while the supernet is trained.

        Raises:
            ConfigError: if the cells have no regions (those of a table's space).
            DeviceError: if the kernels are not compiled here.
        """
        library(next(self.parameters()).dtype)
        self._take_region(fused, "engine.fused")
        self.fused = True

    def _take_region(self, region: Region, setting: str) -> None:
        cells = [cell for cell in self.cells() if isinstance(cell, Regional)]
        if not cells:
            raise ConfigError(f"space {self.space.name!r} has no cells of operations; leave {setting} off")
        for cell in cells:
            cell.region = region

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
            if isinstance(layer, Cell):
                for name, growth in layer.resize(partial, generator).items():
                    grown[f"layers.{index}.{name}"] = growth
        self.partial, self._weights = partial, None
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
        self.live, self._weights = live.clone(), None
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
            if isinstance(mine, Cell):
                mine.hand_over(theirs)
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
            if isinstance(mine, Cell):
                mine.hand_over(theirs)
            else:
                theirs.load_state_dict(mine.state_dict())
        return plain.train(self.training)

    def option_sqnorm(self) -> Tensor:
        """Return the squared norm of each option's weights over all copies, shape (G,); 0 where it has none."""
        none = next(self.head.parameters()).new_zeros(())
        parameters = [self.option_parameters(g) for g in range(self.space.n_options)]
        return torch.stack([sum((p.square().sum() for p in mine), none) for mine in parameters])

    def one_hot(self, arch: Architecture) -> Tensor:
        """Return gates of shape (1, 1, G) that are 1 on the picked options and 0 elsewhere."""
        parameter = next(self.head.parameters())
        gates = torch.zeros(1, 1, self.space.n_options, dtype=parameter.dtype, device=parameter.device)
        gates[0, 0, list(arch.columns)] = 1.0
        return gates
