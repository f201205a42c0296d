"""Macro networks that cells sit in. A space names its skeleton; a skeleton knows nothing of spaces.

A skeleton is a function (sizes, input_shape, classes, make_cell) -> Trunk, and the cells that fit it. To add one:
write it, add a line to `SKELETONS` in `families.py`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bayesarch.nets.by_kernels import by_kernels

__all__ = ["MakeCell", "Residual", "Shape", "Trunk", "read_out", "residual_stages", "walk"]

Shape = tuple[int, int, int]
"""Channels, height and width of one image."""

MakeCell = Callable[[Any, str], nn.Module]
"""(geometry, cell type) -> a cell. What the geometry is is between a skeleton and its cells."""


@dataclass
class Trunk:
    """A network in three parts; `kinds[i]` is the cell type of `layers[i]`, or None for a layer that is no cell.

    Every layer takes the last `depth` outputs, the oldest first. A stem gives one output, which stands for all of them
    at the beginning, or a tuple of `depth`.
    """

    stem: nn.Module
    layers: list[nn.Module]
    kinds: list[str | None]
    head: nn.Module
    depth: int = 1


def walk(first: Any, layers: Iterable[nn.Module], depth: int, call: Callable[..., Tensor]) -> list[Tensor]:
    """Return the outputs of all layers in order, `call(layer, *last depth outputs)` each.

    Args:
        first: what the stem gave.
        layers: the layers.
        depth: how many outputs each layer takes.
        call: computes one layer.
    """
    before = list(first) if isinstance(first, tuple) else [first] * depth
    outputs = []
    for layer in layers:
        outputs.append(call(layer, *before))
        before = [*before[1:], outputs[-1]]
    return outputs


class Residual(nn.Module):
    """The benchmark's reduction: two ReLU-conv3x3-BN, the first at stride 2, plus mean pooling and a 1 x 1 convolution.

    Odd sides round up on both branches, so that any image size works.

    Args:
        inputs: channels in.
        outputs: channels out.
        series: whether there is only one axis: kernels are 1 x 3 and only the length is halved.
    """

    def __init__(self, inputs: int, outputs: int, *, series: bool = False) -> None:
        super().__init__()
        size, padding, two = ((1, 3), (0, 1), (1, 2)) if series else ((3, 3), (1, 1), (2, 2))
        self.main = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, size, stride=two, padding=padding, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, size, padding=padding, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(two, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features of half the side, shape (B, outputs, ceil(H/2), ceil(W/2))."""
        out: Tensor = self.main(x) + self.shortcut(x)
        return out

    def by_kernels(self, x: Tensor) -> Tensor:
        """Return the same while it is trained on a CPU in a supernet, without a second derivative."""
        main, _ = by_kernels(list(self.main), x)
        out: Tensor = main + self.shortcut(x)
        return out


def residual_stages(
    sizes: Any, input_shape: Shape, classes: int, make_cell: MakeCell, *, series: bool = False
) -> Trunk:
    """Return the NAS-Bench-201 network: conv3x3-BN, stages of cells, residual reductions between, BN-ReLU-mean-linear.

    Args:
        sizes: `channels`, `cells`, `stages` and `stem_reductions`.
        input_shape: (channels, height, width) of an image.
        classes: number of classes.
        make_cell: makes the cells.
        series: whether there is only one axis, so that kernels are 1 x 3 and the length alone is halved.
    """
    c = sizes.channels
    size, padding, two = ((1, 3), (0, 1), (1, 2)) if series else ((3, 3), (1, 1), (2, 2))
    halvings: list[nn.Module] = []
    planes = input_shape[0]
    for _ in range(sizes.stem_reductions):
        halvings += [nn.Conv2d(planes, c, size, stride=two, padding=padding, bias=False), nn.BatchNorm2d(c), nn.ReLU()]
        planes = c
    stem = nn.Sequential(*halvings, nn.Conv2d(planes, c, size, padding=padding, bias=False), nn.BatchNorm2d(c))
    layers: list[nn.Module] = []
    kinds: list[str | None] = []
    for stage in range(sizes.stages):
        if stage:
            layers.append(Residual(c, 2 * c, series=series))
            kinds.append(None)
            c *= 2
        layers.extend(make_cell(c, "cell") for _ in range(sizes.cells))
        kinds.extend(["cell"] * sizes.cells)
    head = nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes))
    return Trunk(stem, layers, kinds, head)


def read_out(sizes: Any, input_shape: Shape, classes: int, make_cell: MakeCell) -> Trunk:
    """Return one cell on the flattened input and a linear read-out of its output; `sizes` is not used."""
    features = input_shape[0] * input_shape[1] * input_shape[2]
    return Trunk(nn.Flatten(), [make_cell(features, "cell")], ["cell"], nn.Linear(features, classes))
