"""What a search will cost, before it starts: parameters, MACs, memory and time, measured on a throw-away copy."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from bayesarch.data import Feeder, Split
from bayesarch.engine import (
    SCORED,
    Clock,
    EngineConfig,
    Line,
    Method,
    Setting,
    Steps,
    Weights,
    autocast,
    economise,
    partial_of,
    take_way,
)
from bayesarch.functional import Streams
from bayesarch.nets import Supernet

__all__ = ["Plan", "Trial", "plan"]


@dataclass(frozen=True)
class Plan:
    """The price of a search.

    Attributes:
        supernet_params: parameters of the supernet.
        supernet_macs: MACs of one forward pass of one image with all options.
        memory_bytes: tensors alive at once in a step (weights, momentum, data, gradients, and what is kept for them),
            told from two small steps.
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


class Trial:
    """Steps on a throw-away copy of a search's network, with batches of any size.

    Args:
        method: how beliefs move.
        net: used up.
        data: the splits the method declares.
        setting: what the method may know.
        config: epochs, precision, how memory is held.
        seed: for streams of its own, so that the search itself is not moved.
    """

    def __init__(
        self,
        method: Method[Any],
        net: Supernet,
        data: Mapping[str, Split],
        setting: Setting,
        config: EngineConfig,
        *,
        seed: int,
    ) -> None:
        self.method, self.net, self.data, self.setting, self.config = method, net, data, setting, config
        self.params = sum(p.numel() for p in net.parameters())
        self.macs = net.full_macs
        self.streams = Streams(seed, setting.device)
        self.state = method.init(setting, streams=self.streams)
        net.resize(partial_of(self.state), generator=self.streams["init/resize"])
        net.prune(self.state.live)
        economise(net, recompute=config.recompute, parts=config.parts)
        if config.fused:  # programs of a compiler would take longer to make than they are used here
            take_way(net, config, setting.device)
        self.weights = Weights(
            net, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov, clip=config.clip
        )
        self.steps = Steps(method, net, self.weights, config, self.streams)  # never replayed: there are two or three
        self.clock = Clock(
            epoch=10**6,
            step=0,
            epochs=1,
            steps_per_epoch=setting.steps_per_epoch,
            weight_lr=config.lr,
            preview=lambda gradients: self.weights.preview(gradients, config.lr),
        )
        net.train()

    def step(self, batch_size: int) -> float:
        """Take a step, the weights' included, and return its seconds; feeding is not in them."""
        batches = {
            name: Feeder(
                self.data[name],
                batch_size,
                order=self.streams[f"data/{name}"],
                augment=self.streams[f"augment/{name}"],
            ).next()
            for name in self.method.splits
        }
        began = time.perf_counter()
        self.state, _ = self.steps.take(self.state, batches, self.clock)
        if self.setting.device.type == "cuda":
            torch.cuda.synchronize(self.setting.device)
        return time.perf_counter() - began

    def memory(self) -> int:
        """Return the most bytes that tensors take with batches of full size, told from small ones.

        The largest of a step, of norms taking their statistics anew and of scoring, with weights, momentum and data.
        """
        batch, small = self.setting.batch_size, max(2 * self.config.parts, min(8, self.setting.batch_size // 4))
        scored = min(SCORED * batch, len(self.data["selection"]))
        self.step(small)  # momentum is there from now on
        most = max(
            Line.through(self.step, small, 2 * small).at(batch),
            Line.through(partial(self.forward, training=True), small, 2 * small).at(batch),
            Line.through(partial(self.forward, training=False), small, 2 * small).at(scored),
        )
        self.net.train()
        momentum = sum(buffer.nbytes for buffer in self.weights.state().values())
        weights = sum(t.nbytes for t in (*self.net.parameters(), *self.net.buffers()))
        pixels = sum(split.images.nbytes for split in self.data.values())
        return most + weights + momentum + pixels

    @torch.no_grad()
    def forward(self, n: int, *, training: bool) -> None:
        """Take n examples through the network and keep nothing."""
        self.weights.zero()
        self.net.train(training)
        shape = (n, *self.net.input_shape)
        images = torch.zeros(shape, device=self.setting.device).contiguous(memory_format=torch.channels_last)
        with autocast(self.setting.device, self.config.precision):
            self.net(images, self.method.gates(self.state))


def plan(trial: Trial) -> Plan:
    """Return what a search will cost, after a few steps on a throw-away copy."""
    config, setting = trial.config, trial.setting
    memory = trial.memory()
    times = [trial.step(setting.batch_size) for _ in range(3)]
    return Plan(
        supernet_params=trial.params,
        supernet_macs=trial.macs,
        memory_bytes=memory,
        step_seconds=min(times[1:]),
        steps_per_epoch=setting.steps_per_epoch,
        max_epochs=config.epochs + config.closing_epochs,
    )
