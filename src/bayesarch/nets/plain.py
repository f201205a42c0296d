"""Plain networks: `build` gives an ordinary `torch.nn.Module`, no gates left."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayesarch.config import Config
from bayesarch.errors import ConfigError, SpaceError, nearest
from bayesarch.functional import seeded
from bayesarch.nets.cells import PlainCell
from bayesarch.nets.drop import PathDrop
from bayesarch.nets.families import SKELETONS, Skeleton
from bayesarch.nets.gated import NETWORKS, kept_by, network_of
from bayesarch.nets.module import in_layout
from bayesarch.nets.options import Options
from bayesarch.nets.skeletons import MakeCell, Shape, Trunk, walk
from bayesarch.nets.slicing import slice_inputs
from bayesarch.spaces import Architecture, Space

__all__ = ["PlainNetwork", "build", "plain_trunk", "skeleton_of", "tidy_sizes", "trunk_of"]


class PlainNetwork(nn.Module):
    """A finished network: stem, layers, head; nothing in it knows about the search."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.stem, self.layers, self.head = trunk.stem, nn.ModuleList(trunk.layers), trunk.head
        self.depth, self.kinds = trunk.depth, trunk.kinds

    def drop_paths(self, drop: PathDrop | None) -> None:
        """Switch operations off at random while training from now on; None: no more."""
        for module in self.modules():
            if isinstance(module, PlainCell | Options):
                module.drop = drop

    def outputs(self, images: Tensor) -> list[Tensor]:
        """Return what every layer gives, in order, for images of shape (B, C, H, W)."""
        return walk(self.stem(images), self.layers, self.depth, lambda layer, *before: layer(*before))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, K) for images of shape (B, C, H, W)."""
        logits: Tensor = self.head(self.outputs(images)[-1])
        return logits


def tidy_sizes(space: Space, sizes: Config | Mapping[str, Any] | None) -> Config:
    """Return `sizes` as the space's own settings; None: its defaults.

    Raises:
        ConfigError: if a size is unknown or out of range.
    """
    if isinstance(sizes, space.sizes):
        return sizes
    from bayesarch.config import check, raise_all

    faults: list[str] = []
    tidy = check(space.sizes, sizes or {}, path="space", faults=faults)  # type: ignore[arg-type]
    raise_all(faults)
    assert tidy is not None
    return tidy


def skeleton_of(space: Space) -> Skeleton:
    """Return the space's macro network and cells.

    Raises:
        SpaceError: if the space names a skeleton that does not exist.
    """
    if space.skeleton not in SKELETONS:
        raise SpaceError(f"space {space.name!r}: unknown skeleton {nearest(space.skeleton, SKELETONS)}")
    return SKELETONS[space.skeleton]


def plain_trunk(space: Space, sizes: Config, input_shape: Shape, classes: int, columns: Sequence[int]) -> Trunk:
    """Return a plain network in parts, its cells made of the flat options `columns`. Arguments as in `trunk_of`."""
    family = skeleton_of(space)
    return trunk_of(
        space, sizes, input_shape, classes, lambda geometry, kind: family.plain(space, geometry, kind, columns)
    )


def trunk_of(space: Space, sizes: Config, input_shape: Shape, classes: int, make_cell: MakeCell) -> Trunk:
    """Return the trunk of the space's skeleton, its cells made by `make_cell`.

    Raises:
        SpaceError: if the space names a skeleton that does not exist.
        ConfigError: if the input shape or the number of classes makes no network.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ConfigError(f"input_shape is (channels, height, width), all at least 1; got {tuple(input_shape)}")
    if classes < 2:
        raise ConfigError(f"a classifier needs at least 2 classes; got {classes}")
    return skeleton_of(space).trunk(sizes, input_shape, classes, make_cell)


def build(
    arch: Architecture,
    *,
    input_shape: Shape,
    classes: int,
    sizes: Config | Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> Any:
    """Return the plain network of an architecture, freshly initialised: a `PlainNetwork`, or a space's own module cut.

    Args:
        arch: the architecture; choices may hold several options (summed) or none.
        input_shape: (channels, height, width) of an image.
        classes: number of classes K >= 2.
        sizes: macro sizes such as `{"channels": 16, "cells": 5}`; None: the space's defaults (the benchmark's).
        generator: stream for the initial weights; None: torch's global generator.

    Raises:
        ConfigError: if a size, the input shape or the number of classes is wrong.
    """

    def make() -> nn.Module:
        tidy = tidy_sizes(arch.space, sizes)
        if arch.space.skeleton in NETWORKS:
            return slice_inputs(
                in_layout(network_of(arch.space, tidy, input_shape, classes), input_shape), kept_by(arch)
            )
        return PlainNetwork(plain_trunk(arch.space, tidy, input_shape, classes, arch.columns))

    if generator is None:
        return make()
    with seeded(generator):
        return make()
