"""Drop path: whole operations switched off for single examples while a plain network is trained."""

import torch
from torch import Tensor

__all__ = ["PathDrop"]


class PathDrop:
    """Zeroes all of an operation's output for a share `p` of examples, and scales the others by 1 / (1 - p).

    Reference: Larsson et al., "FractalNet", ICLR 2017, as DARTS uses it: not on what only passes.

    Args:
        p: share, in [0, 1).
        generator: the stream to draw from, on the network's device.
    """

    def __init__(self, p: float, *, generator: torch.Generator) -> None:
        self.p, self.generator = p, generator

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x` (B, ...) with some examples at 0."""
        keep = torch.rand(len(x), generator=self.generator, device=x.device) >= self.p
        return x * (keep.to(x.dtype) / (1.0 - self.p)).view(-1, *[1] * (x.ndim - 1))
