"""How fast is a search step now, against the same step at another commit?

    python benchmarks/against.py 94bbefc                  the three supernets of speed.py
    python benchmarks/against.py 94bbefc --row darts      one of them
    python benchmarks/against.py 94bbefc --fused          by kernels of ours, engine.fused
    python benchmarks/against.py df6da28 --row job        the default search on digits, from its start to its report

Each has a process of its own, from its own files; the two take turns, step by step or search by search. What is there
now is this working folder. Medians of the rounds' ratios, and their range. Nothing else should run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from records import measure
from speed import NETS, SHORT

from bayesarch.workflows.heap import TUNABLES
from bayesarch.workflows.waiting import wait_shortly

ROOT = Path(__file__).parents[1]
OUT = Path(__file__).parent / "results" / "against.json"
WORK = """
import json, sys, time
sys.path[:0] = [sys.argv[1] + "/src", sys.argv[1] + "/benchmarks"]
from steps import Case
given = json.loads(sys.argv[2])
fused = given.pop("fused", False)
case = Case(given)
if fused:
    case.net.fuse()
step = case.ours()
step()
print("ready", flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    step()
    print(time.perf_counter() - began, flush=True)
"""
"""What a process runs: a step whenever it is told to, and its seconds."""


class Stepper:
    """A process that takes steps by the code in a folder.

    Args:
        folder: a copy of the project.
        given: the supernet; and "fused", whether kernels of ours compute its sums.
    """

    def __init__(self, folder: Path, given: dict[str, Any]) -> None:
        words = [sys.executable, "-c", WORK, str(folder), json.dumps(given)]
        environment = dict(os.environ)
        wait_shortly(environment)
        environment["GLIBC_TUNABLES"] = TUNABLES
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )
        self._said()

    def __call__(self) -> float:
        """Return the seconds of one step."""
        assert self.process.stdin is not None
        print("go", file=self.process.stdin, flush=True)
        return float(self._said())

    def _said(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError("the process ended; its error is above")
        return line

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def row(given: dict[str, Any], before: Path, commit: str, rounds: int) -> dict[str, Any]:
    """Return seconds of both, and by how much the step has become faster."""
    steppers = {"before": Stepper(before, given), "now": Stepper(ROOT, given)}
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    try:
        for _ in range(rounds):
            for name, step in steppers.items():
                seconds[name].append(step())
                time.sleep(0.1)  # its threads go to sleep
    finally:
        for step in steppers.values():
            step.close()
    return {"given": given, **_compared(seconds, commit)}


def job_row(before: Path, commit: str, rounds: int) -> dict[str, Any]:
    """Return seconds of the default search on digits, and by how much it has become faster."""
    seconds: dict[str, list[float]] = {"before": [], "now": []}
    for _ in range(rounds):
        for name, folder in (("before", before), ("now", ROOT)):
            with tempfile.TemporaryDirectory() as out:
                words = [sys.executable, "-m", "bayesarch", "search", "--out", f"{out}/run"]
                began = time.perf_counter()
                subprocess.run(
                    words, env={**os.environ, "PYTHONPATH": f"{folder}/src"}, check=True, capture_output=True
                )
                seconds[name].append(time.perf_counter() - began)
    return _compared(seconds, commit)


def _compared(seconds: dict[str, list[float]], commit: str) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(seconds["before"], seconds["now"], strict=True)]
    return {
        "before": commit,
        "rounds": len(ratios),
        "seconds": {name: statistics.median(mine) for name, mine in seconds.items()},
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def main() -> None:
    """Measure, and write the record after each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--row", action="append")
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=OUT)
    told = parser.parse_args()
    nets = {name: {**given, "fused": told.fused} for name, given in (SHORT if told.short else NETS).items()}
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", str(before), told.commit], cwd=ROOT, check=True)
        try:
            rows = {name: partial(row, given, before, told.commit, told.rounds) for name, given in nets.items()}
            measure(
                rows | {"job": partial(job_row, before, told.commit, told.rounds)}, told.row or list(nets), told.out
            )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(before)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
