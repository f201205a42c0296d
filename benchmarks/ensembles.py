"""Do different architectures make better ensembles than different seeds? Every source at one training budget.

    python benchmarks/ensembles.py --data digits --seeds 5 --epochs 10
    python benchmarks/ensembles.py --data mnist --seeds 2 --epochs 2

For every seed one BPNAS search; then ensembles of 3 from each source. Sources that choose among a pool train 12
candidates for `--epochs` each, the others 3 members for four times as many: the same number of epochs for all, MACs
beside it. Scores are of the test split, means over seeds; differences to `deepens` (the found cell, other seeds) are
paired by seed, with 95 % t intervals. Goes on where it broke off.
"""

import argparse
import json
import math
import os
import statistics
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SHARED = Path(os.environ.get("BAYESARCH_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
RESNET = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
SOURCES = {
    "bpnas": {}, "samples": {}, "neighbours": {}, "deepens": {},
    "resnet": {"ensemble.candidates": "deepens", "ensemble.architecture": RESNET},
    "nes-rs": {}, "nes-re": {}, "nesbs-mc": {}, "nesbs-svgd": {},
}  # fmt: skip
POOLED = ("nes-rs", "nes-re")
TASKS = {
    "digits": {"data": "digits", "set": {}, "restart": 30, "shared": 40},
    "mnist": {
        "data": str(SHARED / "mnist.npz"),
        "limit": 10_000,
        "set": {"space.channels": 8, "space.cells": 1, "engine.epochs": 20},
        "restart": 8,
        "shared": 12,
    },
}
MEASURES = ("accuracy", "nll", "brier", "ece_width", "aurc")


def one(name: str, run, seed: int, epochs: int, task: dict, work: Path) -> dict:
    """Return what is kept of one ensemble."""
    import bayesarch as ba

    out = work / f"{name}-s{seed}"
    given = {
        "ensemble.candidates": name, "ensemble.reference": False, "ensemble.restart_epochs": task["restart"],
        "ensemble.shared_epochs": task["shared"], "ensemble.stack": "never",
        "train.epochs": epochs if name in POOLED else 4 * epochs, **SOURCES[name],
    }  # fmt: skip
    if out.exists():
        made = ba.resume(out, parallel=1)
    else:
        made = ba.ensemble(run, members=3, pool=12, seed=seed, out=out, set=given, parallel=1)
    record, kept = made.folder.read_json("evaluation.json"), made.folder.read_json("ensemble.json")
    rows = {row["name"]: row for row in record["rows"]}
    members = [row for row_name, row in rows.items() if row_name.startswith("member")]
    single = len(members) == 0  # forward selection with fewer distinct members than asked
    first = rows["network" if single else "ensemble"]
    corrupted = record["corruptions"]
    return {
        "source": name,
        "seed": seed,
        "distinct": kept["distinct"],
        "epochs": kept["budget"]["epochs"],
        "epoch_macs": kept["budget"]["epoch_macs"],
        "plain": {key: first[key]["value"] for key in MEASURES},
        "scaled": {key: rows["network, T" if single else "ensemble, T joint"][key]["value"] for key in MEASURES},
        "member": {key: statistics.fmean(row[key]["value"] for row in members or [first]) for key in MEASURES},
        "disagreement": record["uncertainty"]["disagreement"],
        "epistemic": record["uncertainty"]["nats"]["epistemic"]["all"],
        "corrupted_accuracy": statistics.fmean(row["accuracy"] for row in corrupted),
        "corrupted_nll": statistics.fmean(row["nll"] for row in corrupted),
        "auroc": record["ood"]["rows"][0]["auroc"],
        "n": record["n"],
        "seconds": kept["seconds"],
    }


def difference(runs: list[dict], name: str, get) -> dict:
    """Return a source minus deepens, paired by seed."""
    from scipy.stats import t

    base = {run["seed"]: get(run) for run in runs if run["source"] == "deepens"}
    gaps = [get(run) - base[run["seed"]] for run in runs if run["source"] == name and run["seed"] in base]
    mean = statistics.fmean(gaps)
    half = t.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(gaps)}


def judged(runs: list[dict]) -> dict:
    """Return every source against deepens."""
    present = {run["source"] for run in runs}
    if "deepens" not in present or len({run["seed"] for run in runs}) < 2:
        return {}
    return {
        name: {
            "nll": difference(runs, name, lambda run: run["plain"]["nll"]),
            "nll_scaled": difference(runs, name, lambda run: run["scaled"]["nll"]),
            "accuracy": difference(runs, name, lambda run: run["plain"]["accuracy"]),
            "corrupted_nll": difference(runs, name, lambda run: run["corrupted_nll"]),
        }
        for name in SOURCES
        if name in present and name != "deepens"
    }


def main() -> None:
    """Run what is missing, and write the record after each ensemble."""
    import torch

    import bayesarch as ba
    from bayesarch.workflows.environment import environment

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(TASKS), default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="seed to begin with, where others are made elsewhere")
    parser.add_argument("--epochs", type=int, default=10, help="of a candidate in a pool of 12")
    parser.add_argument("--work", type=Path, default=Path("runs/ensembles"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task, out = TASKS[arguments.data], RESULTS / f"ensembles_{arguments.data}.json"
    known = json.loads(out.read_text())["runs"] if out.exists() else []
    done = {(run["source"], run["seed"]): run for run in known}
    for seed in range(arguments.first, arguments.seeds):
        place = arguments.work / f"{arguments.data}-search-s{seed}"
        if (place / "summary.json").exists():
            run = ba.open_run(place)
        else:
            run = ba.search(task["data"], seed=seed, limit=task.get("limit"), set=task["set"], out=place)
        for name in SOURCES:
            if (name, seed) in done:
                continue
            done[name, seed] = one(name, run, seed, arguments.epochs, task, arguments.work / arguments.data)
            runs = [done[key] for key in sorted(done, key=lambda key: (key[1], list(SOURCES).index(key[0])))]
            record = {
                "command": f"python benchmarks/ensembles.py --data {arguments.data} --seeds {arguments.seeds} "
                f"--epochs {arguments.epochs}",
                "pool": 12,
                "members": 3,
                "environment": environment(torch.device("cpu")),
                "runs": runs,
                "against_deepens": judged(runs),
            }
            part = out.with_suffix(".part")
            part.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
            part.replace(out)
            print(
                seed,
                name,
                round(done[name, seed]["plain"]["nll"], 4),
                round(done[name, seed]["seconds"]),
                "s",
                flush=True,
            )


if __name__ == "__main__":
    main()
