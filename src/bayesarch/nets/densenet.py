"""DenseNet with bottlenecks, as PGNAS takes it for its super-network D-121: a plain network that names its sources."""

from typing import Any

import torch
from torch import Tensor, nn

from bayesarch.nets.skeletons import Shape

__all__ = ["DenseNet", "densenet", "image_stem"]


def image_stem(inputs: int, outputs: int, *, small_images: bool) -> nn.Sequential:
    """Return convolution, norm, ReLU: 7 x 7 at stride 2 with a pooling behind, or 3 x 3 for small images."""
    size, stride = (3, 1) if small_images else (7, 2)
    parts = [
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]
    return nn.Sequential(*parts, *([] if small_images else [nn.MaxPool2d(3, stride=2, padding=1)]))


class Layer(nn.Module):
    """Norm, ReLU, 1 x 1 convolution, norm, ReLU, 3 x 3 convolution; its output is set beside its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and `growth` new channels, shape (B, inputs + growth, H, W)."""
        new = self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


class Transition(nn.Module):
    """Norm, ReLU, 1 x 1 convolution to half the channels, mean pooling."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, inputs // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of half the side and half the channels."""
        out: Tensor = self.pool(self.conv(torch.relu(self.norm(x))))
        return out


class DenseNet(nn.Module):
    """The network. Stem and head are not gated; neither are they in the published one.

    Args:
        growth: channels that a layer adds.
        blocks: layers in each block.
        small_images: whether the stem keeps the resolution.
        input_shape: (channels, height, width) of an image.
        classes: number of classes.
    """

    def __init__(
        self, *, growth: int, blocks: tuple[int, ...], small_images: bool, input_shape: Shape, classes: int
    ) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = image_stem(input_shape[0], channels, small_images=small_images)
        self._segments: dict[str, tuple[int, ...]] = {}
        layers: list[nn.Module] = []
        for block, size in enumerate(blocks):
            sources = [channels]
            for _ in range(size):
                self._segments[f"layers.{len(layers)}.conv1"] = tuple(sources)
                self._segments[f"layers.{len(layers)}.conv2"] = (4 * growth,)
                layers.append(Layer(sum(sources), growth))
                sources.append(growth)
            channels = sum(sources)
            if block + 1 < len(blocks):
                self._segments[f"layers.{len(layers)}.conv"] = tuple(sources)
                layers.append(Transition(channels))
                channels //= 2
        self.layers = nn.ModuleList(layers)
        self.norm, self.head = nn.BatchNorm2d(channels), nn.Linear(channels, classes)

    def segments(self) -> dict[str, tuple[int, ...]]:
        """Return the layers to gate and how many input channels come from each of their sources."""
        return dict(self._segments)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, K) for images of shape (B, C, H, W)."""
        x = self.stem(images)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(torch.relu(self.norm(x)).mean((2, 3)))
        return logits


def densenet(sizes: Any, input_shape: Shape, classes: int) -> nn.Module:
    """Return the network of a space's sizes."""
    return DenseNet(
        growth=sizes.growth,
        blocks=sizes.blocks,
        small_images=sizes.small_images,
        input_shape=input_shape,
        classes=classes,
    )
