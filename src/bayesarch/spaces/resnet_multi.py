"""ResNet-50 with four kernel sizes side by side in place of each 3 x 3 convolution, each a group of gates of its own.

References: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; super-network R-50 of Zhou et al.,
"Posterior-Guided Neural Architecture Search", AAAI 2020, after its text: branches of 1 x 1, 3 x 3, 5 x 5 and 9 x 9 with
a quarter of the outputs each, the two large ones dilated. That has 28.1 M parameters; the paper says 44.0 M, which no
reading of its text gives, and no code was released.
"""

from pydantic import Field

from bayesarch.config import Config
from bayesarch.spaces.space import Space

__all__ = ["RESNET50_MULTI", "ResNetMultiSizes"]


class ResNetMultiSizes(Config):
    """Sizes of the network."""

    width: int = Field(default=64, ge=4, multiple_of=4)
    """Channels inside the blocks of the first stage, doubled in each later one."""
    blocks: tuple[int, ...] = Field(default=(3, 4, 6, 3), min_length=1)
    """Bottleneck blocks in each stage."""
    small_images: bool = False
    """A 3 x 3 stem at full resolution instead of 7 x 7 at stride 2 and a pooling."""


RESNET50_MULTI = Space(name="resnet50-multi", choices=(), skeleton="resnet50-multi", sizes=ResNetMultiSizes)
"""The space, open until its sizes and the data are known."""
