"""Formulas: pure functions of tensors. No module, no input or output, no global random state, no settings.

Every function here works in float64 on the CPU and is tested against a closed form, a naive version, autograd or an
extreme-value sweep. Symbols follow the papers and are explained where they are used.
"""

from bayesarch.functional.dirichlet import concentration as concentration
from bayesarch.functional.dirichlet import kl_to_uniform as kl_to_uniform
from bayesarch.functional.random import Streams as Streams
from bayesarch.functional.random import dirichlet_rsample as dirichlet_rsample
from bayesarch.functional.random import seeded as seeded
from bayesarch.functional.schedules import cosine as cosine
from bayesarch.functional.schedules import falling_steps as falling_steps
from bayesarch.functional.schedules import linear as linear
from bayesarch.functional.schedules import warm_restarts as warm_restarts
from bayesarch.functional.simplices import Simplices as Simplices

__all__ = [
    "Simplices",
    "Streams",
    "concentration",
    "cosine",
    "dirichlet_rsample",
    "falling_steps",
    "kl_to_uniform",
    "linear",
    "seeded",
    "warm_restarts",
]
