"""What networks are fed with."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Batch"]


class Batch(NamedTuple):
    """Images (B, C, H, W) as float32, channels last, and labels (B,) as int64.

    `weights` (B,): how much each example counts in a loss, 1 on average; None: all the same.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor | None = None
