"""Does evidence beat magnitude? BayesNAS's central claim: one supernet training, then equal numbers of options removed.

    python benchmarks/evidence.py --data digits --seeds 5 --epochs 15 --out benchmarks/results/evidence_digits.json
    python benchmarks/evidence.py --data mnist --seeds 5 --epochs 3 --out benchmarks/results/evidence_mnist.json

For every seed a supernet of NAS-Bench-201's cell is trained as BayesNAS does it (weights, then weights and switches
under the penalty), curvature is taken once, and every criterion ranks the same 24 operations:

    evidence    sum b^2 / sum h of the effective switch, the rule without a scale (what the method uses)
    gamma       prior variance after the update, what the paper's entropy rule thresholds
    magnitude   mean |w_0 w_o| over copies
    random      a random order

Options go from the bottom until 18, 12 or 6 are left; one whose removal would cut the cell in two is passed over, and
what nothing feeds or uses any more counts as gone. Then the loss of the inherited weights (norms recalibrated), and the
accuracy of the same cell trained from scratch for a few epochs, both on the test split, which nothing has seen.
Goes on where it broke off: seeds that are in the record are not run again.
"""

import argparse
import dataclasses
import json
import math
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bayesarch.data import SPLITS, DataConfig, Feeder, load, split, splits_on
from bayesarch.engine import Clock, Setting, TrainConfig, Trainer, Weights, recalibrate, score
from bayesarch.functional import Streams, ard, cosine
from bayesarch.methods import BayesNAS, BayesNASConfig
from bayesarch.methods.several import series
from bayesarch.nets import Supernet, build
from bayesarch.spaces import NB201, Architecture, Space
from bayesarch.spaces.darts import node_format, node_parse
from bayesarch.workflows.environment import environment

