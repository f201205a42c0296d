"""`toy`: 27 architectures, small enough to enumerate, with a problem whose answer is known.

Three nodes and three edges, each `none`, `skip` or `product`; `product` maps features x_i to x_i x_{i+1} (indices
modulo the number of features). On features of +1 and -1 the functions a cell can compute are products of neighbours,
which are orthogonal under uniform inputs, so that architectures are told apart by what a linear read-out of node 2
can fit, and by nothing else: no operation has weights. The problem is ours, made to be enumerable.

Written `|op~0|+|op~0|op~1|`, as nb201's cells are.
"""

from bayesarch.config import Config
from bayesarch.errors import SpaceError
from bayesarch.spaces.architecture import Architecture
from bayesarch.spaces.space import Choice, Picks, Space

__all__ = ["TOY", "ToySizes"]

OPERATIONS = ("none", "skip", "product")
EDGES = ((0, 1), (0, 2), (1, 2))


class ToySizes(Config):
    """The toy network has no sizes: it is as wide as its input."""


def _format(arch: Architecture) -> str:
    names = [arch.option_names(position)[0] for position in range(3)]
    return f"|{names[0]}~0|+|{names[1]}~0|{names[2]}~1|"


def _parse(text: str, space: Space) -> Picks:
    parts = text.replace("+", "").strip("|").split("|")
    terms = [term.partition("~") for term in parts if term]
    if [term[2] for term in terms] != ["0", "0", "1"]:
        raise SpaceError(f"a toy cell reads like |op~0|+|op~0|op~1|; got {text!r}")
    return tuple((choice.index(name),) for choice, (name, _, _) in zip(space.choices, terms, strict=True))


def _canonical(arch: Architecture) -> str:
    """Return the multiset of terms of node 2, each the number of products on a path (products add along a path)."""
    steps = {"skip": 0, "product": 1}
    first, direct, second = (arch.option_names(position)[0] for position in range(3))
    terms = []
    if direct != "none":
        terms.append(steps[direct])
    if "none" not in (first, second):
        terms.append(steps[first] + steps[second])
    return "+".join(f"x{term}" for term in sorted(terms)) or "0"


TOY = Space(
    name="toy",
    choices=tuple(
        Choice(name=f"{target}<-{source}", options=OPERATIONS, zero=0, source=str(source), target=str(target))
        for source, target in EDGES
    ),
    inputs=frozenset({"0"}),
    outputs=frozenset({"2"}),
    skeleton="read-out",
    sizes=ToySizes,
    format_fn=_format,
    parse_fn=_parse,
    canonical_fn=_canonical,
)
"""The space of 27 architectures."""
