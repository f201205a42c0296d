"""The fixed cells of ENAS's micro search, stacked as its final network: a plain network, gated from outside.

The published training has an auxiliary head whose variables its optimiser never sees; there is none here.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.nets.shake import Shortcut
from bayesarch.nets.skeletons import Shape

__all__ = ["ENASMicro", "enas_micro"]

Node = tuple[int, int, int, int]
"""(first input, its operation, second input, its operation); inputs 0 and 1 are the cell's own."""

NORMAL: tuple[Node, ...] = ((0, 2, 0, 0), (0, 4, 0, 1), (0, 4, 1, 1), (1, 0, 0, 1), (0, 2, 1, 1))
REDUCTION: tuple[Node, ...] = ((1, 0, 1, 0), (0, 3, 0, 2), (1, 1, 3, 1), (1, 0, 0, 4), (0, 3, 1, 1))
SEPARABLE, POOLS, COPY = {0: 3, 1: 5}, {2: nn.AvgPool2d, 3: nn.MaxPool2d}, 4


def _pointwise(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def _separable(inputs: int, outputs: int, size: int, stride: int) -> nn.Module:
    """Return two of: ReLU, depthwise and pointwise convolution, norm."""
    parts: list[nn.Module] = []
    for c, s in ((inputs, stride), (outputs, 1)):
        parts += [
            nn.ReLU(),
            nn.Conv2d(c, c, size, stride=s, padding=size // 2, groups=c, bias=False),
            nn.Conv2d(c, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
    return nn.Sequential(*parts)


def _operation(kind: int, channels: int, stride: int) -> nn.Module:
    if kind in SEPARABLE:
        return _separable(channels, channels, SEPARABLE[kind], stride)
    if kind == COPY:
        return nn.Identity() if stride == 1 else Shortcut(channels, channels, stride)
    extra = {"count_include_pad": False} if POOLS[kind] is nn.AvgPool2d else {}
    return POOLS[kind](3, stride=stride, padding=1, **extra)


class Cell(nn.Module):
    """One cell on the outputs of the two before it.

    Args:
        inputs: (channels, how often halved) of each of the two.
        channels: what every node has.
        nodes: wiring.
        stride: of operations on the cell's own inputs.
        drop: share of operations switched off per example while training.
    """

    def __init__(
        self, inputs: tuple[tuple[int, int], ...], channels: int, nodes: tuple[Node, ...], stride: int, drop: float
    ) -> None:
        super().__init__()
        (older, fine), (newer, coarse) = inputs
        self.drop = drop
        if fine != coarse:
            self.first: nn.Module = nn.Sequential(nn.ReLU(), Shortcut(older, channels, 2))
        else:
            self.first = nn.Identity() if older == channels else _pointwise(older, channels)
        second = [] if newer == channels else [_pointwise(newer, channels)]
        self.second = nn.Sequential(*second, _pointwise(channels, channels))
        strides = [stride, stride, *[1] * len(nodes)]
        self.nodes = nodes
        self.operations = nn.ModuleList(
            _operation(kind, channels, strides[source]) for a, f, b, g in nodes for source, kind in ((a, f), (b, g))
        )
        used = {source for node in nodes for source in node[::2]}
        self.loose = [i for i in range(len(nodes) + 2) if i not in used]
        halve = [i for i in self.loose if i < 2 and stride == 2]
        self.matching = nn.ModuleDict({str(i): Shortcut(channels, channels, 2) for i in halve})
        self.outputs = channels * len(self.loose)

    def forward(self, older: Tensor, newer: Tensor) -> Tensor:
        """Return the nodes that no other reads, side by side, shape (B, outputs, H, W)."""
        values = [self.first(older), self.second(newer)]
        for position, (a, f, b, g) in enumerate(self.nodes):
            left = self._dropped(self.operations[2 * position](values[a]), f)
            right = self._dropped(self.operations[2 * position + 1](values[b]), g)
            values.append(left + right)
        out = [self.matching[str(i)](values[i]) if str(i) in self.matching else values[i] for i in self.loose]
        return torch.cat(out, 1)

    def _dropped(self, x: Tensor, kind: int) -> Tensor:
        if not (self.training and self.drop > 0) or kind == COPY:
            return x
        keep = 1 - self.drop
        return x * (torch.rand(x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype) < keep) / keep


class ENASMicro(nn.Module):
    """The network.

    Args:
        filters: F, channels of the first cells.
        layers: normal cells.
        drop_path: share of operations switched off in the last cell; rises linearly over the cells.
        input_shape: (channels, height, width) of an image.
        classes: number of classes.
    """

    def __init__(self, *, filters: int, layers: int, drop_path: float, input_shape: Shape, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape[0], 3 * filters, 3, padding=1, bias=False), nn.BatchNorm2d(3 * filters)
        )
        reductions = (layers // 3, 2 * layers // 3 + 1)
        before, halved, channels, cells = [(3 * filters, 0)] * 2, 0, filters, []
        for layer in range(layers + 2):
            reduce = layer in reductions
            if reduce:
                channels, halved = 2 * channels, halved + 1
            cell = Cell(
                tuple(before), channels, REDUCTION if reduce else NORMAL, 2 if reduce else 1,
                drop_path * (layer + 1) / (layers + 2),
            )  # fmt: skip
            cells.append(cell)
            before = [before[1], (cell.outputs, halved)]
        self.cells = nn.ModuleList(cells)
        self.head = nn.Linear(before[1][0], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, K) for images of shape (B, C, H, W)."""
        older = newer = self.stem(images)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        logits: Tensor = self.head(F.relu(newer).mean((2, 3)))
        return logits


def enas_micro(sizes: Any, input_shape: Shape, classes: int) -> nn.Module:
    """Return the network of a space's sizes."""
    return ENASMicro(
        filters=sizes.filters, layers=sizes.layers, drop_path=sizes.drop_path, input_shape=input_shape, classes=classes
    )
