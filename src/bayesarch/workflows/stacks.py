"""Which members train as one: those of one architecture, where a measurement says that it is faster."""

import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from bayesarch.config import Config
from bayesarch.engine import TrainConfig, autocast
from bayesarch.errors import SpaceError
from bayesarch.nets import build, stack
from bayesarch.spaces import Architecture

__all__ = ["groups", "stacking_pays"]

ROUNDS = 3
"""Timed steps of either kind; the median counts."""
MARGIN = 0.9
"""A stack must take less than this part of the time: what is measured is a step, and short."""


def groups(asked: Mapping[Path, Architecture]) -> list[list[Path]]:
    """Return folders whose networks are the same, two or more together, in the order given."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path, arch in asked.items():
        found[arch.canonical].append(path)
    return [paths for paths in found.values() if len(paths) > 1]


def stacking_pays(
    arch: Architecture,
    *,
    of: int,
    sizes: Config,
    input_shape: tuple[int, int, int],
    classes: int,
    config: TrainConfig,
    device: torch.device,
    parallel: int,
) -> bool:
    """Return whether `of` networks train faster as one than in processes side by side. Takes some steps' time.

    Always on a GPU, where small networks wait for launches; on CPUs by the time of a step each, with the cores that
    each would have. False where the networks cannot be stacked, or draw random numbers inside.

    Args:
        arch: their architecture.
        of: how many.
        sizes: of the networks.
        input_shape: (channels, height, width) of an image.
        classes: number of classes.
        config: the recipe.
        device: where they train.
        parallel: processes at a time.
    """
    if config.auxiliary > 0 or config.drop_path > 0:
        return False

    def nets(count: int) -> list[nn.Module]:
        generator = torch.Generator().manual_seed(0)
        made = [
            build(arch, input_shape=input_shape, classes=classes, sizes=sizes, generator=generator)
            for _ in range(count)
        ]
        return [net.to(device, memory_format=torch.channels_last) for net in made]

    try:
        joint = stack(nets(of))
    except SpaceError:
        return False
    if device.type == "cuda":
        return True
    images = torch.randn(of, config.batch_size, *input_shape, device=device)
    single, one = nets(1)[0], images[0].contiguous(memory_format=torch.channels_last)

    def step(work: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def go() -> None:
            with autocast(device, config.precision):
                logits = work()
            logits.float().square().mean().backward()

        return go

    cores = os.cpu_count() or 1
    alone = _timed(step(lambda: single(one)), max(1, cores // parallel))
    together = _timed(step(lambda: joint(images)), cores)
    return together < MARGIN * alone * math.ceil(of / parallel)


def _timed(work: Callable[[], None], threads: int) -> float:
    """Return the seconds that `work` takes with so many threads."""
    before, seconds = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        work()
        for _ in range(ROUNDS):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return statistics.median(seconds)
