"""`darts`: normal and reduction cells of four nodes and fourteen edges, seven operations each, or none.

Reference: Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search", ICLR 2019. Node 0 is the output of the
cell before the last, node 1 of the last cell; nodes 2 to 5 are sums of what enters them and are the output, side by
side. A cell whose nodes all have two operations is written as the field writes it, `Genotype(normal=[('sep_conv_3x3',
0), ...], normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6))`; any other node by node, `normal(2:
sep_conv_3x3~0; 3: ...) reduce(...)`.
"""

import re
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from bayesarch.config import Config
from bayesarch.errors import SpaceError
from bayesarch.spaces.architecture import Architecture
from bayesarch.spaces.space import Choice, Picks, Space

__all__ = ["DARTS", "TwoInputSizes", "node_format", "node_parse"]

OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
CELLS = ("normal", "reduce")
NODES = range(2, 6)


class TwoInputSizes(Config):
    """Macro sizes of two-input networks; the defaults are those of the published search networks."""

    few_examples: ClassVar[dict[str, int]] = {"channels": 8, "layers": 3}
    """What is smaller by default where examples are few."""

    channels: int = Field(default=16, ge=2)
    """C of the first cells; doubled at each reduction. Published: 16 to search, 36 for CIFAR, 48 for ImageNet."""
    layers: int = Field(default=8, ge=3)
    """Cells; those at a third and two thirds are reductions. Published: 8 to search, 20 for CIFAR, 14 for ImageNet."""
    large: bool = False
    """Whether three convolutions at stride 2 come first, for images of 224 pixels."""
    gate_position: Literal["output", "input"] = "output"
    """Where a supernet's gates multiply: what an option gives, or what it takes, as BayesNAS's released code has it. A
    norm behind the gate takes its scale out again, so that such options hardly feel their gate in training."""
    nodes: int = Field(default=4, ge=4, le=4)
    """Nodes that make a cell's output; four in these spaces."""


def _format(arch: Architecture) -> str:
    pairs = {cell: [_entering(arch, cell, str(node)) for node in NODES] for cell in CELLS}
    if any(len(node) != 2 or node[0][1] == node[1][1] for nodes in pairs.values() for node in nodes):
        return node_format(arch)
    parts = []
    for cell in CELLS:
        flat = ", ".join(f"({name!r}, {source})" for node in pairs[cell] for name, source in node)
        parts += [f"{cell}=[{flat}]", f"{cell}_concat=range(2, 6)"]
    return f"Genotype({', '.join(parts)})"


def _entering(arch: Architecture, cell: str, node: str) -> list[tuple[str, str]]:
    """Return (operation, source) of all that enters a node, by source, then in the space's order of options."""
    return [
        (name, str(choice.source))
        for position, choice in enumerate(arch.space.choices)
        if (choice.cell, choice.target) == (cell, node)
        for name in arch.option_names(position)
        if choice.options.index(name) != choice.zero
    ]


def node_format(arch: Architecture) -> str:
    """Return an architecture node by node: `normal(2: sep_conv_3x3~0 skip_connect~1; 3: ...) reduce(...)`."""
    texts = []
    for cell in dict.fromkeys(choice.cell for choice in arch.space.choices):
        targets = dict.fromkeys(str(c.target) for c in arch.space.choices if c.cell == cell)
        nodes = [
            f"{node}: {' '.join(f'{name}~{source}' for name, source in _entering(arch, cell, node))}".rstrip()
            for node in targets
        ]
        texts.append(f"{cell}({'; '.join(nodes)})")
    return " ".join(texts)


def node_parse(text: str, space: Space) -> Picks:
    """Return the picks of what `node_format` wrote.

    Raises:
        SpaceError: naming the cell, the edge or the operation that is wrong.
    """
    picks: list[set[int]] = [set() for _ in space.choices]
    cells = dict.fromkeys(choice.cell for choice in space.choices)
    found = re.findall(r"(\w+)\(([^()]*)\)", text)
    if [name for name, _ in found] != list(cells):
        example = " ".join(f"{cell}(node: operation~source ...; ...)" for cell in cells)
        raise SpaceError(f"an architecture of {space.name} reads like {example}; got {text!r}")
    for cell, body in found:
        for part in body.split(";"):
            node, _, terms = part.partition(":")
            for term in terms.split():
                name, _, source = term.partition("~")
                _pick(picks, space, cell, node.strip(), source, name)
    return tuple(tuple(sorted(picked)) for picked in picks)


def _pick(picks: list[set[int]], space: Space, cell: str, target: str, source: str, name: str) -> None:
    """Add one operation to the picks.

    Raises:
        SpaceError: if there is no such edge or operation.
    """
    position = space.choice_index(f"{cell}/{target}<-{source}")
    picks[position].add(space.choices[position].index(name))


def _parse(text: str, space: Space) -> Picks:
    """Return the picks of a genotype, or of the node form.

    Raises:
        SpaceError: naming what is wrong.
    """
    if not text.startswith("Genotype"):
        return node_parse(text, space)
    picks: list[set[int]] = [set() for _ in space.choices]
    for cell in CELLS:
        body = re.search(rf"\b{cell}\s*=\s*\[(.*?)\]", text, re.DOTALL)
        pairs = re.findall(r"\(\s*['\"](\w+)['\"]\s*,\s*(\d+)\s*\)", body.group(1)) if body else []
        if len(pairs) != 2 * len(NODES):
            raise SpaceError(f"a genotype has eight (operation, node) pairs in {cell}=[...]; got {len(pairs)}")
        concat = re.search(rf"\b{cell}_concat\s*=\s*(range\(2,\s*6\)|[\[(]2,\s*3,\s*4,\s*5[\])])", text)
        if concat is None:
            raise SpaceError(f"{cell}_concat must be range(2, 6): all four nodes are the output of a cell here")
        for place, (name, source) in enumerate(pairs):
            _pick(picks, space, cell, str(NODES[place // 2]), source, name)
        if sum(len(picks[p]) for p, c in enumerate(space.choices) if c.cell == cell) != len(pairs):
            raise SpaceError(f"{cell}: a node reads one source twice with one operation")
    return tuple(tuple(sorted(picked)) for picked in picks)


def two_input_choices(wiring: dict[str, Sequence[tuple[str, str]]], options: tuple[str, ...]) -> tuple[Choice, ...]:
    """Return a choice per (source, target) of each cell, any number of options each."""
    return tuple(
        Choice(
            name=f"{cell}/{target}<-{source}",
            options=options,
            pick="any",
            zero=0,
            source=source,
            target=target,
            cell=cell,
        )
        for cell, edges in wiring.items()
        for source, target in edges
    )


ALL_EDGES = tuple((str(source), str(node)) for node in NODES for source in range(node))

DARTS = Space(
    name="darts",
    choices=two_input_choices(dict.fromkeys(CELLS, ALL_EDGES), OPERATIONS),
    inputs=frozenset({"0", "1"}),
    outputs=frozenset(str(node) for node in NODES),
    skeleton="darts-stages",
    sizes=TwoInputSizes,
    entering=2,
    format_fn=_format,
    parse_fn=_parse,
)
"""The space. A choice takes any number of operations; methods that mix keep one on each of two edges per node."""
