"""How fast is a search on a card: steps against the published way, against the card's limits, and a whole search?

    python benchmarks/card.py                            every row, in the quarter of an hour that cards are lent for
    python benchmarks/card.py --compile                  the rows with compiled regions too
    python benchmarks/card.py --device cpu --short       that the rows can be measured, not how fast

Works take turns in one process, ten steps at a time, and the clock stops when the card has finished. The limits are a
product of matrices in the type of the step and a copy; a step needs at least the longer of FLOPs over the one and bytes
over the other, operation by operation. The search is BPNAS on CIFAR-10 (JPEG q75) to one operation per edge.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from records import measure
from steps import Case, in_turn

OUT = Path(__file__).parent / "results" / "card.json"
NETS: dict[str, dict[str, Any]] = {
    "nb201": {"space": "nb201", "sizes": {"channels": 16, "cells": 5}, "batch": 64, "rounds": 5},
    "darts": {"space": "darts", "sizes": {"channels": 16, "layers": 8}, "batch": 64, "rounds": 5},
}
SHORT: dict[str, dict[str, Any]] = {
    "nb201": {"space": "nb201", "sizes": {"channels": 4, "cells": 1}, "batch": 8, "rounds": 1},
}
STEPS = 10
"""Steps of one work."""
WAYS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, bf16": {"precision": "bf16"},
    "graphs": {"graphs": True},
    "graphs, bf16": {"graphs": True, "precision": "bf16"},
}


class Card:
    """Where it is measured.

    Args:
        name: cuda, cuda:N or cpu.
    """

    def __init__(self, name: str) -> None:
        import torch

        self.name, self.device = name, torch.device(name)
        self.is_card = self.device.type == "cuda"

    def done(self) -> None:
        """Wait until all work has ended."""
        import torch

        if self.is_card:
            torch.cuda.synchronize(self.device)

    def peak(self, work: Callable[[], Any]) -> float | None:
        """Return the most memory of tensors while a work runs, above what there was, MiB; None on a CPU."""
        import torch

        if not self.is_card:
            return None
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.done()
        return float(torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def ways(self, *, compiled: bool) -> dict[str, dict[str, Any]]:
        """Return the ways to compute that can be here."""
        ways = {name: how for name, how in WAYS.items() if self.is_card or "graphs" not in how}
        if compiled:
            ways |= {f"compiled {name}": {**how, "compile": True} for name, how in ways.items()}
        return ways


def again(step: Callable[[], Any]) -> Callable[[], None]:
    """Return a work of several steps."""

    def work() -> None:
        for _ in range(STEPS):
            step()

    return work


def step_row(given: Mapping[str, Any], card: Card, *, compiled: bool = False) -> dict[str, Any]:
    """Return our step in all ways against the published one in fp32, in time and memory."""
    base = Case(given, device=card.name)
    works, first, peaks = {"published": again(base.published())}, {}, {}
    for name, how in card.ways(compiled=compiled).items():
        case = Case(given, device=card.name)
        if how.get("compile"):
            case.net.compile_regions()
        works[name] = again(case.ours(**how))
    for name, work in works.items():
        began = time.perf_counter()
        peaks[name] = card.peak(work)
        card.done()
        first[name] = time.perf_counter() - began  # compiling and capturing
    found = in_turn(works, given["rounds"], "published", card.done)
    for row in found.values():
        row["seconds"], row["least"] = row["seconds"] / STEPS, row["least"] / STEPS
    return {"given": dict(given), "steps": found, "first": first, "peak_mib": peaks}


def limits_row(given: Mapping[str, Any], card: Card, *, short: bool) -> dict[str, Any]:
    """Return the least that a step needs by the card's limits, and what it takes."""
    import torch
    from roofline import ceilings, roofline

    found: dict[str, Any] = {}
    for name, how in card.ways(compiled=False).items():
        half = how.get("precision") == "bf16"
        like = torch.empty(0, device=card.device, dtype=torch.bfloat16 if half else torch.float32)
        limits = ceilings(*((64, 2**12) if short else (8192, 2**28)), like=like, done=card.done)
        seen = roofline(Case(given, device=card.name).ours(**{**how, "graphs": False}), limits)
        took = in_turn({"step": again(Case(given, device=card.name).ours(**how))}, given["rounds"], "step", card.done)
        least = sum(row["least"] for row in seen.values())
        found[name] = {"limits": limits, "least": least, "seconds": took["step"]["seconds"] / STEPS}
    return {"given": dict(given), "of": found}


def search_row(card: Card, *, short: bool) -> dict[str, Any]:
    """Return what a whole BPNAS search takes until every edge has one operation, compiling and capturing included."""
    import bayesarch as ba

    sets: dict[str, Any] = {"engine.precision": "bf16", "engine.graphs": card.is_card, "engine.closing_epochs": 1}
    with tempfile.TemporaryDirectory() as folder:
        if short:
            source, sizes = "digits", {"space.channels": 4, "engine.epochs": 1}
        else:
            from cifar_jpeg import convert

            source, sizes = f"{folder}/cifar10-jpeg.npz", {"space.channels": 16, "data.crop": 4, "data.flip": True}
            shared = os.environ.get("BAYESARCH_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
            convert(Path(shared) / "cifar10_jpegq75.npz", Path(source), train=50_000)
        began = time.perf_counter()
        words = {"device": card.name, "seed": 0, "set": {**sets, **sizes}, "out": f"{folder}/run"}
        run = ba.search(source, method="bpnas", limit=100 if short else None, **words)
        whole = time.perf_counter() - began
        epochs = [record for record in run.metrics if record["stage"] == "search"]
        return {
            "seconds": sum(record["seconds"] for record in epochs),
            "whole": whole,
            "epochs": len(epochs),
            "selection_accuracy": run.summary["selection_accuracy"],
            "settings": {**sets, **sizes},
        }


def main() -> None:
    """Measure, and write the record after each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", action="append")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    card, nets = Card(arguments.device), SHORT if arguments.short else NETS
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        name: partial(step_row, given, card, compiled=arguments.compile) for name, given in nets.items()
    }
    rows["limits"] = partial(limits_row, nets["nb201"], card, short=arguments.short)
    rows["search"] = partial(search_row, card, short=arguments.short)
    measure(rows, arguments.row or list(rows), arguments.out, arguments.device)


if __name__ == "__main__":
    main()
