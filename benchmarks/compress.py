"""How small networks become on MNIST, and what it costs: the whole path of every seed, method by method.

    python benchmarks/compress.py --network lenet-300-100 --seeds 3
    python benchmarks/compress.py --network lenet-300-100 --seeds 3 --methods bernoulli --crop 1
    python benchmarks/compress.py --network lenet-5 --seeds 3 --epochs 2 --finetune 10 --precision bf16

One network is trained per seed; every method makes it smaller round by round; the networks that runs with a few limits
on MACs end at are fine-tuned and scored on the 10,000 test images. Nothing is chosen by that: all points are in the
record. All 60,000 examples of the training file, a ninth of them the selection split. Goes on where it broke off.
"""

import argparse
import json
import os
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SHARED = Path(os.environ.get("BAYESARCH_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
INPUTS = ("lenet-300-100", "lenet-500-300")
"""Networks whose pixels may leave too, as in the papers beside whose numbers ours stand."""
BOUNDS = {"lenet-300-100": (60_000, 40_000, 26_650, 16_000, 9_550), "lenet-500-300": (80_000, 48_550, 30_000, 15_000)}
"""MACs of the points that are fine-tuned and scored; the published ones among them."""
CONV_BOUNDS = (500_000, 290_000, 217_000, 158_000)
STEPS = {"lenet-5": (0.02, 0.02, 5.0)}
"""First learning rates, of the whole network and between two cuts, and the largest gradient norm; of
others 0.1, 0.05, and no clipping, by which LeNet-5, which has no norms, dies."""
AT_MOST = {"evidence": 0.1, "switches": 0.1, "bernoulli": 0.1, "magnitude": 0.045, "random": 0.045, "group-lasso": 0.1}
"""Largest share cut in a round: of rules that always cut so much, less, so that all paths have about as many rounds."""


def finished(out: Path, *given, **settings):
    """Return the compression at `out`: as it is, gone on with, or begun with what is given."""
    import bayesarch as ba

    if (out / "summary.json").exists():
        return ba.open_run(out)
    return ba.resume(out) if out.exists() else ba.compress(*given, out=out, **settings)


def steps_of(network: str) -> tuple[float, float, float]:
    """Return a network's entry in `STEPS`."""
    return STEPS.get(network, (0.1, 0.05, 0.0))


def place(rest: argparse.Namespace, method: str, seed: int) -> Path:
    """Return where a path works."""
    return rest.work / f"{named(rest)}-{method}-s{seed}"


def named(rest: argparse.Namespace) -> str:
    """Return what the record is called: the network, and the padding of crops where it is not an eighth of the side."""
    return rest.network if rest.crop is None else f"{rest.network}-crop-{rest.crop}"


def dense(seed: int, rest: argparse.Namespace) -> Path:
    """Return the folder of one compression by random cuts of one round, for its trained network."""
    out, steps = place(rest, "dense", seed), steps_of(rest.network)
    finished(
        out, rest.network, str(SHARED / "mnist.npz"), seed=seed, limit=rest.limit, method="random", max_drop=0.5,
        set={"compress.rounds": 1, "compress.at_most": 0.01, "compress.finetune_epochs": 1,
             "compress.dense_lr": steps[0], "train.clip": steps[2], "train.precision": rest.precision,
             "data.crop": rest.crop},
    )  # fmt: skip
    return out


def points(method: str, seed: int, rest: argparse.Namespace) -> dict:
    """Return what is kept of one path: its networks at several sizes, fine-tuned and scored on the test split."""
    from bayesarch.workflows.compress import front

    network, weights = rest.network, dense(seed, rest) / "networks" / "dense.safetensors"
    out, bounds = place(rest, method, seed), BOUNDS.get(network, CONV_BOUNDS)
    given = {
        "compress.finetune_epochs": rest.finetune, "compress.inputs": network in INPUTS,
        "train.lr": steps_of(network)[1], "train.clip": steps_of(network)[2], "train.epochs": rest.epochs,
        "train.precision": rest.precision, "compress.at_most": AT_MOST[method], "data.crop": rest.crop,
    }  # fmt: skip
    run = finished(
        out, network, str(SHARED / "mnist.npz"), weights=str(weights), method=method, max_macs=bounds[-1], seed=seed,
        limit=rest.limit, set=given,
    )  # fmt: skip
    whole, *rows = front(run.path, bounds)

    def kept(row: dict) -> dict:
        return {
            "params": row["params"],
            "macs": row["macs"],
            "error": 1 - row["accuracy"]["value"],
            "nll": row["nll"]["value"],
            "ece": row["ece_width"]["value"],
            "auroc": row["auroc"]["value"],
            "round": row["round"],
            "reads": [layer["after"]["shape"][1] for layer in row["layers"]],
        }

    return {
        "network": network,
        "method": method,
        "seed": seed,
        "dense": kept(whole),
        "points": [
            {**kept(row), "bound": bound, "difference": row["difference"]["accuracy"], "nll_difference":
             row["difference"]["nll"]}
            for row, bound in zip(rows, bounds, strict=True)
        ],
        "last": {key: run.summary["rows"][1][key] for key in ("bytes", "latency_ms")},
        "first": {key: run.summary["rows"][0][key] for key in ("bytes", "latency_ms")},
        "seconds": sum(record["seconds"] for record in run.metrics),
    }  # fmt: skip


def _command(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """Return the command line that makes the record, without what says only where to work."""
    given = {
        key: value
        for key, value in vars(arguments).items()
        if key not in ("work", "out") and value != parser.get_default(key)
    }
    given = {"network": arguments.network, "seeds": arguments.seeds} | given
    return "python benchmarks/compress.py " + " ".join(f"--{key} {value}" for key, value in given.items())


def main() -> None:
    """Run what is missing, and write the record after each path."""
    import torch

    from bayesarch.workflows.environment import environment

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="lenet-300-100")
    parser.add_argument("--methods", default="evidence,switches,bernoulli,magnitude")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--epochs", type=int, default=6, help="between two cuts")
    parser.add_argument("--finetune", type=int, default=30, help="epochs at the end")
    parser.add_argument("--precision", default="fp32", help="of training: fp32 or bf16")
    parser.add_argument(
        "--crop", type=int, default=None, help="padding of random crops; default: an eighth of the side"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/compress"))
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = arguments.out or RESULTS / f"compress_{named(arguments)}.json"
    known = json.loads(out.read_text())["runs"] if out.exists() else []
    done = {(run["method"], run["seed"]): run for run in known}
    for seed in range(arguments.seeds):
        for method in arguments.methods.split(","):
            if (method, seed) in done:
                continue
            done[method, seed] = points(method, seed, arguments)
            record = {
                "command": _command(parser, arguments),
                "environment": environment(torch.device("cpu")),
                "runs": [done[key] for key in sorted(done, key=lambda key: (key[1], key[0]))],
            }
            part = out.with_suffix(".part")
            part.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
            part.replace(out)
            errors = {p["macs"]: round(100 * p["error"], 2) for p in done[method, seed]["points"]}
            print(seed, method, errors, round(done[method, seed]["seconds"]), "s", flush=True)


if __name__ == "__main__":
    main()
