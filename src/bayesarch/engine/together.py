"""Trainings of one architecture as one: every step goes forward and backward through all networks at once.

Each training keeps its own examples, streams, optimiser, checkpoint and observer and sees what it would see alone, so
that it ends with the same network up to rounding, and can be broken off and gone on with alone.
"""

from collections.abc import Sequence

import torch

from bayesarch.data import Batch
from bayesarch.engine.device import autocast
from bayesarch.engine.place import Interrupted
from bayesarch.engine.trainer import TrainConfig, Trainer
from bayesarch.errors import ConfigError
from bayesarch.nets import convolving, stack

__all__ = ["Together", "can_stack"]


def can_stack(config: TrainConfig) -> bool:
    """Return whether trainings by this recipe can be one: nothing draws as it goes forward, and nothing is replayed."""
    return config.auxiliary == 0 and config.drop_path == 0 and not config.graphs


class Together:
    """Trainings side by side.

    Args:
        trainers: of one architecture and one recipe, each with its own network; their networks' memory becomes the
            stack's.

    Raises:
        ConfigError: if their recipes differ, or draw random numbers inside the network.
        SpaceError: if their networks cannot be stacked.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        first = trainers[0]
        if any(t.config != first.config or t.steps_per_epoch != first.steps_per_epoch for t in trainers):
            raise ConfigError("only trainings of one recipe on as many examples can be stacked")
        if not can_stack(first.config):
            raise ConfigError(
                "a training with an auxiliary head or dropped paths cannot be stacked, nor one of replayed steps; set "
                "train.auxiliary and train.drop_path to 0 and train.graphs to false"
            )
        self.trainers = list(trainers)
        self.net = stack([t.net for t in trainers])

    def run(self) -> None:
        """Bring all trainings to their end.

        A kill can leave some a step or an epoch ahead. They wait: the others catch up inside the same stack, so that
        their numbers are those of an unbroken run, and those ahead go back to their checkpoints afterwards.

        Raises:
            Interrupted: when asked to stop; all places are saved.
            NumericalError: when a loss is no longer finite.
        """
        for trainer in self.trainers:
            trainer.time_share = 1.0 / len(self.trainers)
            trainer.begin_epoch()
        waiting = [trainer for trainer in self.trainers if self._at(trainer) > self._lowest()]
        while True:
            low = self._lowest()
            for trainer in [t for t in waiting if self._at(t) == low]:
                trainer.restore().begin_epoch()
                waiting.remove(trainer)
            if low[0] >= self.trainers[0].config.epochs:
                break
            self._step([trainer for trainer in self.trainers if self._at(trainer) == low])
        for trainer in self.trainers:
            trainer.run()  # nothing is left to train; its moving average becomes its weights

    def _lowest(self) -> tuple[int, int]:
        return min(self._at(trainer) for trainer in self.trainers)

    @staticmethod
    def _at(trainer: Trainer) -> tuple[int, int]:
        return trainer.place.epoch, trainer.place.step

    def _step(self, moving: Sequence[Trainer]) -> None:
        """Take one step of those that move; the others' places stay, and their memory does not matter meanwhile."""
        batches: dict[int, Batch] = {id(trainer): trainer.feeder.next() for trainer in moving}
        filler = batches[id(moving[0])]
        images = torch.stack([batches.get(id(trainer), filler).images for trainer in self.trainers])
        self.net.train()
        first = self.trainers[0]
        with autocast(first.device, first.config.precision), convolving(first.config.fused):
            logits = self.net(images)
            losses = [
                trainer.loss(own, batches[id(trainer)])
                for trainer, own in zip(self.trainers, logits, strict=True)
                if id(trainer) in batches
            ]
        torch.stack(losses).sum().backward()
        self.net.hand_out_gradients()
        for trainer, loss in zip(moving, losses, strict=True):
            trainer.move()
            trainer.took(loss.detach().float())
        self._between(moving)

    def _between(self, moving: Sequence[Trainer]) -> None:
        """Save places and end epochs; whoever stops, all stop."""
        stop = [trainer.keep_place() for trainer in moving]
        if any(stop):
            for trainer, told in zip(moving, stop, strict=True):
                if not told:
                    trainer.keep_place(now=True)
            raise Interrupted
        for trainer in moving:
            if trainer.place.step == trainer.steps_per_epoch:
                trainer.end_epoch()
                trainer.begin_epoch()
