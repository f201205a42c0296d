"""Training of a plain network: one loop, resumable bit for bit on the CPU.

for each epoch:
    for each step:  loss (smoothed labels, auxiliary head), clipped SGD step, moving average of the weights
    score on the selection split, record, checkpoint
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.config import Config
from bayesarch.data import Batch, Feeder, Split
from bayesarch.engine.checkpoint import load_checkpoint, save_checkpoint
from bayesarch.engine.device import Precision, autocast
from bayesarch.engine.place import Interrupted, Observer
from bayesarch.engine.replay import Replays
from bayesarch.engine.score import Score, score
from bayesarch.engine.weights import Weights
from bayesarch.errors import CheckpointError, ConfigError, NumericalError
from bayesarch.functional import Streams, cosine, seeded
from bayesarch.nets import AuxiliaryHead, PathDrop, PlainNetwork, convolving

__all__ = ["TrainConfig", "Trainer", "TrainingPlace"]

CHECK_EVERY = 10
"""Steps between looks at the loss, so that a GPU is not made to wait at every step."""


class TrainConfig(Config):
    """How a found network is trained."""

    epochs: int = Field(default=100, ge=1)
    """Passes over the training examples."""
    batch_size: int = Field(default=64, ge=2)
    """Examples per batch."""
    lr: float = Field(default=0.025, gt=0)
    """First learning rate (SGD)."""
    lr_min: float = Field(default=0.0, ge=0)
    """Last learning rate of the cosine."""
    schedule: Literal["cosine", "exponential"] = "cosine"
    """Half a cosine over all steps, or a constant factor after every epoch."""
    lr_factor: float = Field(default=0.97, gt=0, le=1)
    """That factor."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    nesterov: bool = False
    """Whether momentum looks ahead."""
    weight_decay: float = Field(default=3e-4, ge=0)
    """L2 coefficient."""
    clip: float = Field(default=5.0, ge=0)
    """Largest gradient norm; 0: no clipping."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each label spread over all classes."""
    auxiliary: float = Field(default=0.0, ge=0)
    """Weight of the loss of an auxiliary head behind the layer at two thirds; 0: none (published: 0.4)."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Share of operations switched off per example in the last epoch; rises linearly from 0 (published: 0.2)."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the weights, which is then what is scored and kept; null: none."""
    precision: Precision = "fp32"
    """fp32, or bf16 autocast."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of the CPU; null: as many as a step keeps busy, or what `OMP_NUM_THREADS` says."""
    fused: bool = False
    """Whether convolutions are computed by kernels of ours, on a CPU and in fp32, compiled in some seconds by a C
    compiler and kept: networks that train as one, and wide ones, are faster, and up to rounding the same."""
    graphs: bool = False
    """Whether steps on a card are captured and replayed as one program, as `engine.graphs` says."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """Longest time between two checkpoints; one is written after every epoch in any case."""


@dataclass
class TrainingPlace:
    """Where a training is."""

    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Steps finished in the current epoch."""
    seconds: float = 0.0
    """Time spent so far, over all processes that worked on it."""
    loss: float = 0.0
    """Sum of training losses over the current epoch."""


