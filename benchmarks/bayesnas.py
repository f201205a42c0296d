r"""BayesNAS on small data: does the prior do the work, what does each setting do, and what does a step cost.

    python benchmarks/bayesnas.py prior --seeds 5 --out benchmarks/results/bayesnas_prior.json
    python benchmarks/bayesnas.py prior --data mnist --seeds 2 --out benchmarks/results/bayesnas_prior-mnist.json
    python benchmarks/bayesnas.py prior --data mnist-1000 --seeds 1 \
        --out benchmarks/results/bayesnas_prior-mnist-1000.json
    python benchmarks/bayesnas.py sensitivity --seeds 3 --out benchmarks/results/bayesnas_sensitivity.json
    python benchmarks/bayesnas.py shares --seeds 2 --out benchmarks/results/bayesnas_shares.json
    python benchmarks/bayesnas.py cost --out benchmarks/results/bayesnas_cost.json

`prior`: the default search in each space on digits or 2,000 images of MNIST, with the count of options that went by the
evidence (or with their gate or predecessor); the same at the published lambda of .007; and under a flat prior (lambda
1e-12), under which none should go; accuracy on the selection split, weights inherited, beside that of the whole
supernet after the same schedule. The spaces other than NAS-Bench-201's cell, whose searches take minutes, have two
seeds at most and one of the flat prior. `tree-cell` has 8 channels there; at 16, its default, it has the default
search alone, as all spaces have on 1,000 images of MNIST.
`sensitivity`: one setting at a time, in NAS-Bench-201's cell on digits, around the published lambda.
`shares`: lambda by four shares of what an average operation is worth (`method.penalty_share`), there too.
`cost`: one step and one curvature update of the published supernet (C = 36, 8 cells, batch 18), seconds and memory.
Goes on where it broke off: runs that are in the record are not run again.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import bayesarch as ba
from bayesarch.data import Batch
from bayesarch.engine import Clock, Setting, Weights, gate_curvature
from bayesarch.functional import Streams
from bayesarch.methods import BayesNAS
from bayesarch.nets import Supernet
from bayesarch.spaces import BAYESNAS_CELL
from bayesarch.workflows.environment import environment

FLAT = {"method.penalty_gates": 1e-12, "method.penalty_operations": 1e-12}
PUBLISHED = {"method.penalty_gates": 0.007, "method.penalty_operations": 0.007}
SPACES = {
    "nb201": ("nb201", {}),
    "bayesnas-cell": ("bayesnas-cell", {}),
    "darts": ("darts", {}),
    "tree-cell": ("tree-cell", {"space.channels": 8, "space.alpha": 12}),
    "tree-cell, 16 channels": ("tree-cell", {}),
}
SHARED = Path(os.environ.get("BAYESARCH_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
DATA = {
    "digits": ("digits", {}),
    "mnist": (str(SHARED / "mnist.npz"), {"data.limit": 2000}),
    "mnist-1000": (str(SHARED / "mnist.npz"), {"data.limit": 1000}),
}
NARROW = ("nb201", "bayesnas-cell", "darts", "tree-cell")
WIDE = ("nb201", "bayesnas-cell", "darts", "tree-cell, 16 channels")
"""At the widths that they have by default."""
ARMS = {"default": {}, "lambda .007": PUBLISHED, "flat prior": FLAT}
COVERED = {
    "digits": {"default": (*NARROW, WIDE[3]), "lambda .007": NARROW, "flat prior": NARROW},
    "mnist": dict.fromkeys(ARMS, NARROW),
    "mnist-1000": {"default": WIDE},
}
MOST = {"default": 2, "lambda .007": 2, "flat prior": 1}
"""Seeds in spaces other than NAS-Bench-201's cell, whose searches take minutes."""
VARIANTS = {
    "lambda .007 (gamma 1, full, 3 rounds)": {},
    "lambda .005": {"method.penalty_gates": 0.005, "method.penalty_operations": 0.005},
    "lambda .01": {"method.penalty_gates": 0.01, "method.penalty_operations": 0.01},
    "lambda .03": {"method.penalty_gates": 0.03, "method.penalty_operations": 0.03},
    "first variance .1": {"method.first_variance": 0.1},
    "first variance 10": {"method.first_variance": 10.0},
    "dependency none": {"method.dependency": "none"},
    "dependency gate": {"method.dependency": "gate"},
    "1 round": {"method.rounds": 1},
    "penalty off, criterion on": {"method.penalised": False},
    "evidence of the own switch": {"method.decide_on": "switch"},
    "Monte-Carlo curvature": {"method.curvature": "mc"},
    "entropy rule": {"method.rule": "entropy"},
    "published update, entropy rule, gradient step": {
        "method.rule": "entropy", "method.update": "published", "method.dependency": "gate", "method.step": "gradient",
    },
}  # fmt: skip

SHARES = (0.1, 0.2, 0.4, 0.8)


def one_search(label: str, seed: int, settings: dict, data: str = "digits") -> dict:
    """Return what is said of one search."""
    (space, sizes), (source, amount) = SPACES[label], DATA[data]
    with tempfile.TemporaryDirectory() as folder:
        run = ba.search(
            source,
            space=space,
            method="bayesnas",
            seed=seed,
            out=Path(folder) / "run",
            set={**sizes, **amount, **settings},
        )
        return row_of(run, seed)


