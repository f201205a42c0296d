"""Spaces of channel masks: one choice per group of gates, one option per input channel, any subset of them.

Such a space belongs to one network: its choices are known when the network's sizes are. Until then the space is *open*
(`Space.choices` is empty) and `channel_space` fills it in. A mask is written `(group=hex, group=hex)`, channel 0 being
the lowest bit.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from bayesarch.errors import SpaceError
from bayesarch.spaces.architecture import Architecture
from bayesarch.spaces.space import Choice, Picks, Space

__all__ = ["GateGroup", "channel_space"]


class GateGroup(NamedTuple):
    """Input channels that share one drop probability.

    Attributes:
        name: the layer's name in the network, with `/segment` behind it where its input has several sources.
        channels: how many.
    """

    name: str
    channels: int


def channel_space(space: Space, groups: Sequence[GateGroup]) -> Space:
    """Return the open `space` with its choices filled in.

    Raises:
        SpaceError: if there is no group.
    """
    if not groups:
        raise SpaceError(f"space {space.name!r}: no convolution or linear layer whose input can be gated")
    choices = tuple(
        Choice(name=group.name, options=tuple(map(str, range(group.channels))), pick="any", alike=True)
        for group in groups
    )
    return replace(space, choices=choices, format_fn=_format, parse_fn=_parse)


def _format(arch: Architecture) -> str:
    masks = (sum(1 << channel for channel in picked) for picked in arch.picks)
    return "(" + ", ".join(f"{c.name}={mask:x}" for c, mask in zip(arch.space.choices, masks, strict=True)) + ")"


def _parse(text: str, space: Space) -> Picks:
    """Return the picks of a mask.

    Raises:
        SpaceError: naming the group, or the expected form.
    """
    if not (text.startswith("(") and text.endswith(")")):
        raise SpaceError(f"a channel mask reads (group=hex, ...); got {text[:40]!r}")
    given: dict[str, int] = {}
    for term in text[1:-1].split(","):
        name, _, digits = term.strip().partition("=")
        try:
            given[name] = int(digits, 16)
        except ValueError:
            raise SpaceError(f"group {name!r}: a mask is a hexadecimal number; got {digits!r}") from None
        limit = len(space.choices[space.choice_index(name)].options)
        if given[name] < 0 or given[name] >> limit:
            raise SpaceError(f"group {name!r} has {limit} channels; the mask {digits} has bits beyond")
    missing = [choice.name for choice in space.choices if choice.name not in given]
    if missing:
        raise SpaceError(f"no mask given for {', '.join(missing)} of space {space.name!r}")
    return tuple(
        tuple(i for i in range(len(choice.options)) if given[choice.name] >> i & 1) for choice in space.choices
    )
