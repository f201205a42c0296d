"""Which cells stand in which skeleton, for supernets and for plain networks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from bayesarch.nets.cells import MixedCell, PlainCell
from bayesarch.nets.mlp import MixedPerceptron, PlainPerceptron, perceptron
from bayesarch.nets.skeletons import MakeCell, Shape, Trunk, read_out, residual_stages
from bayesarch.nets.tree import TreeCell, pyramid
from bayesarch.nets.two_input import BAYESNAS, DARTS, TwoInputCell, two_input_stages
from bayesarch.spaces import Space

__all__ = ["SKELETONS", "Skeleton"]


class Skeleton(NamedTuple):
    """A macro network and its cells."""

    trunk: Callable[[Any, Shape, int, MakeCell], Trunk]
    """(sizes, input shape, classes, make_cell) -> the network in parts."""
    mixed: Callable[[Space, Any, str], nn.Module]
    """(space, geometry, cell type) -> a cell with all options, told its gates."""
    plain: Callable[[Space, Any, str, Sequence[int]], nn.Module]
    """(space, geometry, cell type, flat options) -> a cell with these options only."""


def _plain(make: Any) -> Callable[[Space, Any, str, Sequence[int]], nn.Module]:
    return lambda space, geometry, kind, columns: make(space, geometry, kind, columns=columns)


_darts = partial(TwoInputCell, style=DARTS)
_bayesnas = partial(TwoInputCell, style=BAYESNAS)

SKELETONS: dict[str, Skeleton] = {
    "residual-stages": Skeleton(residual_stages, MixedCell, PlainCell),
    "residual-series": Skeleton(partial(residual_stages, series=True), MixedCell, PlainCell),
    "read-out": Skeleton(read_out, MixedCell, PlainCell),
    "darts-stages": Skeleton(partial(two_input_stages, stem_norm=True, head_norm=False), _darts, _plain(_darts)),
    "bayesnas-stages": Skeleton(
        partial(two_input_stages, stem_norm=False, head_norm=True), _bayesnas, _plain(_bayesnas)
    ),
    "perceptron": Skeleton(perceptron, MixedPerceptron, _plain(PlainPerceptron)),
    "pyramid": Skeleton(pyramid, TreeCell, _plain(TreeCell)),
}
"""Every skeleton by the name that spaces use."""