def row_of(run: ba.Run, seed: int) -> dict:
    """Return what is said of a finished search."""
    summary, metrics = run.summary, [m for m in run.metrics if m["stage"] == "search"]
    return {
        "seed": seed,
        "options": summary["options"],
        "by_criterion": summary["removed_by_criterion"],
        "removed": summary["fired_by"],
        "kept_by_guard": summary["kept_by_guard"],
        "left": summary["options"] - len(summary["removed"]),
        "cell": summary["cell"],
        "accuracy": summary["selection_accuracy"],
        "n": summary["selection_n"],
        "before_last_update": float(np.mean([m["selection_accuracy"] for m in metrics[-6:-1]])),
        "epochs": summary["search_epochs"],
        "closing_epochs": summary["closing_epochs"],
        "penalty": summary["penalty"],
        "seconds": summary["times"]["seconds"],
    }


def grid(out: Path, command: str, cells: dict[str, tuple[str, int, dict]], data: str = "digits") -> None:
    """Run every cell that the record lacks, and write it after each."""
    record = json.loads(out.read_text()) if out.exists() else {"rows": {}}
    for name, (space, seed, settings) in cells.items():
        if name in record["rows"]:
            continue
        record["rows"][name] = {"space": space, "settings": settings, **one_search(space, seed, settings, data)}
        row = record["rows"][name]
        print(name, row["by_criterion"], "of", row["options"], round(row["accuracy"], 4), flush=True)
        write(out, {**record, "command": command, "environment": environment(torch.device("cpu"))})


def write(out: Path, record: dict) -> None:
    """Write a record whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    part.replace(out)


def prior(arguments: argparse.Namespace) -> None:
    """Default search and flat prior, in every space."""
    data = "" if arguments.data == "digits" else f"--data {arguments.data} "
    grid(
        arguments.out,
        f"python benchmarks/bayesnas.py prior {data}--seeds {arguments.seeds} --out {arguments.out}",
        {
            f"{space}, {name}, seed {seed}": (space, seed, ARMS[name])
            for seed in range(arguments.seeds)
            for name, covered in COVERED[arguments.data].items()
            for space in covered
            if SPACES[space][0] in arguments.spaces.split(",") and (space == "nb201" or seed < MOST[name])
        },
        arguments.data,
    )


def sensitivity(arguments: argparse.Namespace) -> None:
    """One setting at a time."""
    grid(
        arguments.out,
        f"python benchmarks/bayesnas.py sensitivity --seeds {arguments.seeds} --out {arguments.out}",
        {
            f"{name}, seed {seed}": ("nb201", seed, {**PUBLISHED, **settings})
            for seed in range(arguments.seeds)
            for name, settings in VARIANTS.items()
        },
    )


def shares(arguments: argparse.Namespace) -> None:
    """Lambda by shares of what an average operation is worth."""
    grid(
        arguments.out,
        f"python benchmarks/bayesnas.py shares --seeds {arguments.seeds} --out {arguments.out}",
        {
            f"share {share}, seed {seed}": ("nb201", seed, {"method.penalty_share": share})
            for seed in range(arguments.seeds)
            for share in SHARES
        },
    )


class Images:
    """Random images of CIFAR's shape, as a split."""

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(n, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 10, (n,), generator=generator)

    def in_order(self, batch_size: int, limit: int | None = None):
        """Yield batches."""
        for start in list(range(0, len(self.labels), batch_size))[:limit]:
            yield Batch(self.images[start : start + batch_size], self.labels[start : start + batch_size])


def cost(arguments: argparse.Namespace) -> None:
    """One step and one curvature update at the published size; published code's figures are in the page."""
    streams, device = Streams(0), torch.device("cpu")
    net = Supernet(
        BAYESNAS_CELL, input_shape=(3, 32, 32), classes=10, sizes={"channels": 36, "layers": 8},
        generator=streams["init"],
    ).to(memory_format=torch.channels_last).train()  # fmt: skip
    method = BayesNAS(BAYESNAS_CELL)
    state = method.init(Setting(net.n_copies, {"architecture": 18, "weights": 18}, 18, 1, device), streams=streams)
    weights = Weights(net, momentum=0.9, weight_decay=1e-4, nesterov=False, clip=5.0)
    batch = next(iter(Images(18).in_order(18)))
    clock = Clock(epoch=10**6, step=0, epochs=1, steps_per_epoch=1, weight_lr=1e-3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times: dict[str, list[float]] = {"step": [], "curvature, exact": [], "curvature, Monte-Carlo": []}
    peaks = {}
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        weights.zero()
        state, _ = method.step(state, net, {"architecture": batch, "weights": batch}, streams=streams, clock=clock)
        weights.step(1e-3)
        times["step"].append(time.perf_counter() - start)
        peaks.setdefault("step", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
    gates = method.gates(state)
    for name, mode in (("curvature, Monte-Carlo", "mc"), ("curvature, exact", "exact")):
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            gate_curvature(net, gates, Images(18), mode=mode, batch_size=18, generator=streams["curvature"])
            times[name].append(time.perf_counter() - start)
        peaks[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    record = {
        "command": f"python benchmarks/bayesnas.py cost --repeats {arguments.repeats} --out {arguments.out}",
        "environment": environment(device),
        "seconds": {name: {"median": float(np.median(v)), "all": v} for name, v in times.items()},
        "peak_mib_over_start": peaks,
        "published_code": {
            "step": 8.0,
            "curvature": 2900,
            "peak_mib": 9650,
            "where": "shared/specs/speed.md, another CPU",
        },
    }
    print(json.dumps(record["seconds"], indent=1), record["peak_mib_over_start"])
    write(arguments.out, record)


def main() -> None:
    """Read the arguments and go."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("prior", "sensitivity", "shares", "cost"))
    parser.add_argument("--data", choices=tuple(DATA), default="digits", help="of `prior`")
    parser.add_argument("--spaces", default=",".join(NARROW), help="of `prior`")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    {"prior": prior, "sensitivity": sensitivity, "shares": shares, "cost": cost}[arguments.part](arguments)


if __name__ == "__main__":
    main()
