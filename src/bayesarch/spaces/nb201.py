"""NAS-Bench-201: cells of four nodes and six edges, five operations each, 15,625 strings.

Reference: Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search", ICLR 2020.
A node is the sum of its transformed inputs and node 3 is the output. A cell is written as the benchmark writes it,
`|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`: one group per node, `~j` the node an operation reads.
"""

import re
from typing import ClassVar

from pydantic import Field

from bayesarch.config import Config
from bayesarch.errors import SpaceError
from bayesarch.spaces.architecture import Architecture
from bayesarch.spaces.space import Choice, Picks, Space

__all__ = ["NB201", "NB201Sizes"]

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = tuple((source, target) for target in range(1, 4) for source in range(target))


class NB201Sizes(Config):
    """Macro sizes of the benchmark's network."""

    few_examples: ClassVar[dict[str, int]] = {"cells": 1}
    """What is smaller by default where examples are few."""

    channels: int = Field(default=16, ge=1)
    """C: channels of the first stage; doubled at each reduction. The benchmark's is 16."""
    cells: int = Field(default=5, ge=1)
    """N: cells in each stage. The benchmark's is 5."""
    stages: int = Field(default=3, ge=1, le=6)
    """Stages, with a residual reduction between two. The benchmark's is 3."""
    stem_reductions: int = Field(default=0, ge=0, le=4)
    """Halvings of the side in the stem, each a convolution of stride 2, for large images. The benchmark's is 0."""


def _format(arch: Architecture) -> str:
    """Return the benchmark's string."""
    groups = []
    for node in range(1, 4):
        terms = [
            f"{arch.option_names(position)[0]}~{source}"
            for position, (source, target) in enumerate(EDGES)
            if target == node
        ]
        groups.append("|" + "|".join(terms) + "|")
    return "+".join(groups)


def _parse(text: str, space: Space) -> Picks:
    """Return the picks of the benchmark's string.

    Raises:
        SpaceError: naming the edge and the nearest operation, or the expected form.
    """
    form = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
    groups = text.split("+")
    if len(groups) != 3:
        raise SpaceError(f"an nb201 string has three groups, {form}; got {len(groups)} in {text!r}")
    picks = []
    for node, group in enumerate(groups, start=1):
        if not re.fullmatch(r"\|([^|~]+~[^|~]+\|)+", group):
            raise SpaceError(f"node {node} of an nb201 string reads like {form.split('+')[node - 1]}; got {group!r}")
        terms = [term.split("~") for term in group.strip("|").split("|")]
        if [source for _, source in terms] != [str(source) for source in range(node)]:
            raise SpaceError(f"node {node} reads nodes 0..{node - 1} in order, {form}; got {group!r}")
        for name, source in terms:
            position = space.choice_index(f"{node}<-{source}")
            picks.append((space.choices[position].index(name),))
    return tuple(picks)


def _canonical(arch: Architecture) -> str:
    """Return a string shared by equivalent cells, by the benchmark's own rule.

    A term is zero if its operation is `none` or the node it reads is itself the zero term; `skip_connect` stands for
    the node it reads; terms of a node are sorted. A *sum* of zeros is not reduced, so this gives 6,466 classes (the
    published number) where dropping zero terms would give 5,390.
    """
    nodes = ["0"]
    for node in range(1, 4):
        terms = []
        for position, (source, target) in enumerate(EDGES):
            if target != node:
                continue
            name = arch.option_names(position)[0]
            if name == "none" or nodes[source] == "#":
                terms.append("#")
            elif name == "skip_connect":
                terms.append(nodes[source])
            else:
                terms.append(f"({nodes[source]})@{name}")
        nodes.append("+".join(sorted(terms)))
    return nodes[3]


NB201 = Space(
    name="nb201",
    choices=tuple(
        Choice(
            name=f"{target}<-{source}",
            options=OPERATIONS,
            zero=OPERATIONS.index("none"),
            source=str(source),
            target=str(target),
        )
        for source, target in EDGES
    ),
    inputs=frozenset({"0"}),
    outputs=frozenset({"3"}),
    skeleton="residual-stages",
    sizes=NB201Sizes,
    format_fn=_format,
    parse_fn=_parse,
    canonical_fn=_canonical,
)
"""The space, with the benchmark's order of operations and edges."""
