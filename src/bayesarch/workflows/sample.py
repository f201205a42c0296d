"""`sample`: architectures drawn from a run's posterior, with their cost."""

import os
from typing import Any

from bayesarch.nets import architecture_cost, tidy_sizes
from bayesarch.workflows.run import open_run

__all__ = ["sample"]


def sample(path: str | os.PathLike[str], n: int, *, seed: int) -> list[dict[str, Any]]:
    """Return n draws from the posterior of a run: notation, digest, log probability, parameters, MACs.

    Args:
        path: the run folder.
        n: number of draws; equal draws are kept.
        seed: decides the draws.

    Raises:
        RunError: if the run is not finished.
    """
    run = open_run(path)
    sizes = tidy_sizes(run.posterior.space, {k: v for k, v in run.config["space"].items() if k != "name"})
    shape, classes = tuple(run.data["input_shape"]), len(run.data["classes"])
    rows = []
    for arch in run.posterior.sample(n, seed=seed):
        cost = architecture_cost(arch, sizes=sizes, input_shape=shape, classes=classes)
        rows.append(
            {
                "architecture": str(arch),
                "digest": arch.digest,
                "log_weight": run.posterior.log_prob(arch),
                "params": cost.params,
                "macs": cost.macs,
            }
        )
    return rows
