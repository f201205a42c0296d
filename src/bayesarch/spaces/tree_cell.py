"""`tree-cell`: every residual block of a PyramidNet has a tree of operations of its own.

References: Cai et al., "Path-Level Network Transformation for Efficient Architecture Search", ICML 2018; BayesNAS's
proxyless search uses this space (from memory of the paper, so the details are ours). A block's root has two children
and each of them two leaves: six edges of seven operations each, any number of which may stay. What leaves a child
depends on the child's own edge. Blocks share nothing, so that a space has a number of blocks: `tree-cell` has two in
each of its three groups, `tree-cell-18` eighteen, as published, and `tree_cell(n)` as many as you like.
"""

from typing import Any, Literal

from pydantic import Field, create_model

from bayesarch.config import Config
from bayesarch.spaces.darts import node_format, node_parse
from bayesarch.spaces.space import Choice, Space

__all__ = ["TREE_CELL", "TREE_CELL_18", "TreeSizes", "tree_cell"]

OPERATIONS = (
    "none", "dw_sep_3x3", "dw_sep_5x5", "dw_sep_7x7", "conv_1x1", "identity", "max_3x3", "avg_3x3",
)  # fmt: skip
EDGES = (("root", "l"), ("root", "r"), ("l", "ll"), ("l", "lr"), ("r", "rl"), ("r", "rr"))


class TreeSizes(Config):
    """Macro sizes of PyramidNet."""

    channels: int = Field(default=16, ge=1)
    """Channels of the stem."""
    alpha: int = Field(default=84, ge=0)
    """By how much blocks widen in all. Published: 84 and 150."""
    blocks: int = Field(default=2, ge=1)
    """Blocks in each of three groups; the space says how many."""


def tree_cell(blocks: int, *, name: str | None = None) -> Space:
    """Return the space of networks with `blocks` tree cells in each of three groups.

    Args:
        blocks: per group, at least 1.
        name: name of the space; None: tree-cell-<blocks>.
    """
    fixed: Any = (Literal[blocks], blocks)
    sizes = create_model(f"TreeSizes{blocks}", __base__=TreeSizes, blocks=fixed)
    return Space(
        name=name or f"tree-cell-{blocks}",
        choices=tuple(
            Choice(
                name=f"block{number}/{target}<-{source}",
                options=OPERATIONS,
                pick="any",
                zero=0,
                source=source,
                target=target,
                cell=f"block{number}",
            )
            for number in range(3 * blocks)
            for source, target in EDGES
        ),
        inputs=frozenset({"root"}),
        outputs=frozenset({"root", "l", "r", "ll", "lr", "rl", "rr"}),
        skeleton="pyramid",
        sizes=sizes,
        format_fn=node_format,
        parse_fn=node_parse,
    )


TREE_CELL = tree_cell(2, name="tree-cell")
"""Two blocks in each group: small."""

TREE_CELL_18 = tree_cell(18)
"""Eighteen blocks in each group: the published size."""
