"""`bayesnas-cell`: the eight edges that BayesNAS's released code searches, with its own operations.

Reference: Zhou, Yang, Wang and Pan, BayesNAS, ICML 2019, and its released code. Inputs are `in0`, the last cell, and
`in1`, the one before it. The wiring is that of the first-order DARTS cell, node by node, so that the search is over
operations and over which of these edges exist, not over all fourteen. Several operations may stay on an edge.
"""

from pydantic import Field

from bayesarch.spaces.darts import TwoInputSizes, node_format, node_parse, two_input_choices
from bayesarch.spaces.space import Space

__all__ = ["BAYESNAS_CELL", "BayesNASSizes"]

OPERATIONS = ("none", "sep3", "sep5", "dil3", "dil5", "max3", "avg3", "id")
NORMAL = (
    ("in0", "n0"), ("in1", "n0"), ("in0", "n1"), ("in1", "n1"),
    ("in0", "n2"), ("in1", "n2"), ("in1", "n3"), ("n0", "n3"),
)  # fmt: skip
REDUCE = (
    ("in0", "n0"), ("in1", "n0"), ("in1", "n1"), ("n0", "n1"),
    ("in1", "n2"), ("n0", "n2"), ("in1", "n3"), ("n0", "n3"),
)  # fmt: skip


class BayesNASSizes(TwoInputSizes):
    """Macro sizes; the defaults are those of the released search."""

    channels: int = Field(default=36, ge=2)
    """C of the first cells; doubled at each reduction. Published: 36 to search and for CIFAR, 48 for ImageNet."""


BAYESNAS_CELL = Space(
    name="bayesnas-cell",
    choices=two_input_choices({"normal": NORMAL, "reduce": REDUCE}, OPERATIONS),
    inputs=frozenset({"in0", "in1"}),
    outputs=frozenset({"n0", "n1", "n2", "n3"}),
    skeleton="bayesnas-stages",
    sizes=BayesNASSizes,
    format_fn=node_format,
    parse_fn=node_parse,
)
"""The space."""
