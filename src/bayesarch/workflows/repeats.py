"""`search --repeats R`: the same search R times, each with its own seed and its own bootstrap of the two halves.

How often an option recurs over such runs is the honest form of "how sure is the search": it needs no assumption on what
a single run's weights mean, and it comes with an interval. Runs are processes of their own, so many at a time, each in
a run folder of its own that can be looked at and resumed like any other:

    OUT/repeats/000/ ... OUT/repeats/019/      the runs
    OUT/posterior.json, summary.json, report.html   their union
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bayesarch.data import Examples
from bayesarch.nets import architecture_cost
from bayesarch.posteriors import Listed, word
from bayesarch.report import write_repeats_report
from bayesarch.runs import RunFolder, write_arrays
from bayesarch.workflows.config import Settings
from bayesarch.workflows.job import Job
from bayesarch.workflows.outcome import outcome
from bayesarch.workflows.processes import at_once, run_folders
from bayesarch.workflows.run import Run, open_run
from bayesarch.workflows.signals import stop_on_signal
from bayesarch.workflows.summary import collapse_warnings, edge_base

__all__ = ["child_paths", "child_record", "child_runs", "keep_examples", "prepare_children", "repeat"]


def child_paths(folder: RunFolder, repeats: int) -> list[Path]:
    """Return where the runs of a repeated search lie."""
    return [folder.path / "repeats" / f"{i:03d}" for i in range(repeats)]


def child_record(record: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return the settings of run `index` (0, 1, ...): its own seed and bootstrap, counted from the first seed."""
    seed = record["seed"] + index
    return {**record, "seed": seed, "repeats": 1, "data": {**record["data"], "bootstrap": seed}}


def child_runs(run: Run) -> list[Run]:
    """Return the runs of a repeated search; none for a single one."""
    repeats = run.config.get("repeats", 1)
    return [open_run(path) for path in child_paths(run.folder, repeats)] if repeats > 1 else []


def prepare_children(folder: RunFolder, record: dict[str, Any], data: Any, examples: Examples) -> None:
    """Write the run folders, each with its settings and nothing done yet; arrays are kept beside them once."""
    if not isinstance(data, str | os.PathLike | None):
        record = {**record, "data": {**record["data"], **keep_examples(folder, examples)}}
    for index, path in enumerate(child_paths(folder, record["repeats"])):
        RunFolder.create(path).write_config(child_record(record, index))


def keep_examples(folder: RunFolder, examples: Examples) -> dict[str, Any]:
    """Write examples that came as arrays into a run folder, and return the settings that read them back."""
    arrays = {"x_train": examples.images, "y_train": examples.labels, "classes": np.array(examples.classes)}
    for name, short in (("test", "test"), ("selection", "valid")):
        if name in examples.given:
            arrays[f"x_{short}"], arrays[f"y_{short}"] = examples.given[name]
    path = folder.path / "examples.npz"
    write_arrays(path, arrays)
    return {"source": str(path), "layout": "hwc"}


def repeat(
    job: Job,
    folder: RunFolder,
    *,
    parallel: int | None,
    on_repeats: Callable[[int, int, int], None],
    device: str | None = None,
) -> Run:
    """Bring the repeats to their end and write their union.

    Args:
        job: the search, as the first of them would be.
        folder: where `prepare_children` wrote them.
        parallel: so many at a time; None: one per core, or one on a GPU.
        on_repeats: told (finished, running, of) whenever that changes.
        device: another device than they were made for, or None.

    Raises:
        Interrupted: when SIGINT or SIGTERM asked to stop; the runs have saved their places.
        RunError: if one of them fails.
    """
    settings, started, stop = job.settings, time.time(), threading.Event()

    def on_change(done: int, running: int) -> None:
        folder.write_status(state="running", stage="repeats", done=done, of=settings.repeats, pid=os.getpid())
        on_repeats(done, running, settings.repeats)

    with outcome(folder, "repeats", f"repeats: {settings.repeats}"):
        with stop_on_signal(stop):
            run_folders(
                child_paths(folder, settings.repeats),
                parallel=at_once(parallel, job.device.type, settings.repeats),
                device=device,
                stop=stop,
                on_change=on_change,
            )
        _collect(folder, settings, seconds=time.time() - started)
    return Run(folder, settings.space)


def _collect(folder: RunFolder, settings: Settings, *, seconds: float) -> None:
    """Write the union of finished runs: posterior, summary, report."""
    runs = [open_run(path) for path in child_paths(folder, settings.repeats)]
    posterior = Listed.recurrence([run.architecture for run in runs])
    folder.write_json("data.json", {**runs[0].data, "bootstrap": "each run has its own"})
    folder.write_json("posterior.json", posterior.to_json())
    mode = posterior.mode()
    folder.write_json("architectures/found.json", {**mode.to_json(), "string": str(mode), "digest": mode.digest})
    cost = architecture_cost(
        mode,
        sizes=settings.sizes,
        input_shape=tuple(runs[0].data["input_shape"]),
        classes=len(runs[0].data["classes"]),
    )
    folder.write_json(
        "summary.json",
        {
            "repeats": len(runs),
            "cell": str(mode),
            "votes": sum(run.architecture == mode for run in runs),
            "digest": mode.digest,
            "method": settings.method.name,
            "space": settings.space.name,
            "cite": settings.method.cite,
            "kind": posterior.kind,
            "word": word(posterior),
            "edges": _edge_rows(posterior, runs),
            "params": cost.params,
            "macs": cost.macs,
            "distinct_cells": len(posterior.members),
            "distinct_functions": len({run.architecture.canonical for run in runs}),
            "entropy": posterior.entropy(),
            "runs": [_run_row(run) for run in runs],
            "warnings": collapse_warnings(mode),
            "times": {"seconds_of_this_process": seconds, "seconds": sum(r.summary["times"]["seconds"] for r in runs)},
        },
    )
    write_repeats_report(folder)


def _edge_rows(posterior: Listed, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one row per choice: every option's share of runs with its interval, and in how many it was inactive."""
    table, intervals, mode = posterior.weights(), posterior.intervals(), posterior.mode()
    return [
        {
            **edge_base(mode, position),
            "inactive_runs": sum(position in run.architecture.inactive for run in runs),
            "shares": {
                option: {"share": table[choice.name][option], "interval_90": list(intervals[choice.name][option])}
                for option in choice.options
            },
        }
        for position, choice in enumerate(posterior.space.choices)
    ]


def _run_row(run: Run) -> dict[str, Any]:
    summary = run.summary
    return {
        "seed": run.config["seed"],
        "cell": summary["cell"],
        "selection_accuracy": summary["selection_accuracy"],
        "selection_loss": summary["selection_loss"],
        "macs": summary["macs"],
        "params": summary["params"],
        "search_epochs": summary["search_epochs"],
        "seconds": summary["times"]["seconds"],
    }
