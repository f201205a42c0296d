"""Plain networks: `build` gives an ordinary `torch.nn.Module`, no gates left."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesarch.config import Config
from bayesarch.errors import ConfigError, SpaceError, nearest
from bayesarch.functional import seeded
from bayesarch.nets.cells import PlainCell
from bayesarch.nets.skeletons import SKELETONS, Shape, Trunk
from bayesarch.spaces import Architecture, Space

__all__ = ["PlainNetwork", "build", "skeleton", "tidy_sizes"]


class PlainNetwork(nn.Module):
    """A finished network: stem, layers, head; nothing in it knows about the search."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.stem, self.layers, self.head = trunk.stem, nn.ModuleList(trunk.layers), trunk.head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, K) for images of shape (B, C, H, W)."""
        x = self.stem(images)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x)
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


def skeleton(space: Space, sizes: Config, input_shape: Shape, classes: int, make_cell: Any) -> Trunk:
    """Return the trunk of the space's skeleton, its cells made by `make_cell`.

    Raises:
        SpaceError: if the space names a skeleton that does not exist.
        ConfigError: if the input shape or the number of classes makes no network.
    """
    if space.skeleton not in SKELETONS:
        raise SpaceError(f"space {space.name!r}: unknown skeleton {nearest(space.skeleton, SKELETONS)}")
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ConfigError(f"input_shape is (channels, height, width), all at least 1; got {tuple(input_shape)}")
    if classes < 2:
        raise ConfigError(f"a classifier needs at least 2 classes; got {classes}")
    return SKELETONS[space.skeleton](sizes, input_shape, classes, make_cell)


def build(
    arch: Architecture,
    *,
    input_shape: Shape,
    classes: int,
    sizes: Config | Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> PlainNetwork:
    """Return the plain network of an architecture, freshly initialised.

    Args:
        arch: the architecture; choices may hold several options (summed) or none.
        input_shape: (channels, height, width) of an image.
        classes: number of classes K >= 2.
        sizes: macro sizes such as `{"channels": 16, "cells": 5}`; None: the space's defaults (the benchmark's).
        generator: stream for the initial weights; None: torch's global generator.

    Raises:
        ConfigError: if a size, the input shape or the number of classes is wrong.
    """

    def make() -> PlainNetwork:
        tidy = tidy_sizes(arch.space, sizes)
        return PlainNetwork(skeleton(arch.space, tidy, input_shape, classes, lambda c, kind: PlainCell(arch, c, kind)))

    if generator is None:
        return make()
    with seeded(generator):
        return make()
