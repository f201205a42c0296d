"""What a search will cost, before it starts: parameters, MACs, memory and time, measured on a throw-away copy."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bayesarch.data import Feeder, Split
from bayesarch.engine import Clock, EngineConfig, Method, Setting, Weights, autocast, partial_of
from bayesarch.functional import Streams
from bayesarch.nets import Supernet

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """The price of a search.

    Attributes:
        supernet_params: parameters of the supernet.
        supernet_macs: MACs of one forward pass of one image with all options.
        memory_bytes: weights, gradients, momentum, data and what one step keeps for its backward pass; an estimate.
        step_seconds: one step with all options, measured.
        steps_per_epoch: steps in an epoch.
        max_epochs: cap on search epochs plus closing epochs.
    """

    supernet_params: int
    supernet_macs: int
    memory_bytes: int
    step_seconds: float
    steps_per_epoch: int
    max_epochs: int

    @property
    def max_seconds(self) -> float:
        """Time if nothing were pruned before the cap."""
        return self.step_seconds * self.steps_per_epoch * self.max_epochs

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record."""
        return {**asdict(self), "max_seconds": self.max_seconds}


def plan(
    method: Method[Any],
    net: Supernet,
    data: Mapping[str, Split],
    setting: Setting,
    config: EngineConfig,
    *,
    seed: int,
) -> Plan:
    """Return what a search will cost, after three steps on `net`, which must be a throw-away copy.

    Args:
        method: how beliefs move.
        net: used up.
        data: the splits the method declares.
        setting: what the method may know.
        config: batch size, epochs, precision.
        seed: for streams of its own, so that the search itself is not moved.
    """
    params = sum(p.numel() for p in net.parameters())
    macs = net.full_macs
    streams = Streams(seed, setting.device)
    state = method.init(setting, streams=streams)
    feeders = {
        name: Feeder(data[name], config.batch_size, order=streams[f"data/{name}"], augment=streams[f"augment/{name}"])
        for name in method.splits
    }
    kept = _Kept()
    net.resize(partial_of(state), generator=streams["init/resize"])
    net.prune(state.live)
    weights = Weights(
        net, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov, clip=config.clip
    )
    clock = Clock(
        epoch=10**6,
        step=0,
        epochs=1,
        steps_per_epoch=setting.steps_per_epoch,
        weight_lr=config.lr,
        preview=lambda gradients: weights.preview(gradients, config.lr),
    )
    times = []
    net.train()
    for attempt in range(3):
        batches = {name: feeder.next() for name, feeder in feeders.items()}
        net.zero_grad()
        start = time.perf_counter()
        with kept if attempt == 0 else autocast(setting.device, config.precision):
            state, _ = method.step(state, net, batches, streams=streams, clock=clock)
        if setting.device.type == "cuda":
            torch.cuda.synchronize(setting.device)
        times.append(time.perf_counter() - start)
    pixels = sum(split.images.nbytes for split in data.values())
    return Plan(
        supernet_params=params,
        supernet_macs=macs,
        memory_bytes=kept.peak + 3 * 4 * params + pixels,
        step_seconds=min(times[1:]),
        steps_per_epoch=setting.steps_per_epoch,
        max_epochs=config.epochs + config.closing_epochs,
    )


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that forward passes keep for their backward passes; the larger of passes is the peak."""

    def __init__(self) -> None:
        self.live: dict[int, int] = {}
        self.peak = 0
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self.live[storage.data_ptr()] = storage.nbytes()
        self.peak = max(self.peak, sum(self.live.values()))
        return tensor

    def _unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.live.clear()
        return tensor
