"""Which members train as one: those of one architecture, where what was measured says that it is faster."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch

from bayesarch.config import Config
from bayesarch.engine import TrainConfig, can_stack
from bayesarch.errors import SpaceError
from bayesarch.nets import architecture_cost, build, stack
from bayesarch.spaces import Architecture

__all__ = ["groups", "stacking_pays"]

SMALL_STEP = 2**27
"""MACs of one network's pass forward over a batch, up to which a stack was faster than one after another on a CPU."""


def groups(asked: Mapping[Path, Architecture]) -> list[list[Path]]:
    """Return folders whose networks are the same, two or more together, in the order given."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path, arch in asked.items():
        found[arch.canonical].append(path)
    return [paths for paths in found.values() if len(paths) > 1]


def stacking_pays(
    arch: Architecture,
    *,
    sizes: Config,
    input_shape: tuple[int, int, int],
    classes: int,
    config: TrainConfig,
    device: torch.device,
    parallel: int,
) -> bool:
    """Return whether networks train faster as one than in processes of their own.

    On a GPU always, for small networks wait for launches; on a CPU where they are small and no two processes would run
    side by side. By size and not by the clock (decision 21): a stack's rounding is its own, and equal runs stay equal.
    False where the networks cannot be stacked, draw random numbers inside, or have their steps replayed one by one.

    Args:
        arch: their architecture.
        sizes: of the networks.
        input_shape: (channels, height, width) of an image.
        classes: number of classes.
        config: the recipe.
        device: where they train.
        parallel: processes at a time.
    """
    if not can_stack(config):
        return False
    if device.type == "cpu":
        macs = architecture_cost(arch, sizes=sizes, input_shape=input_shape, classes=classes).macs
        if parallel > 1 or config.batch_size * macs > SMALL_STEP:
            return False
    generator = torch.Generator().manual_seed(0)
    nets = [
        build(arch, input_shape=input_shape, classes=classes, sizes=sizes, generator=generator).to(device)
        for _ in range(2)
    ]
    try:
        stack(nets)
    except SpaceError:
        return False
    return True