class Trainer:
    """One training.

    Args:
        net: the network, already on the device.
        classes: number of classes.
        training: examples to train on.
        selection: examples to score on after every epoch.
        config: how.
        streams: the run's random streams.
        checkpoint: file that the place is saved to.
        observer: who is told.

    Raises:
        ConfigError: if an auxiliary head or dropped paths are asked of a network that has no cells.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        classes: int,
        training: Split,
        selection: Split,
        config: TrainConfig,
        streams: Streams,
        checkpoint: Path,
        observer: Observer | None = None,
    ) -> None:
        self.net, self.training, self.selection_split, self.config = net, training, selection, config
        self.streams, self.checkpoint, self.observer = streams, checkpoint, observer or Observer()
        self.device, self.place = streams.device, TrainingPlace()
        self.whole = nn.ModuleDict({"net": net})
        self._layered = net if isinstance(net, PlainNetwork) else None
        if self._layered is None and (config.auxiliary > 0 or config.drop_path > 0):
            raise ConfigError(
                f"train.auxiliary and train.drop_path are for networks of cells, and this is a {type(net).__name__}; "
                "set both to 0"
            )
        if config.auxiliary > 0:
            self.whole["auxiliary"] = self._auxiliary(classes)
        self.weights = Weights(
            self.whole,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
            clip=config.clip,
        )
        self.average: dict[str, Tensor] = {}
        if config.ema is not None:
            self.average = {k: v.detach().clone() for k, v in net.state_dict().items()}
        self.feeder = Feeder(
            training, config.batch_size, order=streams["data/training"], augment=streams["augment/training"]
        )
        self.steps_per_epoch = self.feeder.steps_per_pass
        self._saved_at = self._ticked = time.monotonic()
        self.replays = Replays(streams) if config.graphs else None
        self._running: Tensor | float = 0.0
        self.time_share = 1.0
        """Part of the time passing that counts as this training's: less where several share the steps."""

    def _auxiliary(self, classes: int) -> nn.Module:
        """Return an auxiliary head that fits the layer at two thirds."""
        assert self._layered is not None
        was = self.net.training
        self.net.eval()
        with torch.no_grad():
            outputs = self._layered.outputs(next(iter(self.training.in_order(2, 1))).images)
            seen = outputs[2 * len(outputs) // 3]
        self.net.train(was)
        with seeded(self.streams["init/auxiliary"]):
            return AuxiliaryHead(seen.shape[1], classes).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(self) -> Self:
        """Go on from the current place to the end.

        Raises:
            Interrupted: when asked to stop; the place is saved.
            NumericalError: when the loss is no longer finite; the last checkpoint is from before.
        """
        self._ticked = time.monotonic()
        while self.place.epoch < self.config.epochs:
            self._epoch()
        self._keep_average()
        return self

    def _epoch(self) -> None:
        self.begin_epoch()
        while self.place.step < self.steps_per_epoch:
            self.took(self._step(self.feeder.next()))
            if self.keep_place():
                raise Interrupted
        self.end_epoch()

    def begin_epoch(self) -> None:
        """Make ready for the steps of the current epoch, or for what is left of them."""
        self.whole.train()
        self._dropped = share = self.config.drop_path * self.place.epoch / self.config.epochs
        if self._layered is not None:
            self._layered.drop_paths(PathDrop(share, generator=self.streams["drop"]) if share > 0 else None)
        self._running = self.place.loss

    def took(self, loss: Tensor) -> None:
        """Count a step.

        Args:
            loss: what it was taken at, 0-dim.

        Raises:
            NumericalError: when a look at the loss shows that it is no longer finite.
        """
        self._running = self._running + loss
        self.place.step += 1
        if self.place.step % CHECK_EVERY == 0 or self.place.step == self.steps_per_epoch:
            self._finite(self._running)
        self._tick()

    def keep_place(self, *, now: bool = False) -> bool:
        """Save the place between two steps, where it is time to, and return whether to stop.

        Args:
            now: whether to save in any case.
        """
        stop = self.observer.should_stop()
        if stop or now or time.monotonic() - self._saved_at > 60 * self.config.checkpoint_minutes:
            self.place.loss = self._finite(self._running)
            self.save()
        return stop

    def end_epoch(self) -> None:
        """Score, record and save after the last step of an epoch."""
        place = self.place
        loss, lr = self._finite(self._running) / self.steps_per_epoch, self._lr()
        place.epoch, place.step, place.loss = place.epoch + 1, 0, 0.0
        selection = self.selection()
        self._tick()
        self.save()
        self.observer.on_round(
            {
                "stage": "training",
                "epoch": place.epoch,
                "lr": lr,
                "training_loss": loss,
                "selection_loss": selection.loss,
                "selection_accuracy": selection.accuracy,
                "seconds": place.seconds,
            }
        )

    def _step(self, batch: Batch) -> Tensor:
        if self.replays is None:
            return self._moved(batch)
        self.replays.rate.fill_(self._lr())
        given = [part for part in batch if part is not None]  # weights come last
        key = [self._dropped, *(part.shape for part in given)]
        return self.replays.run(key, given, lambda now: [self._moved(Batch(*now))])[0][0]

    def _moved(self, batch: Batch) -> Tensor:
        self.weights.zero()
        with autocast(self.device, self.config.precision), convolving(self.config.fused):
            total, loss = self._losses(batch)
        total.backward()
        self.move()
        return loss.detach().float()

    def move(self) -> None:
        """Take the weights' step along the gradients that are in them."""
        self.weights.step(self._lr() if self.replays is None else self.replays.rate)
        if self.config.ema is not None:
            with torch.no_grad():
                for name, value in self.net.state_dict().items():
                    mine = self.average[name]
                    mine.lerp_(value, 1 - self.config.ema) if mine.is_floating_point() else mine.copy_(value)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what is to fall, and the part of it that is the network's own loss."""
        if self._layered is None:  # what such a network draws (dropout, shaking) comes from the run's streams too
            with seeded(self.streams["noise"]):
                loss = self.loss(self.net(batch.images), batch)
            return loss, loss
        outputs = self._layered.outputs(batch.images)
        loss = self.loss(self._layered.head(outputs[-1]), batch)
        if "auxiliary" not in self.whole:
            return loss, loss
        second = self.loss(self.whole["auxiliary"](outputs[2 * len(outputs) // 3]), batch)
        return loss + self.config.auxiliary * second, loss

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, labels smoothed and examples weighed as they are to be, 0-dim."""
        each = F.cross_entropy(logits, batch.labels, reduction="none", label_smoothing=self.config.label_smoothing)
        return each.mean() if batch.weights is None else (each * batch.weights).mean()

    def _lr(self) -> float:
        config, place = self.config, self.place
        if config.schedule == "exponential":
            return config.lr * config.lr_factor**place.epoch
        done = place.epoch * self.steps_per_epoch + place.step
        return cosine(done, config.epochs * self.steps_per_epoch, config.lr, config.lr_min)

    def _finite(self, running: Tensor | float) -> float:
        value = float(running)
        if value != value or value in (float("inf"), float("-inf")):
            raise NumericalError(
                f"the training loss is {value} in epoch {self.place.epoch + 1}; the last checkpoint is from before; "
                "try a smaller learning rate (--set train.lr=0.01)"
            )
        return value

    def selection(self) -> Score:
        """Return the score on the selection split, of the moving average where there is one."""
        return self.score_on(self.selection_split)

    def score_on(self, split: Split) -> Score:
        """Return the score on a split, in eval mode, of the moving average where there is one."""
        kept = {k: v.detach().clone() for k, v in self.net.state_dict().items()} if self.average else {}
        self._keep_average()
        self.net.eval()
        with autocast(self.device, self.config.precision):
            result = score(self.net, split, batch_size=4 * self.config.batch_size)
        if kept:
            self.net.load_state_dict(kept)
        self.net.train()
        return result

    def _keep_average(self) -> None:
        if self.average:
            self.net.load_state_dict(self.average)

    def _tick(self) -> None:
        now = time.monotonic()
        self.place.seconds += self.time_share * (now - self._ticked)
        self._ticked = now

    def own_state(self) -> dict[str, Tensor]:
        """Return what a kind of training has to remember beside network, momentum and streams, by name."""
        return {}

    def restore_own(self, state: dict[str, Tensor]) -> None:
        """Put back what `own_state` returned."""

    def save(self) -> None:
        """Write the place to the checkpoint file, whole or not at all."""
        tensors: dict[str, Tensor] = {f"net/{k}": v for k, v in self.whole.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.items()}
        tensors |= {f"momentum/{k}": v for k, v in self.weights.state().items()}
        tensors |= {f"stream/{k}": v for k, v in self.streams.state().items()}
        tensors |= {f"feeder/{k}": v for k, v in self.feeder.state().items()}
        tensors |= {f"own/{k}": v for k, v in self.own_state().items()}
        header: Mapping[str, Any] = {"place": vars(self.place), "threads": torch.get_num_threads(), "kind": "training"}
        save_checkpoint(self.checkpoint, tensors, header)
        self._saved_at = time.monotonic()

    def restore(self) -> Self:
        """Go back to the place in the checkpoint file, its number of threads included.

        Raises:
            CheckpointError: if it is missing, damaged, or of another network.
        """
        tensors, header = load_checkpoint(self.checkpoint)
        if header.get("kind") != "training":
            raise CheckpointError(f"{self.checkpoint} is no checkpoint of a training")

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        torch.set_num_threads(header["threads"])
        try:
            self.whole.load_state_dict(under("net/"))
        except RuntimeError as error:
            raise CheckpointError(f"{self.checkpoint} does not fit this network: {error}") from None
        if self.replays is not None:
            self.replays.forget()
        self.average = {k: v.to(self.device) for k, v in under("average/").items()}
        self.weights.restore(under("momentum/"))
        self.streams.restore(under("stream/"))
        self.feeder.restore(under("feeder/"))
        self.restore_own(under("own/"))
        self.place = TrainingPlace(**header["place"])
        return self
