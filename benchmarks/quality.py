"""How good is what each method finds, and at what cost: methods x seeds, one command, goes on where it broke off.

    python benchmarks/quality.py run --data digits --seeds 5 --out benchmarks/results/quality_digits.json
    python benchmarks/quality.py run --data cifar10-jpeg --seeds 3 --out benchmarks/results/quality_cifar10.json
    python benchmarks/quality.py page        (writes docs/results.md from the records)

Every unit is one `bayesarch search` in a process of its own under `--work`, which is where a broken benchmark goes on.
Random search gets as many epochs as make its forward MACs those of BPNAS. On CIFAR-10 (JPEG q75; 5,000 images, C = 8,
N = 1) cells are looked up in NAS-Bench-201's table when the search has ended.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from cifar_jpeg import convert
from results_page import write_page

import bayesarch as ba
from bayesarch.methods import METHODS
from bayesarch.methods.random_search import ranked_images
from bayesarch.nets import option_costs
from bayesarch.workflows.job import prepare
from bayesarch.workflows.lookup import look_up

SHARED = Path(os.environ.get("BAYESARCH_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
REFERENCE = "bpnas"
"""The method whose cost random search is given."""
TASKS = {
    "digits": {"data": "digits", "sets": {}, "what": "scikit-learn's digits, C = 16, N = 1"},
    "mnist": {
        "data": str(SHARED / "mnist.npz"),
        "limit": 6000,
        "sets": {},
        "what": "6,000 images of MNIST, C = 16, N = 1",
    },
    "cifar10-jpeg": {
        "data": "cifar10-jpeg.npz",
        "sets": {"space.channels": 8, "space.cells": 1, "data.flip": True, "data.crop": 4, "data.called": "cifar10"},
        "what": "5,000 images of CIFAR-10 (JPEG q75), C = 8, N = 1",
    },
}


def sets_of(task: dict, method: str, epochs: int) -> dict:
    """Return the settings of a unit; BPNAS ends by itself under its own cap, random search ranks at the end alone."""
    own = {REFERENCE: {}, "random": {"engine.epochs": epochs, "method.tried_per_epoch": 0}}
    return {**task["sets"], **own.get(method, {"engine.epochs": epochs})}


def matched_epochs(arguments: argparse.Namespace, task: dict) -> int:
    """Return the epochs in which random search spends the forward MACs that the reference's runs did on average."""
    runs = [row for (method, _), row in known_rows(arguments).items() if method == REFERENCE]
    spent = sum(row["forward_macs"] for row in runs) / len(runs)
    job = prepare(task["data"], method="random", limit=task.get("limit"), set=task["sets"])
    costs = option_costs(job.settings.space, job.settings.sizes, job.examples.input_shape, len(job.examples.classes))
    mean_option = [
        sum(costs.options[g].macs for g in columns) / len(columns)
        for columns in map(job.settings.space.columns, range(len(job.settings.space.choices)))
    ]
    images = spent / (costs.base.macs + sum(mean_option))
    sizes, batch = job.partition.sizes, job.settings.engine.batch_size
    ranked = ranked_images(job.settings.method.config, sizes["architecture"], batch)
    return max(1, round((images - ranked) / (sizes["weights"] // batch * batch)))


def folder_of(arguments: argparse.Namespace, method: str, seed: int) -> Path:
    """Return where a unit lies."""
    return arguments.work / f"{arguments.data}-{method}-s{seed}"


def command_of(arguments: argparse.Namespace, task: dict, method: str, seed: int, epochs: int) -> list[str]:
    """Return the command that starts or continues a unit."""
    folder, base = folder_of(arguments, method, seed), [sys.executable, "-m", "bayesarch"]
    if (folder / "config.yaml").exists():
        return [*base, "resume", str(folder), "--json"]
    sets = [part for k, v in sets_of(task, method, epochs).items() for part in ("--set", f"{k}={v}")]
    limit = ["--limit", str(task["limit"])] if "limit" in task else []
    return [*base, "search", "--data", task["data"], "--method", method, "--seed", str(seed), "--out", str(folder),
            *limit, *sets, "--json"]  # fmt: skip


def known_rows(arguments: argparse.Namespace) -> dict[tuple[str, int], dict]:
    """Return the rows of the record by (method, seed), those of units whose folders are gone included."""
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    return {(row["method"], row["seed"]): row for row in rows}


def finished(folder: Path) -> bool:
    """Return whether a unit has come to its end."""
    return (folder / "config.yaml").exists() and ba.open_run(folder).status.get("state") == "finished"


def settled_task(arguments: argparse.Namespace) -> dict:
    """Return the task, its data written where they have to be."""
    task = dict(TASKS[arguments.data])
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.data == "cifar10-jpeg":
        task["data"] = str(arguments.work / task["data"])
        if not Path(task["data"]).exists():
            convert(SHARED / "cifar10_jpegq75.npz", Path(task["data"]), train=5000)
    return task


def run(arguments: argparse.Namespace) -> None:
    """Bring all units to their end, random search last, and write the record after each."""
    task, methods = settled_task(arguments), arguments.methods.split(",")
    ordered = sorted(
        (m == "random", seed, place, m) for seed in range(arguments.seeds) for place, m in enumerate(methods)
    )
    units = [(method, seed) for _, seed, _, method in ordered]
    threads = str(max(1, (os.cpu_count() or 1) // arguments.parallel))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    running: dict[tuple[str, int], subprocess.Popen] = {}
    known = known_rows(arguments)
    waiting = [unit for unit in units if unit not in known and not finished(folder_of(arguments, *unit))]
    while waiting or running:
        reference_is_open = any(method == REFERENCE for method, _ in running)
        if waiting and len(running) < arguments.parallel and not (waiting[0][0] == "random" and reference_is_open):
            method, seed = waiting.pop(0)
            epochs = matched_epochs(arguments, task) if method == "random" else arguments.epochs
            command = command_of(arguments, task, method, seed, epochs)
            running[method, seed] = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        for unit in [unit for unit, process in running.items() if process.poll() is not None]:
            if running.pop(unit).returncode != 0:
                raise SystemExit(f"{unit} failed; see above")
            collect(arguments, task, units)
        time.sleep(0.5)
    collect(arguments, task, units)


def collect(arguments: argparse.Namespace, task: dict, units: list[tuple[str, int]]) -> None:
    """Write the record of all units that are finished."""
    before = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    rows, environment = known_rows(arguments), before.get("environment")
    table = SHARED / "nb201.parquet"
    for method, seed in units:
        folder = folder_of(arguments, method, seed)
        if not finished(folder):
            continue
        run = ba.open_run(folder)
        if arguments.data == "cifar10-jpeg" and table.exists() and run.lookup is None:
            look_up(run, f"nb201={table}")
        summary = run.summary
        environment = json.loads((folder / "environment.json").read_text())
        rows[method, seed] = {
            "method": method, "seed": seed, "cell": summary["cell"], "kind": summary["kind"],
            "selection_accuracy": summary["selection_accuracy"], "selection_n": summary["selection_n"],
            "epochs": summary["search_epochs"], "closing_epochs": summary["closing_epochs"],
            "seconds": summary["times"]["seconds"], "images": summary["images"],
            "forward_macs": summary["forward_macs"], "macs": summary["macs"], "params": summary["params"],
            "fired_by": summary.get("fired_by"), "processor": environment["processor"],
            "table": looked_up(run),
        }  # fmt: skip
    order = [*dict.fromkeys([*METHODS, *(method for method, _ in rows)])]
    record = {
        "task": task["what"],
        "command": f"python benchmarks/quality.py run --data {arguments.data} "
        f"--methods {','.join(sorted({method for method, _ in rows}, key=order.index))} --seeds {arguments.seeds} "
        f"--epochs {arguments.epochs} --parallel {arguments.parallel} --out {arguments.out}",
        "settings": task["sets"],
        "epochs_of_methods_that_use_all": arguments.epochs,
        "environment": environment,
        "remark": before.get("remark", ""),
        "rows": [rows[unit] for unit in sorted(rows, key=lambda unit: (unit[1], order.index(unit[0])))],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    part = arguments.out.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    part.replace(arguments.out)
    print(f"{sum(unit in rows for unit in units)} of {len(units)} units", flush=True)


def looked_up(run: ba.Run) -> dict:
    """Return what a table says of the found cell, by data set."""
    answers = [] if run.lookup is None else run.lookup["answers"]
    return {a["dataset"]: {k: a[k] for k in ("accuracy", "rank", "regret", "transfer")} for a in answers}


def main() -> None:
    """Read the arguments and go."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("run", "page"))
    parser.add_argument("--data", default="digits", choices=sorted(TASKS))
    parser.add_argument("--methods", default=",".join(name for name, entry in METHODS.items() if not entry.channels))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quality_digits.json"))
    arguments = parser.parse_args()
    run(arguments) if arguments.part == "run" else write_page()


if __name__ == "__main__":
    main()
