"""What a way of making a network smaller does to the training between two cuts."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["Pressure"]


class Pressure:
    """Nothing at all; a way of its own overrides what it needs."""

    def around(self, examples: int, stream: torch.Generator) -> AbstractContextManager[None]:
        """Return the block in which a pass forward of so many examples is made."""
        return nullcontext()

    def cost(self) -> Tensor | float:
        """Return what is added to the mean loss, 0-dim."""
        return 0.0

    def step(self, amount: float) -> None:
        """Take its own part of a step, after the weights have taken theirs: so much on the mean loss."""

    def learned(self) -> Tensor | None:
        """Return drop logits that the next cut is told, shape (U,), on the CPU; None: it looks at the network alone."""
        return None

    def state(self) -> dict[str, Tensor]:
        """Return what has to be remembered between two steps, by name."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned."""

    def close(self) -> None:
        """Leave the network as it would be without it."""
