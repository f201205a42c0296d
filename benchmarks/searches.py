"""Whole searches, against as many steps of the published kind as 100 epochs have.

After every epoch of a search a published step and one of our DrNAS are timed in the same process, each the second of
two: a machine's speed wavers by more over half an hour than what is to be measured.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from steps import Case

__all__ = ["SEARCHES", "search_row"]

GIVEN = {"space": "nb201", "sizes": {"channels": 8, "cells": 1}, "batch": 64}
SHORT = {"space": "nb201", "sizes": {"channels": 4, "cells": 1}, "batch": 8}
SEARCHES: dict[str, dict[str, Any]] = {
    "BPNAS": {},
    "BPNAS, fused": {"engine.fused": True},
    "BPNAS, fused, bf16": {"engine.fused": True, "engine.precision": "bf16"},
}
PUBLISHED_EPOCHS = 100


def search_row(names: Sequence[str], *, short: bool) -> dict[str, Any]:
    """Return whole BPNAS searches, as in the quality run, against 100 epochs of the published step and of our DrNAS.

    A search is run from its start to one operation on every edge, its closing epochs left out, compiling its kernels
    included. The two of 100 epochs are the median of the steps taken in turn with its epochs, times their number.

    Args:
        names: of `SEARCHES`.
        short: whether the smallest will do.
    """
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {} if short else {"XDG_CACHE_HOME": folder}):
        sets: dict[str, Any] = {"space.channels": 8, "space.cells": 1, "data.crop": 4, "data.flip": True}
        source = f"{folder}/cifar10-jpeg.npz"
        if short:
            source = "digits"
            sets = {"space.channels": 4, "engine.epochs": 1, "engine.closing_epochs": 1, "data.limit": 300}
        else:
            from cifar_jpeg import convert

            shared = os.environ.get("BAYESARCH_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
            convert(Path(shared) / "cifar10_jpegq75.npz", Path(source), train=5000)
        given = SHORT if short else GIVEN
        found = {name: _searched(source, sets, name, f"{folder}/{name}", given) for name in names}
    return {"given": given, "searches": found}


def _searched(source: str, sets: Mapping[str, Any], name: str, out: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a BPNAS search took until all edges had one operation, and what the others would have taken."""
    import torch

    import bayesarch as ba
    from bayesarch.engine import EngineConfig
    from bayesarch.engine.compiling import check_ways
    from bayesarch.nets.kernels import library
    from bayesarch.workflows.search import Listener

    sets = {**sets, **SEARCHES[name]}
    case = Case(given)
    others = {"published": case.published(), "ours, drnas": case.ours("drnas")}
    times: dict[str, list[float]] = {other: [] for other in others}
    for step in others.values():
        step()
    began = time.perf_counter()
    if sets.get("engine.fused"):
        library.cache_clear()
        way = {key.removeprefix("engine."): value for key, value in sets.items() if key.startswith("engine.")}
        check_ways(EngineConfig(**way), torch.device("cpu"))
    compiling = time.perf_counter() - began

    def on_round(record: Mapping[str, Any]) -> None:
        for other, step in others.items() if record["stage"] == "search" else ():
            step()  # what comes after other work has to fetch its memory first
            times[other].append(_seconds(step))

    run = ba.search(source, method="bpnas", seed=0, set=sets, out=out, listener=Listener(on_round=on_round))
    epochs = [record for record in run.metrics if record["stage"] == "search"]
    count = PUBLISHED_EPOCHS * (run.data["sizes"]["weights"] // given["batch"])
    return {
        "epochs": len(epochs),
        "seconds": compiling + sum(record["seconds"] for record in epochs),
        "compiling": compiling,
        "selection_accuracy": run.summary["selection_accuracy"],
        "steps": {
            other: {"seconds": statistics.median(mine), "least": min(mine), "most": max(mine)}
            for other, mine in times.items()
        },
        "others": {other: count * statistics.median(mine) for other, mine in times.items()},
    }


def _seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
