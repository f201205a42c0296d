"""How small networks become on MNIST, and what it costs: the whole path of every seed, method by method.

    python benchmarks/compress.py --network lenet-300-100 --seeds 3
    python benchmarks/compress.py --network lenet-5 --seeds 3

One network is trained per seed; every method makes it smaller round by round, a few networks of the path are fine-tuned
and scored on the 10,000 test images. Nothing is chosen by them: all scored points are in the record, and the points
that are marked are those a margin on the *selection* split picks. All 60,000 examples of the training file, of which a
ninth is the selection split. Goes on where it broke off. FLOPs of others are 2 x MACs where their papers count so.
"""

import argparse
import json
import os
import statistics
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SHARED = Path(os.environ.get("BAYESARCH_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
INPUTS = ("lenet-300-100", "lenet-500-300")
"""Networks whose pixels may leave too, as in the papers beside whose numbers ours stand."""
DROPS = (0.001, 0.002, 0.004, 0.008)
"""Margins on the selection split."""
ROUNDS = {"evidence": 30, "magnitude": 20, "random": 12, "group-lasso": 30}


def dense(network: str, seed: int, work: Path, limit: int | None):
    """Return the folder of one compression by random cuts of one round, for its trained network."""
    import bayesarch as ba

    out = work / f"{network}-dense-s{seed}"
    if not (out / "summary.json").exists():
        ba.compress(
            network, str(SHARED / "mnist.npz"), seed=seed, out=out, limit=limit, method="random", max_drop=0.5,
            set={"compress.rounds": 1, "compress.at_most": 0.01, "compress.finetune_epochs": 1},
        )  # fmt: skip
    return out


def points(network: str, method: str, seed: int, work: Path, limit: int | None, finetune: int) -> dict:
    """Return what is kept of one path: every margin's network, scored on the test split."""
    import bayesarch as ba
    from bayesarch.errors import RunError

    weights = dense(network, seed, work, limit) / "networks" / "dense.safetensors"
    rows, record = [], {}
    for drop in DROPS:
        out = work / f"{network}-{method}-s{seed}-{drop}"
        given = {
            "compress.rounds": ROUNDS[method], "compress.finetune_epochs": finetune,
            "compress.inputs": network in INPUTS,
        }  # fmt: skip
        try:
            run = ba.compress(
                network, str(SHARED / "mnist.npz"), weights=str(weights), method=method, max_drop=drop, seed=seed,
                out=out, limit=limit, set=given,
            )  # fmt: skip
        except RunError as error:
            rows.append({"drop": drop, "none": str(error)})
            continue
        summary = run.summary
        whole, small = summary["rows"]
        record = {"dense": {"params": whole["params"], "macs": whole["macs"], "error": 1 - whole["accuracy"]["value"],
                            "nll": whole["nll"]["value"], "ece": whole["ece_width"]["value"],
                            "auroc": whole["auroc"]["value"], "latency_ms": whole["latency_ms"],
                            "bytes": whole["bytes"]}}  # fmt: skip
        rows.append(
            {
                "drop": drop,
                "params": small["params"],
                "macs": small["macs"],
                "bytes": small["bytes"],
                "latency_ms": small["latency_ms"],
                "error": 1 - small["accuracy"]["value"],
                "nll": small["nll"]["value"],
                "ece": small["ece_width"]["value"],
                "auroc": small["auroc"]["value"],
                "difference": summary["difference"]["accuracy"],
                "nll_difference": summary["difference"]["nll"],
                "shapes": [layer["after"]["shape"] for layer in summary["layers"]],
                "round": summary["round"],
            }
        )
    return {"network": network, "method": method, "seed": seed, "points": rows, **record}


def main() -> None:
    """Run what is missing, and write the record after each path."""
    import torch

    from bayesarch.workflows.environment import environment

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="lenet-300-100")
    parser.add_argument("--methods", default="evidence,magnitude,random,group-lasso")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--finetune", type=int, default=15)
    parser.add_argument("--work", type=Path, default=Path("runs/compress"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = RESULTS / f"compress_{arguments.network}.json"
    known = json.loads(out.read_text())["runs"] if out.exists() else []
    done = {(run["method"], run["seed"]): run for run in known}
    for seed in range(arguments.seeds):
        for method in arguments.methods.split(","):
            if (method, seed) in done:
                continue
            done[method, seed] = points(
                arguments.network, method, seed, arguments.work, arguments.limit, arguments.finetune
            )
            record = {
                "command": f"python benchmarks/compress.py --network {arguments.network} --seeds {arguments.seeds}"
                + (f" --limit {arguments.limit}" if arguments.limit else ""),
                "environment": environment(torch.device("cpu")),
                "runs": [done[key] for key in sorted(done, key=lambda key: (key[1], key[0]))],
            }
            part = out.with_suffix(".part")
            part.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
            part.replace(out)
            errors = [p["error"] for p in done[method, seed]["points"] if "error" in p]
            print(seed, method, f"{statistics.fmean(errors):.4f}" if errors else "none", flush=True)


if __name__ == "__main__":
    main()
