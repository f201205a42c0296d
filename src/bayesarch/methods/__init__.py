"""How beliefs are updated: one file per method, formulas in `functional/`.

To add a method: copy `drnas.py` (the whole protocol) or `darts.py` (mixing weights under a rule of your own), add a
line to `METHODS`, and run `bayesarch.testing.check_method` on it. Nothing in the engine, the networks or the command
line needs an edit.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from bayesarch.config import Config
from bayesarch.methods.bayesnas import BayesNAS as BayesNAS
from bayesarch.methods.bayesnas import BayesNASConfig as BayesNASConfig
from bayesarch.methods.bpnas import BPNAS as BPNAS
from bayesarch.methods.bpnas import BPNASConfig as BPNASConfig
from bayesarch.methods.darts import DARTSConfig as DARTSConfig
from bayesarch.methods.darts import darts as darts
from bayesarch.methods.darts_second import SecondOrderConfig as SecondOrderConfig
from bayesarch.methods.darts_second import darts_second_order as darts_second_order
from bayesarch.methods.drnas import DrNAS as DrNAS
from bayesarch.methods.drnas import DrNASConfig as DrNASConfig
from bayesarch.methods.drnas_progressive import DrNASProgressive as DrNASProgressive
from bayesarch.methods.drnas_progressive import DrNASProgressiveConfig as DrNASProgressiveConfig
from bayesarch.methods.gdas import GDASConfig as GDASConfig
from bayesarch.methods.gdas import gdas as gdas
from bayesarch.methods.nesbs import NESBSConfig as NESBSConfig
from bayesarch.methods.nesbs import nesbs as nesbs
from bayesarch.methods.pcdarts import PCDARTSConfig as PCDARTSConfig
from bayesarch.methods.pcdarts import pcdarts as pcdarts
from bayesarch.methods.pgnas import PGNAS as PGNAS
from bayesarch.methods.pgnas import PGNASConfig as PGNASConfig
from bayesarch.methods.random_search import RandomSearch as RandomSearch
from bayesarch.methods.random_search import RandomSearchConfig as RandomSearchConfig
from bayesarch.methods.snas import SNASConfig as SNASConfig
from bayesarch.methods.snas import snas as snas

__all__ = [
    "BPNAS",
    "METHODS",
    "PGNAS",
    "BPNASConfig",
    "BayesNAS",
    "BayesNASConfig",
    "DARTSConfig",
    "DrNAS",
    "DrNASConfig",
    "DrNASProgressive",
    "DrNASProgressiveConfig",
    "Entry",
    "GDASConfig",
    "NESBSConfig",
    "PCDARTSConfig",
    "PGNASConfig",
    "RandomSearch",
    "RandomSearchConfig",
    "SNASConfig",
    "SecondOrderConfig",
    "darts",
    "darts_second_order",
    "gdas",
    "nesbs",
    "pcdarts",
    "snas",
]


class Entry(NamedTuple):
    """What makes a method, called as `make(space, config)`, and its settings."""

    make: Callable[..., Any]
    config: type[Config]
    channels: bool = False
    """Whether it decides on the channels of a network and not on the operations of a cell. What it finds is then final:
    the weights that were trained are the network's own, and the test split is read once, when all is decided."""
    defaults: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    """Settings of other sections that it starts from, where the user says nothing."""


METHODS: dict[str, Entry] = {
    # where an edge keeps one option, all others that the evidence left go at once: the weights need longer after it
    "bayesnas": Entry(BayesNAS, BayesNASConfig, defaults={"engine": {"closing_epochs": 10}}),
    "bpnas": Entry(BPNAS, BPNASConfig),
    "drnas": Entry(DrNAS, DrNASConfig),
    "drnas-progressive": Entry(DrNASProgressive, DrNASProgressiveConfig),
    "darts": Entry(darts, DARTSConfig),
    "darts-2nd": Entry(darts_second_order, SecondOrderConfig),
    "gdas": Entry(gdas, GDASConfig),
    "snas": Entry(snas, SNASConfig),
    "pcdarts": Entry(pcdarts, PCDARTSConfig),
    "pgnas": Entry(
        PGNAS,
        PGNASConfig,
        channels=True,
        defaults={
            # the KL stands for the decay of weights; the winner keeps weights and statistics as they were trained
            "engine": {
                "epochs": 30,
                "weight_decay": 0.0,
                "nesterov": True,
                "closing_epochs": 0,
                "recalibrate": False,
            },
            # one descent trains everything: what ranks candidates (architecture) and what reports may be small
            "data": {"fractions": (0.7, 0.1, 0.1, 0.1)},
        },
    ),
    "nesbs": Entry(nesbs, NESBSConfig),
    "random": Entry(RandomSearch, RandomSearchConfig),
}
"""Every method that can be asked for by name."""
