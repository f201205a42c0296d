"""Supernets and steps as published code writes them, to stand beside ours in `speed.py`.

Written from the descriptions of the papers and `shared/specs/speed.md`, not from their code: every option of every edge
is a module of its own in NCHW, `none` is computed and multiplied by 0, options are weighted one by one and summed; a
step takes the gradient of everything in both passes (the one for the architecture throws those of the weights away).
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.nets import Supernet
from bayesarch.nets.cells import MixedCell
from bayesarch.nets.operations import operation_module
from bayesarch.nets.two_input import TwoInputCell

__all__ = ["PublishedImages", "PublishedNet", "published_step"]


class PublishedImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images cropped, flipped, scaled and cut out one by one on PIL, as published searches read CIFAR.

    For a loader of torch's own: the transforms are those of the usual library, one after another, each with its own
    draws from torch's stream, and the hole is a mask that the image is multiplied by.

    Args:
        images: shape (n, H, W, 3), uint8.
        labels: shape (n,).
        mean: per channel, in units of the largest value.
        std: likewise.
        pad: pixels of the crop.
        hole: side of what is cut out.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, *, mean: Any, std: Any, pad: int = 4, hole: int = 16
    ) -> None:
        self.images, self.labels = images, labels
        self.mean, self.std, self.pad, self.hole = mean, std, pad, hole

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = ImageOps.expand(Image.fromarray(self.images[index]), border=self.pad, fill=0)
        width, height = (side - 2 * self.pad for side in image.size)
        top, left = (int(torch.randint(0, 2 * self.pad + 1, size=(1,)).item()) for _ in range(2))
        image = image.crop((left, top, left + width, top + height))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        mean, std = (torch.as_tensor(values, dtype=x.dtype).view(-1, 1, 1) for values in (self.mean, self.std))
        x = x.sub_(mean).div_(std)
        mask, half = np.ones((height, width), np.float32), self.hole // 2
        row, column = np.random.randint(height), np.random.randint(width)  # noqa: NPY002 - as published
        mask[max(row - half, 0) : row + half, max(column - half, 0) : column + half] = 0.0
        return x * torch.from_numpy(mask).expand_as(x), int(self.labels[index])


class Zero(nn.Module):
    """Nothing, computed."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros of the output's size."""
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class MixedEdges(nn.Module):
    """All edges of one cell, every option a module."""

    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.space, self.two = cell.space, isinstance(cell, TwoInputCell)
        self.order, self.edges = cell.order, []
        self.ops = nn.ModuleDict()
        for position, choice in enumerate(self.space.choices):
            if choice.cell != cell.cell:
                continue
            stride = cell.stride if self.two and choice.source in self.space.inputs else 1
            columns = self.space.columns(position)
            for g, name in zip(columns, choice.options, strict=True):
                module: Any = operation_module(name, cell.channels, stride, affine=False)
                if self.two and cell.style.norm_free and "pool" in name:
                    module = nn.Sequential(module, nn.BatchNorm2d(cell.channels, affine=False))
                self.ops[str(g)] = Zero(stride) if module is None else module
                self._weights_of(cell, g, self.ops[str(g)])
            self.edges.append((choice.source, choice.target, list(columns)))
        if self.two:
            self.inputs = nn.ModuleList([copy.deepcopy(cell.adapt_older), copy.deepcopy(cell.adapt_newer)])
            self.names, self.inner = (cell.style.older, cell.style.newer), cell.inner
        else:
            self.names, self.inner = tuple(self.space.inputs), cell.outputs

    def _weights_of(self, cell: Any, g: int, module: nn.Module) -> None:
        """Copy our weights, so that both networks compute the same."""
        mine, theirs = cell.option_parameters(g), list(module.parameters())
        with torch.no_grad():
            for a, b in zip(mine, theirs, strict=True):
                b.copy_(a)

    def forward(self, *before: Tensor, gates: Tensor) -> Tensor:
        """Return the cell's output; gates (G,)."""
        given = [adapt(x) for adapt, x in zip(self.inputs, before, strict=True)] if self.two else before
        features = dict(zip(self.names, given, strict=True))
        for node in self.order:
            if node not in features:
                features[node] = sum(
                    sum(gates[g] * self.ops[str(g)](features[source]) for g in columns)
                    for source, target, columns in self.edges
                    if target == node
                )
        if self.two:
            return torch.cat([features[node] for node in self.inner], 1)
        return features[self.inner[0]]


class PublishedNet(nn.Module):
    """The network of one of our supernets, the published way, with the same weights."""

    def __init__(self, net: Supernet) -> None:
        super().__init__()
        self.stem, self.head, self.depth = copy.deepcopy(net.stem), copy.deepcopy(net.head), net.depth
        self.layers = nn.ModuleList(
            MixedEdges(layer) if isinstance(layer, MixedCell | TwoInputCell) else copy.deepcopy(layer)
            for layer in net.layers
        )
        self.to(next(net.parameters())).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def forward(self, images: Tensor, gates: Tensor) -> Tensor:
        """Return logits; gates (G,)."""
        before = [self.stem(images)] * self.depth
        for layer in self.layers:
            out = layer(*before, gates=gates) if isinstance(layer, MixedEdges) else layer(*before)
            before = [*before[1:], out]
        logits: Tensor = self.head(before[-1])
        return logits


def published_step(
    net: PublishedNet, rows: list[list[int]], batches: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Callable[[], None]:
    """Return one first-order bilevel step: Adam on softmax logits, then SGD on the weights, all gradients in both.

    Args:
        net: the network.
        rows: flat options of each choice.
        batches: (images, labels) for the architecture and for the weights.
    """
    n = sum(map(len, rows))
    alphas = nn.Parameter(torch.zeros(n, device=batches[0][0].device))
    beliefs = torch.optim.Adam([alphas], lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    weights = torch.optim.SGD(net.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        gates = torch.cat([alphas[columns].softmax(0) for columns in rows])
        return F.cross_entropy(net(batch[0], gates), batch[1])

    def step() -> None:
        beliefs.zero_grad()
        loss(batches[0]).backward()
        beliefs.step()
        weights.zero_grad()
        loss(batches[1]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        weights.step()

    return step
