"""Bayesian neural architecture search: labelled examples in, a posterior over architectures out.

    import bayesarch as ba
    run = ba.search("digits", out="runs/first")
    run.posterior.mode(); run.posterior.sample(5, seed=1)

Nothing heavy is imported until it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bayesarch.version import __version__ as __version__

if TYPE_CHECKING:
    from bayesarch.data import DATASETS as DATASETS
    from bayesarch.errors import BayesarchError as BayesarchError
    from bayesarch.estimator import BayesArchClassifier as BayesArchClassifier
    from bayesarch.methods import METHODS as METHODS
    from bayesarch.nets import build as build
    from bayesarch.nets import supernet_from as supernet_from
    from bayesarch.spaces import SPACES as SPACES
    from bayesarch.spaces import Architecture as Architecture
    from bayesarch.spaces import Choice as Choice
    from bayesarch.spaces import Space as Space
    from bayesarch.workflows.compare import compare as compare
    from bayesarch.workflows.compress import compress as compress
    from bayesarch.workflows.ensemble import ensemble as ensemble
    from bayesarch.workflows.evaluate import evaluate as evaluate
    from bayesarch.workflows.export import export as export
    from bayesarch.workflows.run import Run as Run
    from bayesarch.workflows.run import open_run as open_run
    from bayesarch.workflows.search import resume as resume
    from bayesarch.workflows.search import search as search
    from bayesarch.workflows.train import train as train
    from bayesarch.workflows.whole import run as run

_HOMES = {
    "Architecture": ("bayesarch.spaces", "Architecture"),
    "BayesArchClassifier": ("bayesarch.estimator", "BayesArchClassifier"),
    "BayesarchError": ("bayesarch.errors", "BayesarchError"),
    "Choice": ("bayesarch.spaces", "Choice"),
    "Run": ("bayesarch.workflows.run", "Run"),
    "Space": ("bayesarch.spaces", "Space"),
    "build": ("bayesarch.nets", "build"),
    "compare": ("bayesarch.workflows.compare", "compare"),
    "compress": ("bayesarch.workflows.compress", "compress"),
    "DATASETS": ("bayesarch.data", "DATASETS"),
    "ensemble": ("bayesarch.workflows.ensemble", "ensemble"),
    "evaluate": ("bayesarch.workflows.evaluate", "evaluate"),
    "export": ("bayesarch.workflows.export", "export"),
    "METHODS": ("bayesarch.methods", "METHODS"),
    "open_run": ("bayesarch.workflows.run", "open_run"),
    "resume": ("bayesarch.workflows.search", "resume"),
    "run": ("bayesarch.workflows.whole", "run"),
    "search": ("bayesarch.workflows.search", "search"),
    "SPACES": ("bayesarch.spaces", "SPACES"),
    "supernet_from": ("bayesarch.nets", "supernet_from"),
    "train": ("bayesarch.workflows.train", "train"),
}

__all__ = [
    "DATASETS",
    "METHODS",
    "SPACES",
    "Architecture",
    "BayesArchClassifier",
    "BayesarchError",
    "Choice",
    "Run",
    "Space",
    "__version__",
    "build",
    "compare",
    "compress",
    "ensemble",
    "evaluate",
    "export",
    "open_run",
    "resume",
    "run",
    "search",
    "supernet_from",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'bayesarch' has no attribute {name!r}")
    home, attribute = _HOMES[name]
    value = getattr(importlib.import_module(home), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
