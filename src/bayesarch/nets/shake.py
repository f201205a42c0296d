"""Shake-Shake 26, as PGNAS takes it for its super-networks M and MI: a plain network, gated from outside."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.nets.skeletons import Shape

__all__ = ["ShakeShake", "shake_shake"]


class Shortcut(nn.Module):
    """Two paths of every stride-th pixel, the second shifted by one, a 1 x 1 convolution to half the channels each."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.first = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.second = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape (B, outputs, ceil(H / stride), ceil(W / stride))."""
        shifted = F.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))
        s = self.stride
        out: Tensor = self.norm(torch.cat([self.first(x[:, :, ::s, ::s]), self.second(shifted[:, :, ::s, ::s])], 1))
        return out


class Branch(nn.Module):
    """ReLU, 3 x 3 convolution, norm, ReLU, 3 x 3 convolution, norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape (B, outputs, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(F.relu(x))))))
        return out


class Block(nn.Module):
    """Two branches, mixed, and a skip."""

    def __init__(self, inputs: int, outputs: int, stride: int, shake: bool) -> None:
        super().__init__()
        self.left, self.right = Branch(inputs, outputs, stride), Branch(inputs, outputs, stride)
        self.skip = nn.Identity() if (inputs, stride) == (outputs, 1) else Shortcut(inputs, outputs, stride)
        self.shake = shake

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the block's shape."""
        a, b = self.left(x), self.right(x)
        if not (self.shake and self.training):
            out: Tensor = self.skip(x) + (a + b) / 2
            return out
        # another mixture backward than forward: the value of the first, the gradient of the second
        forward, backward = (torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype) for _ in range(2))
        mixed = backward * a + (1 - backward) * b
        shaken: Tensor = self.skip(x) + mixed + (forward * a + (1 - forward) * b - mixed).detach()
        return shaken


class ShakeShake(nn.Module):
    """The network.

    Args:
        width: w, channels of the first stage.
        blocks: blocks in each of three stages.
        shake: whether branches are mixed at random while training.
        input_shape: (channels, height, width) of an image.
        classes: number of classes.
    """

    def __init__(self, *, width: int, blocks: int, shake: bool, input_shape: Shape, classes: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        stages, inputs = [], 16
        for stage in range(3):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                stages.append(Block(inputs, width << stage, stride, shake))
                inputs = width << stage
        self.blocks = nn.ModuleList(stages)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, K) for images of shape (B, C, H, W)."""
        x = self.norm(self.stem(images))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(F.relu(x).mean((2, 3)))
        return logits


def shake_shake(sizes: Any, input_shape: Shape, classes: int) -> nn.Module:
    """Return the network of a space's sizes."""
    return ShakeShake(
        width=sizes.width, blocks=sizes.blocks, shake=sizes.shake, input_shape=input_shape, classes=classes
    )
