"""`compare` for runs that answer: ensembles, trainings and searches that were evaluated, paired by test example."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bayesarch.errors import ConfigError
from bayesarch.functional import uncertainty as un
from bayesarch.report import write_answers
from bayesarch.workflows.run import Run

__all__ = ["compare_answers"]

LEVEL = 0.9


def compare_answers(runs: Sequence[Run], *, out: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return evaluated runs side by side on the test split, each against the first by paired bootstrap over examples.

    Args:
        runs: evaluated on the same test examples.
        out: an HTML page to write; None: none.

    Raises:
        ConfigError: if one has not been evaluated, or on other examples.
    """
    missing = [run.path for run in runs if not run.folder.has("predictions.npz")]
    if missing:
        raise ConfigError(f"{missing[0]} has not been evaluated: bayesarch evaluate {missing[0]}")
    prints = {run.data["fingerprint"]["test"] + run.data["fingerprint"]["content"] for run in runs}
    if len(prints) > 1:
        raise ConfigError("these runs were evaluated on different test examples, so they cannot be compared")
    answers = []
    for run in runs:
        with np.load(run.folder.path / "predictions.npz", allow_pickle=False) as kept:
            answers.append((kept["p"].astype(np.float64), kept["y"]))
    y = answers[0][1]
    rows = [_row(run, p, y, answers[0][0]) for run, (p, _) in zip(runs, answers, strict=True)]
    record = {"kind": "answers", "n": len(y), "level": LEVEL, "rows": rows}
    if out is not None:
        write_answers(Path(out), record)
    return record


def _row(run: Run, p: np.ndarray, y: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    """Return a run's scores, cost, and differences to the first in accuracy and loss."""
    costs = {row["name"]: row for row in run.folder.read_json("evaluation.json")["costs"]}
    cost = costs.get("all members") or costs["network"]
    row: dict[str, Any] = {
        "path": run.path,
        "members": len(run.members),
        "brier": un.brier(p, y),
        "ece": un.calibration_error(p, y),
        "params": cost["params"],
        "macs": cost["macs"],
    }
    for key, measure in (("accuracy", un.accuracy), ("nll", un.nll)):
        low, high = un.bootstrap(lambda i, m=measure: m(p[i], y[i]), len(y), level=LEVEL)  # type: ignore[misc]
        mean, below, above = un.paired_bootstrap(
            lambda i, m=measure: m(p[i], y[i]),  # type: ignore[misc]
            lambda i, m=measure: m(first[i], y[i]),  # type: ignore[misc]
            len(y),
            level=LEVEL,
        )
        row[key] = {"value": measure(p, y), "low": low, "high": high}
        row[f"{key}_difference"] = {"value": mean, "low": below, "high": above}
    return row
