"""How beliefs are updated: one file per method, formulas in `functional/`.

To add a method: copy `drnas.py`, keep the protocol of `engine/method.py`, add a line to `METHODS`, and run
`bayesarch.testing.check_method` on it. Nothing in the engine, the networks or the command line needs an edit.
"""

from typing import Any, NamedTuple

from bayesarch.config import Config
from bayesarch.methods.bpnas import BPNAS as BPNAS
from bayesarch.methods.bpnas import BPNASConfig as BPNASConfig
from bayesarch.methods.darts import DARTS as DARTS
from bayesarch.methods.darts import DARTSConfig as DARTSConfig
from bayesarch.methods.drnas import DrNAS as DrNAS
from bayesarch.methods.drnas import DrNASConfig as DrNASConfig

__all__ = ["BPNAS", "DARTS", "METHODS", "BPNASConfig", "DARTSConfig", "DrNAS", "DrNASConfig", "Entry"]


class Entry(NamedTuple):
    """A method's class, made as `make(space, config)`, and its settings."""

    make: Any
    config: type[Config]


METHODS: dict[str, Entry] = {
    "bpnas": Entry(BPNAS, BPNASConfig),
    "drnas": Entry(DrNAS, DrNASConfig),
    "darts": Entry(DARTS, DARTSConfig),
}
"""Every method that can be asked for by name."""
