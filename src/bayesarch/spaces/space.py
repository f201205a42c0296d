"""What a search space is: choices with their options, and the graph that ties them. Data only, no torch.

A `Space` lays the options of all its choices flat, in order; index `g` of that layout is *the* column of every gate,
mask and belief in the library and never moves.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Literal

from bayesarch.config import Config
from bayesarch.errors import SpaceError, nearest

if TYPE_CHECKING:
    from bayesarch.spaces.architecture import Architecture

__all__ = ["Choice", "Picks", "Space"]

Picks = tuple[tuple[int, ...], ...]
"""For each choice, the sorted indices of the options picked."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One decision: which of `options` goes from node `source` to node `target` of a cell."""

    name: str
    options: tuple[str, ...]
    pick: Literal["one", "any"] = "one"
    """`one`: exactly one option is picked; `any`: a subset, the empty one included."""
    zero: int | None = None
    """Index of the option that means "nothing passes here", or None if there is none."""
    source: str | None = None
    target: str | None = None
    cell: str = "cell"
    """Cell type the choice belongs to; copies of one type share their architecture."""
    alike: bool = False
    """Whether the options are channels of one layer, which people want counted and not named."""

    def __post_init__(self) -> None:
        if not self.options or len(set(self.options)) != len(self.options):
            raise SpaceError(f"choice {self.name!r}: options must be distinct and at least one, got {self.options}")
        if self.zero is not None and not 0 <= self.zero < len(self.options):
            raise SpaceError(f"choice {self.name!r}: zero={self.zero} is no index into {len(self.options)} options")

    @property
    def real(self) -> tuple[int, ...]:
        """Indices of the options that are not the zero option."""
        return tuple(i for i in range(len(self.options)) if i != self.zero)

    def index(self, option: str) -> int:
        """Return the index of `option`.

        Raises:
            SpaceError: if the choice has no such option; names the legal ones and the nearest.
        """
        try:
            return self.options.index(option)
        except ValueError:
            raise SpaceError(
                f"choice {self.name!r} has no option {option!r}, {nearest(option, self.options)}"
            ) from None


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """A search space: its choices, the node graph they lie on, and how its architectures are written.

    Equality is identity of name and choices, so that two imports or a user's copy of a space agree.
    """

    name: str
    choices: tuple[Choice, ...]
    inputs: frozenset[str] = frozenset()
    """Nodes that hold a cell's input."""
    outputs: frozenset[str] = frozenset()
    """Nodes that make a cell's output."""
    skeleton: str
    """Name of the macro network that cells of this space sit in (`bayesarch.nets.SKELETONS`)."""
    sizes: type[Config]
    """Settings of that macro network, with their defaults."""
    entering: int | None = None
    """How many edges into each node a method keeps that mixes one operation per edge; None: all."""
    additive: bool = True
    """Whether a network's cost is a base plus one term per picked option."""
    format_fn: Callable[["Architecture"], str] | None = field(default=None, repr=False)
    """Writes an architecture in the field's own notation; None: the JSON form."""
    parse_fn: Callable[[str, "Space"], Picks] | None = field(default=None, repr=False)
    """Reads that notation."""
    canonical_fn: Callable[["Architecture"], str] | None = field(default=None, repr=False)
    """Gives equal strings for architectures that compute the same function by the space's own rule."""

    def __post_init__(self) -> None:
        names = [choice.name for choice in self.choices]
        if len(set(names)) != len(names):
            raise SpaceError(f"space {self.name!r}: choice names must be distinct, got {names}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and (self.name, self.choices) == (other.name, other.choices)

    def __hash__(self) -> int:
        return hash((self.name, self.choices))

    @property
    def open(self) -> bool:
        """Whether the choices are not known yet, because they depend on the network's sizes (`channel_space`)."""
        return not self.choices

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First flat option index of each choice."""
        starts, total = [], 0
        for choice in self.choices:
            starts.append(total)
            total += len(choice.options)
        return tuple(starts)

    @cached_property
    def n_options(self) -> int:
        """G: the number of options of all choices together."""
        return sum(len(choice.options) for choice in self.choices)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """`choice/option` for each flat option index, length G."""
        return tuple(f"{choice.name}/{option}" for choice in self.choices for option in choice.options)

    def choice_index(self, name: str) -> int:
        """Return the position of the choice called `name`.

        Raises:
            SpaceError: if there is none; names the nearest.
        """
        for position, choice in enumerate(self.choices):
            if choice.name == name:
                return position
        raise SpaceError(f"space {self.name!r} has no choice {name!r}, {nearest(name, [c.name for c in self.choices])}")

    def columns(self, position: int) -> range:
        """Return the flat option indices of the choice at `position`."""
        start = self.offsets[position]
        return range(start, start + len(self.choices[position].options))

    @cached_property
    def log_size(self) -> float:
        """Natural logarithm of the number of architectures."""
        return sum(math.log(len(c.options)) if c.pick == "one" else len(c.real) * math.log(2) for c in self.choices)

    @property
    def size(self) -> int:
        """Number of architectures (strings, not equivalence classes)."""
        return math.prod(len(c.options) if c.pick == "one" else 2 ** len(c.real) for c in self.choices)

    def all_picks(self) -> Iterator[Picks]:
        """Yield the picks of every architecture, the last choice moving fastest. Only sensible for small spaces."""
        per_choice: list[list[tuple[int, ...]]] = []
        for choice in self.choices:
            real = choice.real
            if choice.pick == "one":
                per_choice.append([(i,) for i in range(len(choice.options))])
            else:
                per_choice.append(
                    [tuple(i for k, i in enumerate(real) if mask >> k & 1) for mask in range(2 ** len(real))]
                )
        yield from product(*per_choice)

    def random_picks(self, rng: random.Random) -> Picks:
        """Return picks drawn uniformly over architectures, from `rng`."""
        picks: list[tuple[int, ...]] = []
        for choice in self.choices:
            if choice.pick == "one":
                picks.append((rng.randrange(len(choice.options)),))
            else:
                picks.append(tuple(i for i in choice.real if rng.random() < 0.5))
        return tuple(picks)

    def inactive(self, live: Sequence[Sequence[int]]) -> frozenset[int]:
        """Return the positions of choices that cannot matter: on no path from a cell's input to its output.

        A choice's own options are not asked, only whether anything can reach its source and whether its target can
        reach the output through other choices with a live non-zero option. Such an edge gets no gradient.

        Args:
            live: for each choice, the option indices still possible (an architecture's picks, for instance).
        """
        dead = set()
        for position, choice in enumerate(self.choices):
            if choice.source is None or choice.target is None:
                continue
            edges = self._open_edges(live, choice.cell)
            fed = _reach(self.inputs, edges)
            used = _reach(self.outputs, [(t, s) for s, t in edges])
            if choice.source not in fed or choice.target not in used:
                dead.add(position)
        return frozenset(dead)

    def connected(self, live: Sequence[Sequence[int]]) -> bool:
        """Return whether something can flow from the input to the output of every cell type."""
        cells = {choice.cell for choice in self.choices if choice.source is not None}
        return all(self.cell_connected(live, cell) for cell in cells)

    def cell_connected(self, live: Sequence[Sequence[int]], cell: str) -> bool:
        """Return whether something can flow from the input to the output of one cell type."""
        return bool(self.outputs & _reach(self.inputs, self._open_edges(live, cell)))

    def cascade(self, live: Sequence[Sequence[int]]) -> Picks:
        """Return what is left of `live` when nothing that nothing feeds is kept, zero options left out.

        A node is alive if it is an input of its cell or an edge with a live non-zero option enters it from a node that
        is alive; edges that leave a dead node lose all their options.
        """
        fed: dict[str, set[str]] = {}
        for choice in self.choices:
            if choice.cell not in fed:
                fed[choice.cell] = _reach(self.inputs, self._open_edges(live, choice.cell))
        return tuple(
            tuple(sorted(option for option in row if option != choice.zero))
            if choice.source is None or choice.source in fed[choice.cell]
            else ()
            for choice, row in zip(self.choices, live, strict=True)
        )

    def _open_edges(self, live: Sequence[Sequence[int]], cell: str) -> list[tuple[str, str]]:
        """Return (source, target) of the choices of `cell` with a live option that is not the zero option."""
        return [
            (choice.source, choice.target)
            for position, choice in enumerate(self.choices)
            if choice.cell == cell and choice.source is not None and choice.target is not None
            if any(option != choice.zero for option in live[position])
        ]


def _reach(start: frozenset[str], edges: Sequence[tuple[str, str]]) -> set[str]:
    """Return all nodes that can be reached from `start` along directed `edges`."""
    seen = set(start)
    frontier = list(start)
    while frontier:
        node = frontier.pop()
        for source, target in edges:
            if source == node and target not in seen:
                seen.add(target)
                frontier.append(target)
    return seen
