"""What ensembles do with supernets: start again with one choice open, and sample cells from a shared one.

References: BPNAS, poster at the ICML 2024 workshop "Differentiable Almost Everything" (restarts); Shu et al., UAI 2022
(sets of cells).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesarch.data import Split
from bayesarch.engine import Engine, EngineConfig, Observer, Setting, batch_statistics, found_by
from bayesarch.functional import Streams
from bayesarch.functional.svgd import one_hot_mixture, particles
from bayesarch.functional.uncertainty import softmax
from bayesarch.methods import BPNAS, BPNASConfig
from bayesarch.nets import Supernet
from bayesarch.posteriors import MeanField
from bayesarch.spaces import Architecture

__all__ = ["SharedSupernet", "restart"]


def restart(  # noqa: PLR0913 - a search of its own, and as much to say of it
    net: Supernet,
    found: Architecture,
    position: int,
    *,
    data: Mapping[str, Split],
    setting: Setting,
    config: EngineConfig,
    method: BPNASConfig,
    seed: int,
    checkpoint: Path,
    observer: Observer | None = None,
) -> Architecture:
    """Return what BPNAS ends with when one choice of a found architecture is open again.

    Weights of the found options stay warm, those that come back are fresh; then the published loop runs until the
    choice has one option again. The same option may win, and often does.

    Args:
        net: the network that the search ended with; left as it is.
        found: its architecture.
        position: which choice is opened.
        data: splits of the search.
        setting: of the search.
        config: how weights are fitted; its epochs are the cap.
        method: settings of BPNAS.
        seed: decides everything random.
        checkpoint: where the place is kept; a restart that was broken off goes on.
        observer: who is told, and asked whether to stop.
    """
    streams, space = Streams(seed, setting.device), found.space
    live = torch.zeros(space.n_options, dtype=torch.bool)
    live[list(found.columns)] = True
    live[list(space.columns(position))] = True
    wide = net.reopened(live, generator=streams["init"]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    bpnas = BPNAS(space, method.model_copy(update={"reopen_steps": 0, "cost_batches": 0}))
    engine = Engine(
        method=bpnas,
        net=wide,
        state=replace(bpnas.init(setting, streams=streams), live=live),
        data=data,
        config=config.model_copy(update={"closing_epochs": 0, "recalibrate": False}),
        streams=streams,
        checkpoint=checkpoint,
        observer=observer,
    )
    if checkpoint.exists():
        engine.restore()
    engine.run()
    return found_by(bpnas, engine.state)


class SharedSupernet:
    """A supernet trained by uniform paths, and a posterior over its cells fitted with its weights fixed.

    Args:
        net: the supernet, all options alive.
        posterior: over its cells.
        split: examples that sets are compared on.
        batch_size: examples at a time.
    """

    def __init__(self, net: Supernet, posterior: MeanField, split: Split, *, batch_size: int) -> None:
        self.net, self.posterior, self.split, self.batch_size = net, posterior, split, batch_size

    def sets(self, kind: str, size: int, count: int, seed: int) -> list[list[Architecture]]:
        """Return `count` sets of `size` cells: draws from the posterior, or particles that keep apart."""
        if kind == "mc":
            drawn = self.posterior.sample(size * count, seed=seed)
            return [drawn[i * size : (i + 1) * size] for i in range(count)]
        return [self._particles(size, seed + i) for i in range(count)]

    def _particles(self, size: int, seed: int, *, diversity: float = 1.0, sigma: float = 0.3) -> list[Architecture]:
        """Return cells nearest to particles of the posterior's relaxed density."""
        space, generator = self.net.space, torch.Generator().manual_seed(seed)
        columns = [space.columns(position) for position in range(len(space.choices))]
        weights = torch.tensor(np.concatenate([np.maximum(row, 1e-6) for row in self.posterior.table]))
        start = torch.rand(size, space.n_options, generator=generator, dtype=torch.float64)
        ended = particles(one_hot_mixture(columns, weights, sigma), start, diversity=diversity, steps=300, lr=0.02)
        return [Architecture(space, tuple((int(x[list(group)].argmax()),) for group in columns)) for x in ended]

    @torch.no_grad()
    def probabilities(self, arch: Architecture) -> tuple[np.ndarray, np.ndarray]:
        """Return a cell's probabilities with inherited weights, norms on batch statistics, and the true classes."""
        gates, active = self.net.one_hot(arch), frozenset(arch.columns)
        logits: list[Tensor] = []
        labels: list[Any] = []
        with batch_statistics(self.net):
            for batch in self.split.in_order(self.batch_size, None):
                logits.append(self.net(batch.images, gates, active).float().cpu())
                labels.append(batch.labels.cpu())
        return softmax(torch.cat(logits).numpy()), torch.cat(labels).numpy()
