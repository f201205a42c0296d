"""One point of a space: for each choice, which options are picked. Data only.

An NB201 string, a DARTS genotype, a cell with several operations on an edge and a channel mask are all this.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bayesarch.errors import SpaceError, nearest
from bayesarch.spaces.space import Picks, Space

__all__ = ["Architecture", "is_notation"]


def is_notation(text: str) -> bool:
    """Return whether a text reads like an architecture and names no folder; a genotype is too long for a name."""
    try:
        folder = Path(text).is_dir()
    except OSError:
        folder = False
    return not folder and any(mark in text for mark in "|({")


@dataclass(frozen=True)
class Architecture:
    """Picked options for every choice of `space`; immutable, hashable, checked when made.

    Where a choice takes any number of options, picking the zero option is picking nothing, and is written so.

    Raises:
        SpaceError: if the picks do not fit the space; the message names the choice and the legal options.
    """

    space: Space
    picks: Picks

    def __post_init__(self) -> None:
        choices = self.space.choices
        if len(self.picks) != len(choices):
            raise SpaceError(
                f"space {self.space.name!r} has {len(choices)} choices, the architecture has {len(self.picks)}"
            )
        tidy = tuple(
            tuple(sorted(option for option in set(picked) if choice.pick == "one" or option != choice.zero))
            for choice, picked in zip(choices, self.picks, strict=True)
        )
        for choice, picked in zip(choices, tidy, strict=True):
            legal = range(len(choice.options))
            if any(option not in legal for option in picked):
                raise SpaceError(
                    f"choice {choice.name!r}: option indices must be 0..{len(choice.options) - 1}, got {picked}"
                )
            if choice.pick == "one" and len(picked) != 1:
                names = [choice.options[i] for i in picked]
                raise SpaceError(
                    f"choice {choice.name!r} takes exactly one of {', '.join(choice.options)}; got {names or 'none'}"
                )
        object.__setattr__(self, "picks", tidy)

    @classmethod
    def parse(cls, text: str | Mapping[str, Any], space: "str | Space | None" = None) -> "Architecture":
        """Return the architecture that `text` describes.

        Args:
            text: the space's own notation, or JSON (a string or a dict) as `to_json` gives it.
            space: a space or its name; may be left out for JSON, which carries it.

        Raises:
            SpaceError: with the choice, the legal options and the nearest match.
        """
        if isinstance(text, Mapping):
            return _from_json(text, space)
        stripped = text.strip()
        if stripped.startswith("{"):
            try:
                return _from_json(json.loads(stripped), space)
            except json.JSONDecodeError as error:
                raise SpaceError(f"not valid JSON for an architecture: {error}") from None
        if space is None:
            raise SpaceError("say which space the string belongs to: Architecture.parse(text, space='nb201')")
        owner = _resolve(space)
        if owner.parse_fn is None:
            raise SpaceError(f"space {owner.name!r} has no string notation; give JSON")
        return cls(owner, owner.parse_fn(stripped, owner))

    def __str__(self) -> str:
        """Return the space's own notation, or JSON where it has none; `parse` is the inverse."""
        if self.space.format_fn is not None:
            return self.space.format_fn(self)
        return json.dumps(self.to_json(), sort_keys=True)

    def __repr__(self) -> str:
        return f"Architecture({self.space.name}: {self})"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict: the space's name and, for each choice, the names of its picked options."""
        return {
            "space": self.space.name,
            "picks": {
                choice.name: [choice.options[i] for i in picked]
                for choice, picked in zip(self.space.choices, self.picks, strict=True)
            },
        }

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that are the same on every machine and in every version."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def canonical(self) -> str:
        """A string that equivalent architectures share, by the space's own rule of equivalence."""
        return self.space.canonical_fn(self) if self.space.canonical_fn else str(self)

    @cached_property
    def inactive(self) -> frozenset[int]:
        """Positions of choices on no path from input to output; what they pick changes nothing."""
        return self.space.inactive(self.picks)

    @cached_property
    def connected(self) -> bool:
        """Whether something can flow from the input to the output of every cell type."""
        return self.space.connected(self.picks)

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """Flat option indices of all picked options."""
        return tuple(
            self.space.offsets[position] + option for position, picked in enumerate(self.picks) for option in picked
        )

    def single(self, position: int) -> int | None:
        """Return the one option picked at the choice at `position`, the zero option for none; None for several."""
        picked, zero = self.picks[position], self.space.choices[position].zero
        return zero if not picked else picked[0] if len(picked) == 1 else None

    def option_names(self, position: int) -> tuple[str, ...]:
        """Return the names of the options picked at the choice at `position`."""
        return tuple(self.space.choices[position].options[i] for i in self.picks[position])


def _resolve(space: str | Space) -> Space:
    """Return a space by name or as given."""
    if isinstance(space, Space):
        return space
    from bayesarch.spaces import SPACES  # the table imports the spaces, which import this file

    if space not in SPACES:
        raise SpaceError(f"unknown space {space!r}, {nearest(space, SPACES)}")
    return SPACES[space]


def _from_json(record: Mapping[str, Any], space: str | Space | None) -> Architecture:
    """Return the architecture of a JSON record, whose space must agree with `space` if that is given."""
    if "picks" not in record or not isinstance(record["picks"], Mapping):
        raise SpaceError("an architecture in JSON needs 'space' and 'picks' (choice name -> list of options)")
    if space is None and "space" not in record:
        raise SpaceError("the JSON does not name its space; pass space=")
    owner = _resolve(space if space is not None else str(record["space"]))
    if record.get("space", owner.name) != owner.name:
        raise SpaceError(f"the architecture belongs to space {record['space']!r}, not to {owner.name!r}")
    given = record["picks"]
    for name in given:
        owner.choice_index(name)
    missing = [choice.name for choice in owner.choices if choice.name not in given]
    if missing:
        raise SpaceError(f"no pick given for choice {', '.join(missing)} of space {owner.name!r}")
    picks = []
    for choice in owner.choices:
        names = given[choice.name]
        names = [names] if isinstance(names, str) else names
        picks.append(tuple(choice.index(name) for name in names))
    return Architecture(owner, tuple(picks))
