"""Every run in a folder, and how it stands: what `status` lists."""

import os
import time
from pathlib import Path
from typing import Any

from bayesarch.errors import RunError
from bayesarch.runs import run_folders_in
from bayesarch.workflows.run import Run, open_run

__all__ = ["is_run", "overview"]


def is_run(path: str | os.PathLike[str]) -> bool:
    """Return whether a run lies there, and not a folder of runs."""
    return (Path(path) / "status.json").is_file()


def overview(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return a record per run in a folder and its sub-folders, the one that changed last at the end.

    Returns:
        `path`, `state` and `changed` (local time) of each run; `kind`, `of` (method and space, or what it is made of)
        and `data` of what can be read; `accuracy` and its `split` where there is one; `stage` and `epoch` of what is
        under way or broken off, and of repeats how many of their `runs` are `done`; `error` of what cannot be read.

    Raises:
        RunError: if there is no such folder, or no run in it.
    """
    if not Path(path).is_dir():
        raise RunError(f"no folder at {path}; name a run, or a folder that holds some")
    folders = run_folders_in(path)
    if not folders:
        raise RunError(f"no runs in {path}; a search writes one: bayesarch search --out {Path(path) / 'first'}")
    return [_row(folder) for folder in folders]


def _row(folder: Path) -> dict[str, Any]:
    changed = time.localtime((folder / "status.json").stat().st_mtime)
    row: dict[str, Any] = {"path": str(folder), "changed": time.strftime("%Y-%m-%d %H:%M:%S", changed)}
    try:
        run = open_run(folder)
        row |= {"state": run.status["state"]}
        if row["state"] != "finished" and run.metrics:
            row |= {"stage": run.metrics[-1]["stage"], "epoch": run.metrics[-1]["epoch"]}
        if run.folder.has("config.yaml"):
            row |= {"kind": _kind(run), "of": _of(run), "data": run.config["data"]["source"]}
            if row["kind"] == "repeats" and row["state"] != "finished":
                row |= {"done": _ended(folder), "runs": run.config["repeats"]}
        if run.folder.has("summary.json"):
            row |= _score(run)
    except (RunError, KeyError, TypeError) as error:  # one damaged run does not hide the others
        row |= {"state": "unreadable", "error": " ".join(str(error).split())}
    return row


def _ended(folder: Path) -> int:
    """Return how many of a repeated search's runs have ended."""
    return sum(open_run(each).status["state"] == "finished" for each in run_folders_in(folder / "repeats"))


def _kind(run: Run) -> str:
    kinds = {"training": run.is_training, "ensemble": run.is_ensemble, "compression": run.is_compression,
             "repeats": run.config.get("repeats", 1) > 1, "search": True}  # fmt: skip
    return next(kind for kind, fits in kinds.items() if fits)


def _of(run: Run) -> str:
    config = run.config
    if run.is_compression:
        return str(config["compress"]["method"])
    if run.is_ensemble:
        return f"{config['ensemble']['members']} from {config['ensemble']['candidates']}"
    if run.is_training:
        return str(config["space"]["name"])
    times = f"{config['repeats']} of " if config.get("repeats", 1) > 1 else ""
    return f"{times}{config['method']['name']} in {config['space']['name']}"


def _score(run: Run) -> dict[str, Any]:
    """Return the accuracy that the run's own table shows, and its split; nothing where it shows several."""
    summary = run.summary
    if run.is_ensemble:
        return {"accuracy": summary["rows"][0]["accuracy"]["value"], "split": "test"}
    if run.is_training or run.is_compression:
        return {"accuracy": summary["test"]["accuracy"], "split": "test"}
    if "runs" in summary:
        each = [row["selection_accuracy"] for row in summary["runs"]]
        return {"accuracy": sum(each) / len(each), "split": "selection"}
    return {"accuracy": summary["selection_accuracy"], "split": "selection"}