SHARED = Path(os.environ.get("BAYESARCH_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
TASKS = {
    "digits": {"data": {"source": "digits"}, "sizes": {"channels": 16, "cells": 1}},
    "mnist": {
        "data": {"source": str(SHARED / "mnist.npz"), "limit": 10_000},
        "sizes": {"channels": 8, "cells": 1},
    },
}
KEEP = (18, 12, 6)
CRITERIA = ("evidence", "gamma", "magnitude", "random")


def several(space: Space) -> Space:
    """Return the space with any number of operations on an edge."""
    choices = tuple(dataclasses.replace(choice, pick="any") for choice in space.choices)
    return dataclasses.replace(
        space, name=f"{space.name}-any", choices=choices, format_fn=node_format, parse_fn=node_parse, canonical_fn=None
    )


def trained_supernet(space, examples, data, sizes, streams, steps: int):
    """Return (method, state, network) after `steps` of the weights alone and twice as many under the penalty."""
    method = BayesNAS(space, BayesNASConfig(warmup_steps=steps, penalty_gates=0.007, penalty_operations=0.007))
    shape, classes = examples.input_shape, len(examples.classes)
    net = Supernet(space, input_shape=shape, classes=classes, sizes=sizes, generator=streams["init"])
    net = net.to(memory_format=torch.channels_last).train()
    counts = {name: len(part) for name, part in data.items()}
    setting = Setting(net.n_copies, counts, 64, counts["architecture"] // 64, torch.device("cpu"))
    state = method.init(setting, streams=streams)
    weights = Weights(net, momentum=0.9, weight_decay=3e-4, nesterov=False, clip=5.0)
    feeders = {
        name: Feeder(data[name], 64, order=streams[f"data/{name}"], augment=streams[f"augment/{name}"])
        for name in method.splits
    }
    warm = math.ceil(steps / setting.steps_per_epoch) * setting.steps_per_epoch
    for step in range(warm + 2 * steps):
        lr = cosine(step, warm + 2 * steps, 0.025, 0.001)
        clock = Clock(step // setting.steps_per_epoch, step, 10**6, setting.steps_per_epoch, lr)
        weights.zero()
        batches = {name: feeder.next() for name, feeder in feeders.items()}
        state, _ = method.step(state, net, batches, streams=streams, clock=clock)
        weights.step(lr)
    return method, state, net


def scores_of(method, state, net, data, streams) -> dict[str, list[float]]:
    """Return what each criterion gives each flat option; low goes first."""
    seen = method.look(state, net, data, streams)
    after = method.updated(state, seen, net.occupancy)
    told = series(method.space, "cpu").compose(state.w)
    lam = method.config.penalty_operations
    h, g = seen.gate_h / lam, seen.gate_gradient / lam
    evidence = ard.newton_optimum(told, h, g).square().sum(0) / h.sum(0).clamp(min=1e-12)
    return {
        "evidence": evidence.tolist(),
        "gamma": ard.prior_variances(after.gamma, method.edges, method.config.dependency).tolist(),
        "magnitude": told.abs().mean(0).tolist(),
        "random": torch.rand(len(evidence), generator=streams["random"]).tolist(),
    }


def left_over(space: Space, picks) -> tuple:
    """Return picks without what nothing feeds or uses."""
    picks = space.cascade(picks)
    idle = space.inactive(picks)
    return tuple(() if position in idle else row for position, row in enumerate(picks))


def remove(space: Space, scores: list[float], keep: int) -> Architecture:
    """Return the architecture that is left when options go from the lowest score on until `keep` are left."""
    picks = tuple(choice.real for choice in space.choices)
    where = {space.columns(p)[o]: (p, o) for p, c in enumerate(space.choices) for o in c.real}
    for g in sorted(where, key=lambda g: scores[g]):
        position, option = where[g]
        row = tuple(o for o in picks[position] if o != option)
        fewer = left_over(space, (*picks[:position], row, *picks[position + 1 :]))
        if space.connected(fewer) and sum(map(len, fewer)) >= keep:
            picks = fewer
    return Architecture(space, picks)


def from_scratch(arch: Architecture, examples, partition, task: dict, seed: int) -> dict:
    """Return test accuracy and loss of the architecture's plain network after a short training."""
    streams, cpu = Streams(seed), torch.device("cpu")
    config = DataConfig(**task["data"])
    data = splits_on(examples, partition.for_training(), ("weights", "selection", "test"), config=config, device=cpu)
    net = build(
        arch, input_shape=examples.input_shape, classes=len(examples.classes), sizes=task["sizes"],
        generator=streams["init"],
    ).to(memory_format=torch.channels_last)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            net, classes=len(examples.classes), training=data["weights"], selection=data["selection"],
            config=TrainConfig(epochs=task["epochs"]), streams=streams,
            checkpoint=Path(folder) / "last.safetensors",
        ).run()  # fmt: skip
        result = trainer.score_on(data["test"])
    return {"accuracy": result.accuracy, "loss": result.loss, "n": result.n}


def one_seed(task: dict, seed: int, steps: int) -> dict:
    """Return everything measured with one seed."""
    started = time.monotonic()
    config, cpu, space, streams = DataConfig(**task["data"]), torch.device("cpu"), several(NB201), Streams(seed)
    examples = load(config)
    partition = split(examples, config)
    data = splits_on(examples, partition, SPLITS, config=config, device=cpu)
    method, state, net = trained_supernet(space, examples, data, task["sizes"], streams, steps)
    gates = series(space, "cpu").compose(state.w).unsqueeze(0)
    net.eval()
    whole = score(lambda x: net(x, gates), data["test"], batch_size=256)
    table = scores_of(method, state, net, data, streams)
    rows = []
    for keep in KEEP:
        for criterion in CRITERIA:
            arch = remove(space, table[criterion], keep)
            masked = gates * net.one_hot(arch)
            recalibrate(net, masked, data["weights"], batch_size=64)
            net.eval()
            inherited = score(lambda x, g=masked: net(x, g), data["test"], batch_size=256)
            short = from_scratch(arch, examples, partition, task, seed)
            rows.append(
                {
                    "keep": keep, "criterion": criterion, "left": sum(map(len, arch.picks)), "cell": str(arch),
                    "inherited": {"accuracy": inherited.accuracy, "loss": inherited.loss},
                    "from_scratch": short,
                }
            )  # fmt: skip
            print(seed, keep, criterion, rows[-1]["left"], round(inherited.loss, 3), short["accuracy"], flush=True)
    return {
        "seed": seed,
        "whole": {"accuracy": whole.accuracy, "loss": whole.loss, "n": whole.n},
        "rows": rows,
        "seconds": time.monotonic() - started,
    }


def interval(values: np.ndarray, level: float = 0.95) -> dict:
    """Return mean and t interval of paired differences."""
    from scipy.stats import t

    half = t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return {"mean": float(values.mean()), "low": float(values.mean() - half), "high": float(values.mean() + half)}


def judged(runs: list[dict]) -> list[dict]:
    """Return evidence minus every other criterion, paired by seed, with 95 % t intervals."""
    rows = []
    for keep in KEEP:
        for other in (c for c in CRITERIA if c != "evidence"):
            for what in ("inherited", "from_scratch"):
                pairs = []
                for run in runs:
                    by = {r["criterion"]: r for r in run["rows"] if r["keep"] == keep}
                    pairs.append([by[c][what][m] for c in ("evidence", other) for m in ("accuracy", "loss")])
                a = np.array(pairs)
                rows.append(
                    {
                        "keep": keep, "than": other, "of": what,
                        "accuracy": interval(a[:, 0] - a[:, 2]), "loss": interval(a[:, 1] - a[:, 3]),
                    }
                )  # fmt: skip
    return rows


def main() -> None:
    """Run the seeds that are missing, and write the record after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(TASKS), default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=15, help="of the training from scratch")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/evidence_digits.json"))
    arguments = parser.parse_args()
    task = {**TASKS[arguments.data], "epochs": arguments.epochs}
    known = json.loads(arguments.out.read_text())["runs"] if arguments.out.exists() else []
    runs = {run["seed"]: run for run in known}
    for seed in range(arguments.seeds):
        if seed in runs:
            continue
        runs[seed] = one_seed(task, seed, arguments.steps)
        ordered = [runs[s] for s in sorted(runs)]
        record = {
            "command": f"python benchmarks/evidence.py --data {arguments.data} --seeds {arguments.seeds} "
            f"--steps {arguments.steps} --epochs {arguments.epochs} --out {arguments.out}",
            "sizes": task["sizes"],
            "epochs_from_scratch": task["epochs"],
            "environment": environment(torch.device("cpu")),
            "runs": ordered,
            "evidence_minus": judged(ordered) if len(ordered) > 1 else [],
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        part = arguments.out.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        part.replace(arguments.out)


if __name__ == "__main__":
    main()
