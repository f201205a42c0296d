"""Well-known networks as plain modules, to compress and to compare: LeNets, ResNet-18, VGG-16, a MobileNet.

References: LeCun et al., 1998 (LeNet-300-100; LeNet-5 in the form of Caffe's example, 20-50-800-500); He et al., CVPR
2016 (ResNet-18, with the stem for small images); Simonyan and Zisserman, ICLR 2015 (VGG-16, with norms and one linear
layer, as is usual for small images); Howard et al., 2017 (depthwise separable blocks).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bayesarch.nets.skeletons import Shape

__all__ = ["CLASSICS", "VGG16", "LeNet5", "MobileNet", "Perceptron", "ResNet18"]


class Perceptron(nn.Sequential):
    """Linear layers with ReLU between.

    Args:
        input_shape: (channels, height, width) of an image; all pixels are features.
        classes: number of classes.
        hidden: widths.
    """

    def __init__(self, input_shape: Shape, classes: int, hidden: Sequence[int] = (300, 100)) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        width = input_shape[0] * input_shape[1] * input_shape[2]
        for wide in hidden:
            layers += [nn.Linear(width, wide), nn.ReLU()]
            width = wide
        super().__init__(*layers, nn.Linear(width, classes))


class LeNet5(nn.Module):
    """LeNet-5 as in Caffe's example: two convolutions of 5 x 5 without padding, two linear layers; 20-50-800-500.

    Args:
        input_shape: (channels, height, width) of an image, at least 16 x 16.
        classes: number of classes.
    """

    def __init__(self, input_shape: Shape, classes: int) -> None:
        super().__init__()
        sides = [((side - 4) // 2 - 4) // 2 for side in input_shape[1:]]
        self.features = nn.Sequential(
            nn.Conv2d(input_shape[0], 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Linear(50 * sides[0] * sides[1], 500), nn.ReLU(), nn.Linear(500, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (B, K) for images of shape (B, C, H, W)."""
        logits: Tensor = self.head(self.features(x))
        return logits


def _conv_norm(inputs: int, outputs: int, side: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class _Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv_norm(inputs, outputs, 3, stride), nn.ReLU(), *_conv_norm(outputs, outputs))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_norm(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 for small images: a 3 x 3 stem, four stages of two blocks.

    Args:
        input_shape: (channels, height, width) of an image.
        classes: number of classes.
        width: channels of the first stage (published: 64).
    """

    def __init__(self, input_shape: Shape, classes: int, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm(input_shape[0], width), nn.ReLU())
        blocks, inputs = [], width
        for stage in range(4):
            outputs = width * 2**stage
            blocks += [_Block(inputs, outputs, 1 if stage == 0 else 2), _Block(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (B, K) for images of shape (B, C, H, W)."""
        logits: Tensor = self.head(self.blocks(self.stem(x)))
        return logits


class VGG16(nn.Sequential):
    """VGG-16 for small images: thirteen convolutions with norms, poolings between, one linear layer.

    Args:
        input_shape: (channels, height, width) of an image, at least 16 x 16.
        classes: number of classes.
        width: channels of the first stage (published: 64).
    """

    STAGES = (2, 2, 3, 3, 3)

    def __init__(self, input_shape: Shape, classes: int, width: int = 64) -> None:
        layers: list[nn.Module] = []
        inputs, side = input_shape[0], min(input_shape[1:])
        for stage, repeats in enumerate(self.STAGES):
            outputs = width * min(2**stage, 8)
            for _ in range(repeats):
                layers += [*_conv_norm(inputs, outputs), nn.ReLU()]
                inputs = outputs
            if side >= 2:
                layers, side = [*layers, nn.MaxPool2d(2)], side // 2
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class MobileNet(nn.Sequential):
    """Depthwise separable blocks, for small images.

    Args:
        input_shape: (channels, height, width) of an image.
        classes: number of classes.
        width: channels of the stem (published: 32).
    """

    BLOCKS = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), (16, 1))
    """(channels over the stem's, stride) of each block."""

    def __init__(self, input_shape: Shape, classes: int, width: int = 32) -> None:
        layers: list[nn.Module] = [*_conv_norm(input_shape[0], width), nn.ReLU()]
        inputs = width
        for factor, stride in self.BLOCKS:
            outputs = factor * width
            layers += [*_conv_norm(inputs, inputs, 3, stride, groups=inputs), nn.ReLU()]
            layers += [*_conv_norm(inputs, outputs, 1), nn.ReLU()]
            inputs = outputs
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


CLASSICS: dict[str, Callable[..., nn.Module]] = {
    "lenet-300-100": lambda input_shape, classes: Perceptron(input_shape, classes, (300, 100)),
    "lenet-500-300": lambda input_shape, classes: Perceptron(input_shape, classes, (500, 300)),
    "lenet-5": LeNet5,
    "resnet18": ResNet18,
    "vgg16": VGG16,
    "mobilenet": MobileNet,
}
"""(input_shape, classes, ...) -> a network, by name."""
