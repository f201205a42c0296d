"""Ours against torch-pruning on 10,000 photographs: the same networks, MACs, rounds and epochs, rule by rule.

    python benchmarks/against_pruning.py --seeds 2

One network is trained per seed. Ours cuts it round by round until a quarter of its MACs are left; torch-pruning gets to
half and to a quarter in as many rounds as our masks, with as many epochs, and cuts by equal factors of MACs on the way.
The networks with half and a quarter are fine-tuned equally long and scored on the 10,000 test images. Nothing is chosen
by that: all points are in the record. CIFAR-10 (JPEG q75), crops and flips, networks of `quarter.py`. Goes on where it
broke off.
"""

import argparse
import copy
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cifar_jpeg
import numpy as np
import safetensors.torch
import torch
from compress import finished
from torch import nn
from torch.nn import functional as F

from bayesarch.data import DataConfig, load, split, splits_on
from bayesarch.engine import TrainConfig, Trainer
from bayesarch.functional import Streams
from bayesarch.functional import uncertainty as un
from bayesarch.nets.macs import macs_by_parameter
from bayesarch.nets.module import in_layout
from bayesarch.workflows.compress import front
from bayesarch.workflows.compress_settings import RECIPE
from bayesarch.workflows.config import merge
from bayesarch.workflows.environment import environment
from bayesarch.workflows.smaller import named_network
from bayesarch.workflows.worth import paired, score_row

HERE = Path(__file__).parent
OUT = HERE / "results" / "pruning_cifar10-jpeg.json"
SHARED = Path(os.environ.get("BAYESARCH_SHARED_DATA", HERE.parents[1] / "shared" / "data"))
SHARES = (0.5, 0.25)
"""MACs of the points that are fine-tuned and scored, as shares of the whole network's."""
OURS = ("evidence", "switches", "bernoulli")
REFERENCE = "bernoulli"
"""The path of ours that torch-pruning's have as many rounds as."""
THEIRS = ("torch-pruning magnitude", "torch-pruning Taylor", "torch-pruning group norm")
DATA = {"flip": True, "called": "cifar10"}
TRAIN = {**RECIPE, "batch_size": 64, "lr": 0.02, "clip": 0.0, "threads": 1, "precision": "bf16"}
"""The learning rate was taken after 8 epochs of VGG-16 at 0.02 and 0.05, by the selection split (seed 0). bf16 alike
for all: on a CPU that has it a step takes half to two thirds of the time."""
SMALL_STEPS = 400
"""Steps in which torch-pruning would take everything away; MACs are looked at after each."""
REG = 5e-4
"""Weight of its group norm, as in its own benchmark on CIFAR-10."""
LOOKED_AT = 1024
"""Training examples whose gradient its Taylor criterion takes."""


def data_file(work: Path, limit: int) -> Path:
    """Return the examples as an .npz, made the first time."""
    path = work / f"cifar10-jpeg-{limit}.npz"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        cifar_jpeg.convert(SHARED / "cifar10_jpegq75.npz", path, train=limit)
    return path


def targets(rounds: Sequence[int]) -> list[float]:
    """Return the MACs after each round as shares: `SHARES` after the rounds given, equal factors between them."""
    knots = [(0, 1.0), *zip(rounds, SHARES, strict=True)]
    return [
        first * (last / first) ** ((number - begin) / (end - begin))
        for (begin, first), (end, last) in itertools.pairwise(knots)
        for number in range(begin + 1, end + 1)
    ]


