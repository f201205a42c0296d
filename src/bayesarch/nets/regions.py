"""What leaves a node of a supernet's cell, as it is or compiled: the unit that a pruning touches and copies share.

A region is all that leaves one node: the options there, and their sum at each node they go to. Copies of a cell of one
size share its program, and a pruning leaves the programs of other nodes as they are; only what a node has lost is
compiled anew. A whole network, or a cell, would be compiled again after every pruning.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bayesarch.nets.kernels import fits
from bayesarch.nets.pieces import Piece, mixed

__all__ = ["Leaving", "Region", "Regional", "as_they_are", "compiled", "fused", "summed"]

Active = frozenset[int] | None

VERSIONS = 4096
"""Versions of a region that are kept at most."""


class Leaving(Protocol):
    """What holds the options that leave the nodes of a cell: a module."""

    training: bool

    def leaving(self, node: str, h: Tensor, gates: Any, active: Active) -> Iterable[tuple[str, Piece]]:
        """Return (target node, gated output) of every option that leaves `node`, whose features are `h`."""

    def parting(self, node: str, h: Tensor, gates: Tensor, active: Active) -> Iterable[tuple[str, Piece]]:
        """Return the same as parts of sums, which kernels of ours compute."""


Region = Callable[[Leaving, str, Tensor, Any, Active], Iterable[tuple[str, Piece]]]
"""(options, node, features, gates, active) -> (target node, piece) of what leaves the node."""


@runtime_checkable
class Regional(Protocol):
    """A cell that computes what leaves its nodes by a region."""

    region: Region
    """How what leaves a node is computed."""


def as_they_are(options: Leaving, node: str, h: Tensor, gates: Any, active: Active) -> Iterable[tuple[str, Piece]]:
    """Return the gated pieces one by one; the target sums them."""
    return options.leaving(node, h, gates, active)


def fused(options: Leaving, node: str, h: Tensor, gates: Any, active: Active) -> Iterable[tuple[str, Piece]]:
    """Return parts of the target's sum while options are trained under gates that examples share; pieces elsewhere."""
    if gates is None or not options.training or not fits(h, gates):
        return options.leaving(node, h, gates, active)
    return options.parting(node, h, gates, active)


def summed(options: Leaving, node: str, h: Tensor, gates: Tensor) -> list[tuple[str, Piece]]:
    """Return one tensor per target node: the sum of what goes there."""
    parts: dict[str, list[Piece]] = {}
    for target, piece in options.leaving(node, h, gates, None):
        parts.setdefault(target, []).append(piece)
    return [(target, mixed(pieces, h)) for target, pieces in parts.items()]


def compiled(**how: Any) -> Region:
    """Return a region that is compiled where all live options are trained, and is as it is elsewhere.

    Args:
        how: of `torch.compile`, for other backends than its own.
    """
    from torch._dynamo import config

    # a version for each node, size and pass, and more with every pruning: more than torch expects of a function
    config.recompile_limit = max(config.recompile_limit, VERSIONS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, VERSIONS)
    program = torch.compile(summed, fullgraph=True, dynamic=False, **how)

    def region(options: Leaving, node: str, h: Tensor, gates: Any, active: Active) -> Iterable[tuple[str, Piece]]:
        if gates is None or active is not None or not (options.training and torch.is_grad_enabled()):
            return options.leaving(node, h, gates, active)
        brought: list[tuple[str, Piece]] = program(options, node, h, gates)
        return brought

    return region
