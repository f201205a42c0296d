"""Perceptrons for plain tables: the mixed one of a supernet, and the plain one that was found.

The mixed one has as many layers as any option asks for, as wide as any asks for. A hidden layer is linear, norm,
activation; with `residual` the layer before is added from the second on. The answer is a linear read-out of the layer
that `depth` says.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.errors import ConfigError
from bayesarch.nets.conv_stack import Growth
from bayesarch.nets.skeletons import MakeCell, Shape, Trunk
from bayesarch.spaces import Space

__all__ = ["MixedPerceptron", "PlainPerceptron", "perceptron"]

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], type[nn.Module]]] = {
    "relu": (torch.relu, nn.ReLU), "gelu": (F.gelu, nn.GELU), "tanh": (torch.tanh, nn.Tanh),
}  # fmt: skip


class Table(NamedTuple):
    """Geometry: columns of the table, and classes."""

    features: int
    classes: int


class Shift(nn.Module):
    """Adds a number to each logit."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, logits: Tensor) -> Tensor:
        """Return logits of shape (B, K)."""
        return logits + self.bias


class MixedPerceptron(nn.Module):
    """All perceptrons of the space in one.

    A layer gives the sum over norms, activations and widths of their gates times what that combination would give, so
    that one-hot gates are one plain network: a layer norm is over the units of its width alone.

    Args:
        space: the space.
        table: features and classes.
        kind: the cell type; not used.
    """

    def __init__(self, space: Space, table: Table, kind: str = "cell") -> None:
        super().__init__()
        self.space, self.table = space, table
        self.live = torch.ones(space.n_options, dtype=torch.bool)
        self.options = {
            choice.name: dict(zip(choice.options, space.columns(position), strict=True))
            for position, choice in enumerate(space.choices)
        }
        self.width = max(map(int, self.options["width"]))
        depth = max(map(int, self.options["depth"]))
        self.linear = nn.ModuleList(
            nn.Linear(table.features if i == 0 else self.width, self.width) for i in range(depth)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(self.width, affine=False) for _ in range(depth))
        self.read = nn.Linear(self.width, table.classes, bias=False)

    def _there(self, choice: str, active: frozenset[int] | None) -> list[tuple[str, int]]:
        """Return (option, flat index) of what is computed."""
        return [(o, g) for o, g in self.options[choice].items() if self.live[g] and (active is None or g in active)]

    def forward(self, x: Tensor, gates: Tensor, active: frozenset[int] | None = None) -> Tensor:
        """Return logits before their shift, shape (B, K).

        Args:
            x: shape (B, F).
            gates: shape (B or 1, G).
            active: flat options to compute; None: all live ones.
        """
        depths = self._there("depth", active)
        out = x.new_zeros(len(x), self.width)
        residual = self._there("skip", active)
        h = x
        for layer in range(max((int(o) for o, _ in depths), default=0)):
            made = self._layer(layer, h, gates, active)
            if layer:
                for option, g in residual:
                    if option == "residual":
                        made = made + h * gates[:, g, None]
            h = made
            for option, g in depths:
                if int(option) == layer + 1:
                    out = out + h * gates[:, g, None]
        logits: Tensor = self.read(out)
        return logits

    def _layer(self, layer: int, h: Tensor, gates: Tensor, active: frozenset[int] | None) -> Tensor:
        z = self.linear[layer](h)
        total = torch.zeros_like(z)
        for norm, by_norm in self._there("norm", active):
            normed = self.norms[layer](z) if norm == "batch" else z
            for width, by_width in self._there("width", active):
                w = int(width)
                units = F.layer_norm(z[:, :w], (w,)) if norm == "layer" else normed[:, :w]
                for activation, by_activation in self._there("activation", active):
                    gate = (gates[:, by_norm] * gates[:, by_width] * gates[:, by_activation])[:, None]
                    total = total + F.pad(ACTIVATIONS[activation][0](units) * gate, (0, self.width - w))
        return total

    def prune(self, live: Tensor) -> None:
        """Leave the options whose entry in `live` (G,) is False out for good; layers that no depth needs go."""
        self.live = self.live & live.cpu()
        deepest = max((int(o) for o, _ in self._there("depth", None)), default=1)
        del self.linear[deepest:], self.norms[deepest:]

    def resize(self, partial: int, generator: torch.Generator) -> dict[str, Growth]:
        """Refuse partial channels.

        Raises:
            ConfigError: where `partial` is not 1.
        """
        if partial != 1:
            raise ConfigError("perceptrons take no partial channels; use another method")
        return {}

    @torch.no_grad()
    def hand_over(self, other: Any) -> None:
        """Copy to another perceptron, mixed or plain, what both have: the first units of the layers of both."""
        layers: Any = zip(self.linear, self.norms, other.linear, other.norms, strict=False)
        for mine, my_norm, theirs, norm in layers:
            outs, ins = theirs.weight.shape
            theirs.weight.copy_(mine.weight[:outs, :ins])
            theirs.bias.copy_(mine.bias[:outs])
            if isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.copy_(my_norm.running_mean[:outs])
                norm.running_var.copy_(my_norm.running_var[:outs])
        other.read.weight.copy_(self.read.weight[:, : other.read.weight.shape[1]])

    def option_parameters(self, column: int) -> list[nn.Parameter]:
        """Return no parameters: all are shared."""
        return []


class PlainPerceptron(nn.Module):
    """The perceptron that was found.

    Args:
        space: the space.
        table: features and classes.
        kind: the cell type; not used.
        columns: flat options; of several at a choice the last counts, which is the largest width and depth.
    """

    def __init__(self, space: Space, table: Table, kind: str, *, columns: Sequence[int]) -> None:
        super().__init__()
        picked: dict[str, str] = {}
        for position, choice in enumerate(space.choices):
            for option, g in zip(choice.options, space.columns(position), strict=True):
                if g in columns:
                    picked[choice.name] = option
        width, depth = int(picked["width"]), int(picked["depth"])
        self.residual = picked["skip"] == "residual"
        self.linear = nn.ModuleList(nn.Linear(table.features if i == 0 else width, width) for i in range(depth))
        make: dict[str, Callable[[], nn.Module]] = {
            "none": nn.Identity,
            "batch": lambda: nn.BatchNorm1d(width),
            "layer": lambda: nn.LayerNorm(width),
        }
        self.norms = nn.ModuleList(make[picked["norm"]]() for _ in range(depth))
        self.activation = ACTIVATIONS[picked["activation"]][1]()
        self.read = nn.Linear(width, table.classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits before their shift, shape (B, K), for rows of shape (B, F)."""
        h = x
        for i, (linear, norm) in enumerate(zip(self.linear, self.norms, strict=True)):
            made = self.activation(norm(linear(h)))
            h = made + h if self.residual and i else made
        logits: Tensor = self.read(h)
        return logits

    def option_parameters(self, column: int) -> list[nn.Parameter]:
        """Return no parameters: costs of perceptrons do not add up."""
        return []


def perceptron(sizes: Any, input_shape: Shape, classes: int, make_cell: MakeCell) -> Trunk:
    """Return one perceptron on the flattened input, and a shift of its logits; `sizes` is not used."""
    features = input_shape[0] * input_shape[1] * input_shape[2]
    return Trunk(nn.Flatten(), [make_cell(Table(features, classes), "cell")], ["cell"], Shift(classes))
