"""Training of a network that is being made smaller, under what its rule makes it pay."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Self

import torch
from torch import Tensor, nn

from bayesarch.data import Batch
from bayesarch.engine.pressure import Pressure
from bayesarch.engine.trainer import Trainer

__all__ = ["PenalisedTrainer"]


class PenalisedTrainer(Trainer):
    """A training under a pressure, in which weights on inputs that have left stay zero.

    With momentum m a step's displacement is lr / (1 - m) times a lasting gradient, and so a pressure's step is made.
    """

    pressure: Pressure | None = None
    share = 1.0
    """Part of the steps, the first ones, that are under it; what is left then settles without."""
    held: Sequence[tuple[nn.Parameter, Tensor]] = ()

    def run(self) -> Self:
        """Go on from the current place to the end."""
        try:
            return super().run()
        finally:
            if self.pressure is not None:
                self.pressure.close()

    def _pressed(self) -> Pressure | None:
        done = self.place.epoch * self.steps_per_epoch + self.place.step
        return self.pressure if done < self.share * self.config.epochs * self.steps_per_epoch else None

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pressure = self._pressed()
        with nullcontext() if pressure is None else pressure.around(len(batch.labels), self.streams["masks"]):
            total, loss = super()._losses(batch)
        return total if pressure is None else total + pressure.cost(), loss

    def move(self) -> None:
        """Take the weights' step, and the pressure's."""
        super().move()
        pressure = self._pressed()
        if pressure is not None:
            pressure.step(self._lr() / (1.0 - self.config.momentum))
        with torch.no_grad():
            for p, stays in self.held:
                p.mul_(stays)

    def own_state(self) -> dict[str, Tensor]:
        """Return what the pressure has to remember."""
        return {} if self.pressure is None else self.pressure.state()

    def restore_own(self, state: dict[str, Tensor]) -> None:
        """Put it back."""
        if self.pressure is not None:
            self.pressure.restore(state)
