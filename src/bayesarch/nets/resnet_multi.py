"""ResNet with several kernel sizes side by side, PGNAS's super-network R-50: a plain network that names its sources."""

from typing import Any

import torch
from torch import Tensor, nn

from bayesarch.nets.densenet import image_stem
from bayesarch.nets.skeletons import Shape

__all__ = ["ResNetMulti", "resnet_multi"]

KERNELS = ((1, 1), (3, 1), (3, 2), (5, 2))
"""(size, dilation) of the branches: they see 1, 3, 5 and 9 pixels."""


class Bottleneck(nn.Module):
    """1 x 1 convolution, four kernel sizes with a quarter of the outputs each, 1 x 1 convolution, and a skip."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.branches = nn.ModuleList(
            nn.Conv2d(width, width // 4, k, stride=stride, padding=d * (k // 2), dilation=d, bias=False)
            for k, d in KERNELS
        )
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3, self.norm3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.skip = None
        if (inputs, stride) != (4 * width, 1):
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride=stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape (B, 4 width, ceil(H / stride), ceil(W / stride))."""
        inner = torch.relu(self.norm1(self.conv1(x)))
        inner = torch.relu(self.norm2(torch.cat([branch(inner) for branch in self.branches], 1)))
        out: Tensor = torch.relu(self.norm3(self.conv3(inner)) + (x if self.skip is None else self.skip(x)))
        return out


class ResNetMulti(nn.Module):
    """The network. Stem and head are not gated, which is our reading: no code was released.

    Args:
        width: channels inside the blocks of the first stage.
        blocks: blocks in each stage.
        small_images: whether the stem keeps the resolution.
        input_shape: (channels, height, width) of an image.
        classes: number of classes.
    """

    def __init__(
        self, *, width: int, blocks: tuple[int, ...], small_images: bool, input_shape: Shape, classes: int
    ) -> None:
        super().__init__()
        self.stem = image_stem(input_shape[0], width, small_images=small_images)
        stages, channels = [], width
        for stage, size in enumerate(blocks):
            for block in range(size):
                stages.append(Bottleneck(channels, width << stage, 2 if stage and not block else 1))
                channels = 4 * (width << stage)
        self.blocks = nn.ModuleList(stages)
        self.head = nn.Linear(channels, classes)

    def segments(self) -> dict[str, tuple[int, ...]]:
        """Return the layers to gate and how many input channels come from each of their sources."""
        made: dict[str, tuple[int, ...]] = {}
        for name, module in self.blocks.named_modules(prefix="blocks"):
            if isinstance(module, nn.Conv2d):
                quarters = name.endswith("conv3")
                made[name] = (module.in_channels // 4,) * 4 if quarters else (module.in_channels,)
        return made

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, K) for images of shape (B, C, H, W)."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def resnet_multi(sizes: Any, input_shape: Shape, classes: int) -> nn.Module:
    """Return the network of a space's sizes."""
    return ResNetMulti(
        width=sizes.width,
        blocks=sizes.blocks,
        small_images=sizes.small_images,
        input_shape=input_shape,
        classes=classes,
    )
