"""Ensembles: whom to train, whom to keep, how to mix and calibrate them.

To add a way to choose candidates: one function in `sources.py` and one line in `SOURCES`.
"""

from bayesarch.ensembles.mixing import Mixture as Mixture
from bayesarch.ensembles.mixing import Scaling as Scaling
from bayesarch.ensembles.mixing import fit_mixture as fit_mixture
from bayesarch.ensembles.restarts import SharedSupernet as SharedSupernet
from bayesarch.ensembles.restarts import restart as restart
from bayesarch.ensembles.selection import SELECTIONS as SELECTIONS
from bayesarch.ensembles.selection import Chosen as Chosen
from bayesarch.ensembles.selection import Selection as Selection
from bayesarch.ensembles.selection import stacked_weights as stacked_weights
from bayesarch.ensembles.sources import SOURCES as SOURCES
from bayesarch.ensembles.sources import Source as Source
from bayesarch.ensembles.sources import Task as Task
from bayesarch.ensembles.sources import Trained as Trained
from bayesarch.ensembles.sources import mutate as mutate

__all__ = [
    "SELECTIONS",
    "SOURCES",
    "Chosen",
    "Mixture",
    "Scaling",
    "Selection",
    "SharedSupernet",
    "Source",
    "Task",
    "Trained",
    "fit_mixture",
    "mutate",
    "restart",
    "stacked_weights",
]
