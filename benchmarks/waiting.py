"""How threads that wait for one another should do so: asleep, looking shortly first, or spinning; alone and in company.

Part of `machine.py`: `python benchmarks/machine.py --row waiting`. OpenMP reads how once in a process, so that each
step has a process of its own; ways take turns.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from steps import Case

from bayesarch.workflows.waiting import WAITING, wait_shortly

__all__ = ["WAYS", "environment", "waiting_row"]

WAYS: dict[str, dict[str, str]] = {
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "shortly": {},
    "active": {"OMP_WAIT_POLICY": "ACTIVE"},
}
"""Names of ways to wait, and what says so; nothing: as commands of ours say."""
NETS: dict[str, dict[str, Any]] = {
    "nb201": {"space": "nb201", "sizes": {"channels": 16, "cells": 5}, "batch": 64},
    "darts": {"space": "darts", "sizes": {"channels": 16, "layers": 5}, "batch": 64},
}
PLACES = {"alone": ("ours", False), "company": ("ours", True), "published": ("published", False)}
"""Where it is measured: whose step, and whether beside another process."""
SHORT: dict[str, dict[str, Any]] = {"nb201": {"space": "nb201", "sizes": {"channels": 4, "cells": 1}, "batch": 16}}


def environment(way: str) -> dict[str, str]:
    """Return the environment of a process whose threads wait in a way."""
    found = {key: value for key, value in os.environ.items() if key not in WAITING}
    found |= WAYS[way]
    wait_shortly(found)
    return found


@contextmanager
def company() -> Iterator[None]:
    """One other process that never rests, as long as the block lasts."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def waiting_row(short: bool) -> dict[str, Any]:
    """Return seconds of our step in each way to wait, alone and beside a busy process, and of the published one."""
    found: dict[str, Any] = {}
    for name, given in (SHORT if short else NETS).items():
        times: dict[str, dict[str, list[float]]] = {place: {way: [] for way in WAYS} for place in PLACES}
        for _ in range(1 if short else 3):
            for place, (step, busy) in PLACES.items():
                for way, mine in times[place].items():
                    with company() if busy else nullcontext():
                        mine.append(_step(given, way, step))
        found[name] = {
            place: {way: {"seconds": statistics.median(mine), "all": mine} for way, mine in lists.items()}
            for place, lists in times.items()
        }
    return {"of": found}


def _step(given: dict[str, Any], way: str, step: str) -> float:
    command = [sys.executable, __file__, json.dumps(given), step]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(way))
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print the seconds of the second step, ours or published, of a network that the command line describes."""
    import torch

    torch.set_num_threads(2)
    case = Case(json.loads(sys.argv[1]))
    step = case.published() if sys.argv[2] == "published" else case.ours()
    step()
    began = time.perf_counter()
    step()
    print(time.perf_counter() - began)


if __name__ == "__main__":
    main()
