"""Beliefs as objects: what a search returns. numpy only, readable without torch.

To add a kind: copy `meanfield.py`, keep the protocol of `base.py`, add a line to `KINDS`, and run
`bayesarch.testing.check_posterior` on it.
"""

from typing import Any

from bayesarch.errors import RunError, nearest
from bayesarch.posteriors.base import ArchitecturePosterior as ArchitecturePosterior
from bayesarch.posteriors.base import CredibleSet as CredibleSet
from bayesarch.posteriors.base import best_connected as best_connected
from bayesarch.posteriors.base import connected as connected
from bayesarch.posteriors.base import word as word
from bayesarch.posteriors.conditionals import ConditionalsAtMode as ConditionalsAtMode
from bayesarch.posteriors.inclusion import Inclusion as Inclusion
from bayesarch.posteriors.listed import Listed as Listed
from bayesarch.posteriors.listed import jeffreys as jeffreys
from bayesarch.posteriors.masks import ChannelMasks as ChannelMasks
from bayesarch.posteriors.meanfield import MeanField as MeanField
from bayesarch.posteriors.meanfield import entropy_of as entropy_of
from bayesarch.posteriors.topedges import TopEdges as TopEdges
from bayesarch.posteriors.within import WithinLimits as WithinLimits
from bayesarch.spaces import SPACES, Space

__all__ = [
    "KINDS",
    "ArchitecturePosterior",
    "ChannelMasks",
    "ConditionalsAtMode",
    "CredibleSet",
    "Inclusion",
    "Listed",
    "MeanField",
    "TopEdges",
    "WithinLimits",
    "best_connected",
    "connected",
    "entropy_of",
    "from_json",
    "jeffreys",
    "word",
]

KINDS: dict[str, Any] = {
    "exact": Listed,
    "mean-field": MeanField,
    "mean-field-within-limits": WithinLimits,
    "conditionals-at-mode": ConditionalsAtMode,
    "top-edges": TopEdges,
    "inclusion": Inclusion,
    "channel-masks": ChannelMasks,
    "candidates": Listed,
    "recurrence": Listed,
}
"""Every kind of posterior that can be read back."""


def from_json(record: dict[str, Any], space: Space | None = None) -> ArchitecturePosterior:
    """Return the posterior of a record made by `to_json`.

    Args:
        record: the record.
        space: the space, where it is not a built-in one.

    Raises:
        RunError: if the record is of no known kind or space, or incomplete.
    """
    try:
        kind, name = record["kind"], record["space"]
        if kind not in KINDS:
            raise RunError(f"unknown kind of posterior {kind!r}, {nearest(str(kind), KINDS)}")
        if space is None and (name not in SPACES or SPACES[name].open):
            raise RunError(f"the posterior is over a space {name!r} that is open or not built in; pass it as space=")
        posterior: ArchitecturePosterior = KINDS[kind].from_json(record, space or SPACES[name])
        return posterior
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"not a posterior record: {error!r}") from None
