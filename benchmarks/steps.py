"""Steps to be timed, ours and the published way, and how they take turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Case", "in_turn"]


def in_turn(
    works: Mapping[str, Callable[[], Any]], rounds: int, base: str, done: Callable[[], Any] = lambda: None
) -> dict[str, dict[str, float]]:
    """Return median seconds of each work, and median and range over rounds of its speed over that of `base`.

    Args:
        works: what takes turns.
        rounds: how often each is timed.
        base: one of them.
        done: waits until a work has really ended, on a card.
    """
    for work in works.values():
        work()
        done()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            done()
            times[name].append(time.perf_counter() - began)
    found = {}
    for name, mine in times.items():
        ratios = [b / a for a, b in zip(mine, times[base], strict=True)]
        found[name] = {
            "seconds": statistics.median(mine),
            "least": min(mine),
            "ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
    return found


class Case:
    """One supernet with data of CIFAR's shape."""

    def __init__(self, given: Mapping[str, Any], side: int = 32, classes: int = 10, device: str = "cpu") -> None:
        import torch

        from bayesarch.data import Batch
        from bayesarch.nets import Supernet
        from bayesarch.spaces import SPACES

        generator = torch.Generator().manual_seed(0)
        self.space, self.batch, self.device = SPACES[given["space"]], given["batch"], torch.device(device)
        self.net = Supernet(
            self.space, input_shape=(3, side, side), classes=classes, sizes=given["sizes"], generator=generator
        ).to(device=self.device, memory_format=torch.channels_last)
        drawn = [
            (torch.randn(self.batch, 3, side, side, generator=generator), torch.randint(classes, (self.batch,)))
            for _ in range(2)
        ]
        self.data = [(x.to(self.device), y.to(self.device)) for x, y in drawn]
        last = [x.contiguous(memory_format=torch.channels_last) for x, _ in self.data]
        self.batches = {
            name: Batch(x, y, None)
            for name, x, (_, y) in zip(("architecture", "weights"), last, self.data, strict=True)
        }
        self.rows = [list(self.space.columns(i)) for i in range(len(self.space.choices))]

    def ours(
        self, method: str = "darts", settings: Mapping[str, Any] | None = None, **engine: Any
    ) -> Callable[[], None]:
        """Return a step of one of our methods, the weight step included; `engine` is of `EngineConfig`."""
        from bayesarch.engine import Clock, EngineConfig, Setting, Weights, steps_of
        from bayesarch.functional import Streams
        from bayesarch.methods import METHODS

        entry, streams = METHODS[method], Streams(0, self.device)
        made = entry.make(self.space, entry.config(**(settings or {})))
        n = dict.fromkeys(("weights", "architecture", "selection"), 5000)
        setting = Setting(self.net.n_copies, n, self.batch, 5000 // self.batch, self.device)
        beliefs = [made.init(setting, streams=streams)]
        weights = Weights(self.net, momentum=0.9, weight_decay=3e-4, nesterov=False, clip=5.0)
        steps = steps_of(made, self.net, weights, EngineConfig(**engine), streams)
        lr = steps.rate(0.025)
        clock = Clock(10**6, 10**6, 100, 5000 // self.batch, lr, lambda g: weights.preview(g, lr))
        self.net.train()

        def step() -> None:
            beliefs[0], _ = steps.take(beliefs[0], self.batches, clock)

        return step

    def published(self) -> Callable[[], None]:
        """Return the published step on a network with the same weights, whose loss has been compared with ours."""
        import torch
        from published import PublishedNet, published_step
        from torch.nn import functional as F

        theirs = PublishedNet(self.net)
        gates = torch.cat([torch.full((len(row),), 1 / len(row)) for row in self.rows]).to(self.device)
        with torch.no_grad():
            a = F.cross_entropy(theirs(self.data[0][0], gates), self.data[0][1])
            b = F.cross_entropy(self.net(self.batches["architecture"].images, gates.view(1, 1, -1)), self.data[0][1])
        if not torch.isclose(a, b, rtol=1e-3):
            raise AssertionError(f"the networks differ: loss {float(a)} the published way, {float(b)} ours")
        return published_step(theirs, self.rows, (self.data[0], self.data[1]))