def macs_of(net: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return a network's MACs for one image."""
    return sum(macs_by_parameter(net, shape).values())


class Bench:
    """One network of one seed: its training, and the paths from it.

    Args:
        network: a name in `quarter.py`.
        seed: decides everything random.
        given: command-line arguments.
    """

    def __init__(self, network: str, seed: int, given: argparse.Namespace) -> None:
        self.network, self.seed, self.given = network, seed, given
        self.module, self.data = f"{HERE / 'quarter.py'}:{network}", data_file(given.work, given.limit)
        self.settings = {
            "data": DATA,
            "train": TRAIN | {"epochs": given.epochs},
            "compress": {
                "finetune_epochs": given.finetune,
                "dense_epochs": given.dense,
                "dense_lr": TRAIN["lr"],
                "curvature_examples": 2000,
                "growth": 2.0,
            },
        }
        self.examples = load(DataConfig(source=str(self.data), **DATA))
        self.shape, self.classes = self.examples.input_shape, len(self.examples.classes)

    def trained(self) -> nn.Module:
        """Return the whole network, trained the first time."""
        out = self.given.work / f"{self.network}-dense-s{self.seed}"
        changed = merge(self.settings, {"train": {"epochs": 1}, "compress": {
            "method": "random", "rounds": 1, "at_most": 0.01, "finetune_epochs": 1}})  # fmt: skip
        finished(out, self.module, str(self.data), seed=self.seed, max_drop=0.9, config=changed)
        self.weights = out / "networks" / "dense.safetensors"
        net = named_network(self.module, self.shape, self.classes)
        net.load_state_dict(safetensors.torch.load_file(self.weights))
        return net

    def ours(self, method: str) -> dict[str, Any]:
        """Return the points of a path of ours."""
        whole = macs_of(self.trained(), self.shape)
        bounds = [round(whole * share) for share in SHARES]
        out = self.given.work / f"{self.network}-{method}-s{self.seed}"
        run = finished(
            out, self.module, str(self.data), weights=self.weights, method=method, max_macs=bounds[-1], seed=self.seed,
            config=self.settings,
        )  # fmt: skip
        first, *rows = front(run.path, bounds)
        return {"dense": _kept(first), "points": [{**_kept(row), "round": row["round"]} for row in rows]}

    def theirs(self, method: str, rounds: list[int]) -> dict[str, Any]:
        """Return the points of a path of torch-pruning.

        Args:
            method: which of its rules.
            rounds: how many came before each of our points.
        """
        net = in_layout(self.trained(), self.shape)
        whole, dense, labels = macs_of(net, self.shape), self._probabilities(net), self._labels()
        pruner, points = self._pruner(net, method), []
        for number, target in enumerate(targets(rounds), start=1):
            if "Taylor" in method:
                self._gradient(net)
            while macs_of(net, self.shape) > target * whole:
                pruner.step()
            regular = pruner if "group norm" in method else None
            self._train(net, method, self.given.epochs, 1 + number, regular)
            for share in SHARES[len(points) :]:
                if macs_of(net, self.shape) <= share * whole:
                    small = copy.deepcopy(net)
                    self._train(small, method, self.given.finetune, 50_000 + number, None)
                    p = self._probabilities(small)
                    row = score_row(method, p, labels, self.seed) | {"difference": paired(p, dense, labels, self.seed)}
                    row |= {"params": sum(q.numel() for q in small.parameters()), "macs": macs_of(small, self.shape)}
                    points.append({**_kept(row), "round": number})
        return {"points": points}

    def _pruner(self, net: nn.Module, method: str) -> Any:
        import torch_pruning as tp

        heads = [m for m in net.modules() if isinstance(m, nn.Linear)]
        common = {"global_pruning": True, "pruning_ratio": 1.0, "iterative_steps": SMALL_STEPS, "ignored_layers": heads}
        images = torch.zeros(1, *self.shape)
        if "Taylor" in method:
            return tp.pruner.BasePruner(net, images, importance=tp.importance.GroupTaylorImportance(), **common)
        if "group norm" in method:
            rule = tp.importance.GroupMagnitudeImportance(p=2, normalizer="max")
            return tp.pruner.GroupNormPruner(net, images, importance=rule, reg=REG, **common)
        return tp.pruner.BasePruner(net, images, importance=tp.importance.GroupMagnitudeImportance(p=2), **common)

    def _splits(self) -> Any:
        config = DataConfig(source=str(self.data), **DATA)
        partition = split(self.examples, config).for_training()
        return splits_on(
            self.examples, partition, ("weights", "selection", "test"), config=config, device=torch.device("cpu")
        )

    def _train(self, net: nn.Module, method: str, epochs: int, number: int, regular: Any) -> None:
        """Train in place, as our rounds and our fine-tuning do."""
        splits, config = self._splits(), TrainConfig(**TRAIN, epochs=epochs)
        place = self.given.work / f"{self.network}-{method.replace(' ', '-')}-s{self.seed}.safetensors"
        trainer = _Regular(
            net, classes=self.classes, training=splits["weights"], selection=splits["selection"], config=config,
            streams=Streams(100_000 * self.seed + number, torch.device("cpu")), checkpoint=place,
        )  # fmt: skip
        if regular is not None:
            regular.update_regularizer()
            trainer.regular = regular
        trainer.run()
        place.unlink(missing_ok=True)

    def _gradient(self, net: nn.Module) -> None:
        net.zero_grad()
        net.eval()
        for batch in self._splits()["weights"].in_order(128, LOOKED_AT // 128):
            F.cross_entropy(net(batch.images), batch.labels).backward()

    def _probabilities(self, net: nn.Module) -> np.ndarray:
        net.eval()
        with torch.no_grad():
            logits = [net(batch.images) for batch in self._splits()["test"].in_order(512)]
        return un.softmax(torch.cat(logits).double().numpy())

    def _labels(self) -> np.ndarray:
        return torch.cat([batch.labels for batch in self._splits()["test"].in_order(512)]).numpy()


class _Regular(Trainer):
    """A training whose gradients torch-pruning's group norm may add to."""

    regular: Any = None

    def move(self) -> None:
        """Take the weights' step. A group of one channel gets 0 / 0 from the regulariser, here nothing."""
        if self.regular is not None:
            gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
            before = [gradient.clone() for gradient in gradients]
            self.regular.regularize(self.net)  # adds in place
            for gradient, mine in zip(gradients, before, strict=True):
                gradient.copy_(torch.where(gradient.isfinite(), gradient, mine))
        super().move()


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the record keeps of a point."""
    kept = {
        "params": row["params"],
        "macs": row["macs"],
        "error": 1 - row["accuracy"]["value"],
        "nll": row["nll"]["value"],
        "ece": row["ece_width"]["value"],
    }
    if "difference" in row:
        kept |= {"difference": row["difference"]["accuracy"], "nll_difference": row["difference"]["nll"]}
    return kept


def _recorded(out: Path) -> dict[tuple[int, str, str], dict[str, Any]]:
    """Return what is on record, read anew: several of these may run, each with other networks, seeds or methods."""
    runs = json.loads(out.read_text())["runs"] if out.exists() else []
    return {(run["seed"], run["network"], run["method"]): run for run in runs}


def main() -> None:
    """Run what is missing, and write the record after each path."""
    import torch_pruning

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="resnet18,vgg16,densenet")
    parser.add_argument("--methods", default=",".join((*OURS, *THEIRS)))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0, help="so that several of these share the seeds")
    parser.add_argument("--limit", type=int, default=10_000, help="training examples")
    parser.add_argument("--dense", type=int, default=20, help="epochs of the whole network")
    parser.add_argument("--epochs", type=int, default=3, help="between two cuts")
    parser.add_argument("--finetune", type=int, default=6, help="epochs at the end")
    parser.add_argument("--work", type=Path, default=Path("runs/against-pruning"))
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    done = _recorded(given.out)
    for seed in range(given.first_seed, given.seeds):
        for network in given.networks.split(","):
            for method in given.methods.split(","):
                key = (seed, network, method)
                if key in done:
                    continue
                bench = Bench(network, seed, given)
                if method in OURS:
                    found = bench.ours(method)
                else:
                    found = bench.theirs(method, [p["round"] for p in done[seed, network, REFERENCE]["points"]])
                done = _recorded(given.out) | {key: {"network": network, "method": method, "seed": seed, **found}}
                record = {
                    "command": f"python benchmarks/against_pruning.py --seeds {given.seeds}",
                    "given": {k: getattr(given, k) for k in ("limit", "dense", "epochs", "finetune")},
                    "environment": environment(torch.device("cpu")) | {"torch-pruning": torch_pruning.__version__},
                    "runs": [done[at] for at in sorted(done)],
                }
                part = given.out.with_suffix(".part")
                part.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
                part.replace(given.out)
                errors = {p["macs"]: (p["round"], round(100 * p["error"], 2)) for p in done[key]["points"]}
                print(*key, errors, flush=True)


if __name__ == "__main__":
    main()
