"""What networks are fed with."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Batch", "scaled"]


class Batch(NamedTuple):
    """Images (B, C, H, W) as float32, channels last, and labels (B,) as int64.

    `weights` (B,): how much each example counts in a loss, 1 on average; None: all the same.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor | None = None


def scaled(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return pixels * scale + shift as images (B, C, H, W), float32, channels last.

    Args:
        pixels: shape (B, H, W, C), contiguous.
        scale: per channel, shape (C,).
        shift: likewise.
    """
    # a row at a time: the channels alone would be too short a run for the processor
    images, width = pixels.flatten(2).to(torch.float32, copy=True), pixels.shape[2]
    torch.addcmul(shift.repeat(width), images, scale.repeat(width), out=images)
    return images.view(pixels.shape).permute(0, 3, 1, 2)
