"""Networks for small photographs at a quarter of the published width, for `bayesarch compress --module`."""

from torch import nn

from bayesarch.nets.classics import VGG16, ResNet18
from bayesarch.nets.densenet import DenseNet

__all__ = ["densenet", "resnet18", "vgg16"]


def resnet18(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return ResNet-18, its stem for small images, 16 channels in the first stage."""
    return ResNet18(input_shape, classes, width=16)


def vgg16(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return VGG-16 with norms, 16 channels in the first stage."""
    return VGG16(input_shape, classes, width=16)


def densenet(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a DenseNet with bottlenecks of three blocks of three layers, 8 channels a layer."""
    return DenseNet(growth=8, blocks=(3, 3, 3), small_images=True, input_shape=input_shape, classes=classes)
