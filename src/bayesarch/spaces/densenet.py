"""DenseNet-121: one group of gates per convolution and source, so that whole connections may vanish.

References: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017; super-network D-121 of Zhou et al.,
"Posterior-Guided Neural Architecture Search", AAAI 2020: 119 gated convolutions, 638 groups, 6,860,800 gated weights.
"""

from pydantic import Field

from bayesarch.config import Config
from bayesarch.spaces.space import Space

__all__ = ["DENSENET121", "DenseNetSizes"]


class DenseNetSizes(Config):
    """Sizes of the network."""

    growth: int = Field(default=32, ge=1)
    """Channels that a layer adds; the stem has twice as many, a bottleneck four times."""
    blocks: tuple[int, ...] = Field(default=(6, 12, 24, 16), min_length=1)
    """Layers in each block."""
    small_images: bool = False
    """A 3 x 3 stem at full resolution instead of 7 x 7 at stride 2 and a pooling."""


DENSENET121 = Space(name="densenet121", choices=(), skeleton="densenet121", sizes=DenseNetSizes)
"""The space, open until its sizes and the data are known."""
