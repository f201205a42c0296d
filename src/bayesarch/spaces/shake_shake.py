"""Shake-Shake 26: two residual branches a block, every convolution's input channels gated.

References: Gastaldi, "Shake-Shake regularization", 2017; super-networks M (width 96, 26.193 M parameters) and MI (width
160, 72.695 M) of Zhou et al., "Posterior-Guided Neural Architecture Search", AAAI 2020. The paper calls MI "twice the
channels", which is width 192 and not the size it reports.
"""

from pydantic import Field

from bayesarch.config import Config
from bayesarch.spaces.space import Space

__all__ = ["SHAKE_SHAKE", "ShakeShakeSizes"]


class ShakeShakeSizes(Config):
    """Sizes of the network."""

    width: int = Field(default=96, ge=2, multiple_of=2)
    """w: channels of the first stage, doubled in each later one; 96 is M, 160 is MI."""
    blocks: int = Field(default=4, ge=1)
    """Blocks in each of the three stages."""
    shake: bool = True
    """Whether the branches are mixed by random weights, other ones forward and backward, while training; 1/2 after."""


SHAKE_SHAKE = Space(name="shake-shake", choices=(), skeleton="shake-shake", sizes=ShakeShakeSizes)
"""The space, open until its sizes and the data are known."""
