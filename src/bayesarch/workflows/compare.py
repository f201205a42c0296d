"""`compare RUN RUN ...`: quality beside cost, paired by seed, with intervals, and who is not beaten in both."""

import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayesarch.errors import ConfigError
from bayesarch.report import write_comparison
from bayesarch.workflows.compare_answers import compare_answers
from bayesarch.workflows.repeats import child_runs
from bayesarch.workflows.run import Run, open_run

__all__ = ["compare", "difference", "interval", "pareto"]

LEVEL = 0.9
"""Probability inside every interval given here."""


@dataclass(frozen=True)
class Interval:
    """A mean over n runs with its Student-t interval; NaN ends where n is 1."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float], *, level: float = LEVEL) -> Interval:
    """Return the mean of independent values and its Student-t interval."""
    from scipy.stats import t  # scikit-learn brings it

    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    half = float(t.ppf(0.5 + level / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def difference(a: dict[int, float], b: dict[int, float], *, level: float = LEVEL) -> tuple[Interval, bool]:
    """Return the mean of a - b with its interval, and whether it is paired.

    Paired over the seeds that both have where those are at least two (runs of one seed share their splits and, for
    methods that draw alike, their batches); otherwise unpaired, by Welch's interval.

    Args:
        a: values by seed.
        b: values by seed.
        level: probability inside.
    """
    shared = sorted(a.keys() & b.keys())
    if len(shared) >= 2:
        return interval([a[seed] - b[seed] for seed in shared], level=level), True
    from scipy.stats import t

    mean = statistics.fmean(a.values()) - statistics.fmean(b.values())
    if len(a) < 2 or len(b) < 2:
        return Interval(mean, math.nan, math.nan, min(len(a), len(b))), False
    parts = [statistics.variance(x.values()) / len(x) for x in (a, b)]
    spread = sum(parts)
    if spread == 0:
        return Interval(mean, mean, mean, min(len(a), len(b))), False
    freedom = spread**2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (a, b), strict=True))
    half = float(t.ppf(0.5 + level / 2, freedom)) * math.sqrt(spread)
    return Interval(mean, mean - half, mean + half, min(len(a), len(b))), False


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return, for each (cost, quality), whether no other point is as cheap and as good and better in one of them."""
    return [not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)
            for cost, quality in points]  # fmt: skip


def compare(
    paths: Sequence[str | os.PathLike[str] | Run], *, out: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Return groups of runs of one kind side by side, the first being what the others are set against.

    Searches are compared on the selection split, paired by seed. Where a training or an ensemble is among them, all are
    compared by their answers on the test split, paired by example (`compare_answers`).

    Args:
        paths: finished run folders; repeated ones stand for all their runs.
        out: an HTML page with the table and pictures to write; None: none.

    Raises:
        ConfigError: if there are fewer than two runs, or they were not scored on the same examples.
        RunError: if a run is not finished.
    """
    runs = [run for path in paths for run in (lambda opened: child_runs(opened) or [opened])(open_run(path))]
    if len(runs) < 2:
        raise ConfigError(f"compare needs at least two finished runs; got {len(runs)}")
    if not all(run.is_search for run in runs):
        return compare_answers(runs, out=out)
    prints = {run.data["fingerprint"]["selection"] + run.data["fingerprint"]["content"] for run in runs}
    if len(prints) > 1:
        raise ConfigError(
            "these runs were scored on different examples, so their numbers cannot be compared: "
            + ", ".join(f"{run.path} ({run.config['data']['source']})" for run in runs[:4])
        )
    rows = [_row(run) for run in runs]
    labels = _labels(runs)
    for row, label in zip(rows, labels, strict=True):
        row["group"] = label
    names = list(dict.fromkeys(labels))
    metric = runs[0].summary["metric"]
    first = {row["seed"]: row["quality"] for row in rows if row["group"] == names[0]}
    groups = [_group(name, [row for row in rows if row["group"] == name], first) for name in names]
    for cost in ("macs", "seconds"):
        front = pareto([(group[cost], group["quality"]["mean"]) for group in groups])
        for group, best in zip(groups, front, strict=True):
            group[f"pareto_{cost}"] = best
    record = {
        "metric": metric,
        "n_selection": runs[0].summary["selection_n"],
        "level": LEVEL,
        "groups": groups,
        "runs": rows,
        "datasets": sorted({dataset for row in rows for dataset in row["table"]}),
    }
    if out is not None:
        write_comparison(Path(out), record)
    return record


def _row(run: Run) -> dict[str, Any]:
    """Return one run's numbers."""
    summary, lookup = run.summary, run.lookup
    return {
        "path": run.path,
        "method": summary["method"],
        "seed": run.config["seed"],
        "cell": summary["cell"],
        "quality": summary["metric_value"],
        "macs": summary["macs"],
        "params": summary["params"],
        "seconds": summary["times"]["seconds"],
        "images": summary["images"],
        "forward_macs": summary["forward_macs"],
        "epochs": summary["search_epochs"],
        "table": {} if lookup is None else {a["dataset"]: a for a in lookup["answers"]},
    }


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return a label per run: the method, and behind it every setting in which runs of that method differ."""

    def flat(run: Run) -> dict[str, Any]:
        sections = {k: v for k, v in run.config.items() if isinstance(v, dict)}
        return {f"{s}.{k}": v for s, fields in sections.items() for k, v in fields.items()
                if (s, k) not in (("data", "bootstrap"), ("method", "name"))}  # fmt: skip

    labels = []
    for run in runs:
        alike = [flat(other) for other in runs if other.summary["method"] == run.summary["method"]]
        mine = flat(run)
        differing = sorted(k for k in mine if any(other.get(k) != mine[k] for other in alike))
        labels.append(" ".join([run.summary["method"], *(f"{k}={mine[k]}" for k in differing)]))
    return labels


def _group(name: str, rows: Sequence[dict[str, Any]], first: dict[int, float]) -> dict[str, Any]:
    """Return a group's means, its difference to the first group, and its table look-ups."""
    gap, paired = difference({row["seed"]: row["quality"] for row in rows}, first)
    datasets = sorted({dataset for row in rows for dataset in row["table"]})
    return {
        "name": name,
        "n": len(rows),
        "quality": vars(interval([row["quality"] for row in rows])),
        "difference": {**vars(gap), "paired": paired},
        **{
            key: statistics.fmean(row[key] for row in rows)
            for key in ("macs", "params", "seconds", "images", "forward_macs", "epochs")
        },
        "distinct_cells": len({row["cell"] for row in rows}),
        "table": {d: _looked_up([row["table"][d] for row in rows if d in row["table"]]) for d in datasets},
    }


def _looked_up(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean accuracy and regret of a group's cells in a table."""
    return {
        "accuracy": vars(interval([answer["accuracy"] for answer in answers])),
        "regret": vars(interval([answer["regret"] for answer in answers])),
        "transfer": all(answer["transfer"] for answer in answers),
    }
