"""What the posterior over channels is worth: against blind masks, over settings, with more data, and how fast it ranks.

    python benchmarks/pgnas.py guided --data digits --seeds 3
    python benchmarks/pgnas.py guided --data mnist --seeds 3
    python benchmarks/pgnas.py guided --data cifar10-jpeg --seeds 1
    python benchmarks/pgnas.py settings --seeds 2
    python benchmarks/pgnas.py examples --seeds 2
    python benchmarks/pgnas.py mismatch --seeds 2
    python benchmarks/pgnas.py throughput

guided       candidates of the posterior, the best of them, masks at random with as many parameters, mode, whole network
settings     one setting at a time on digits: the length-scale over two decades, the gates' temperature
examples     the share of groups beyond their drift curve as the number of examples grows (MNIST)
mismatch     Kendall's tau between inherited and retrained loss of 30 sub-networks (digits, width 8), with learned rates
             and with a fixed one, the control that the claim needs
throughput   candidates x images a second, against one mask at a time in a plain loop, interleaved in one process

Accuracies of masks are on the selection split, which neither trained nor ranked. Every part goes on where it broke off.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SHARED = Path(os.environ.get("BAYESARCH_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
TASKS: dict[str, dict[str, Any]] = {
    "digits": {"data": "digits", "set": {"engine.epochs": 60}},
    "mnist": {"data": str(SHARED / "mnist.npz"), "limit": 10_000, "set": {"engine.epochs": 12}},
    "cifar10-jpeg": {
        "data": "cifar10-jpeg",
        "set": {"engine.epochs": 15, "data.crop": 4, "data.flip": True},
    },
}
KEPT = ("name", "masks", "params_kept", "architecture", "selection")


def data_of(name: str, work: Path) -> Any:
    """Return what `search` takes for a task's data; CIFAR-10 is written as .npz once."""
    if name != "cifar10-jpeg":
        return TASKS[name]["data"]
    from cifar_jpeg import convert

    path = work / "cifar10-jpeg.npz"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        convert(SHARED / "cifar10_jpegq75.npz", path, train=5_000)
    return str(path)


def searched(unit: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of one search."""
    import torch

    import bayesarch as ba

    torch.set_num_threads(1)
    work = Path(unit["work"])
    target = work / unit["name"]
    if target.exists() and ba.open_run(target).status.get("state") == "finished":
        run = ba.open_run(target)
    elif target.exists():
        run = ba.resume(target)
    else:
        run = ba.search(
            data_of(unit["data"], work), method="pgnas", space="shake-shake", seed=unit["seed"],
            limit=unit["limit"], set=unit["set"], out=target,
        )  # fmt: skip
    said = run.summary
    return {
        **{key: unit[key] for key in ("data", "seed", "limit", "set")},
        "name": unit["name"],
        "rows": [{k: row[k] for k in KEPT} for row in said["rows"]],
        "test": said["test"],
        "l2": said["l2"],
        "beyond_drift": said["beyond_drift"],
        "drop_rates": [1 - edge["weights"][0] for edge in said["edges"]],
        "drift_rates": said["drift_rates"],
        "sizes": said["sizes"],
        "examples": run.data["sizes"],
        "seconds": said["times"]["seconds"],
    }  # fmt: skip


def units_of(part: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the searches of a part."""
    from_task = TASKS[arguments.data]
    base = {"data": arguments.data, "limit": from_task.get("limit")}
    width = {"space.width": arguments.width}
    units = []
    for seed in range(arguments.seeds):
        if part == "guided":
            variants = [("", base, {**width, **from_task["set"]})]
        elif part == "settings":
            sets = [("method.weight_decay", value) for value in (3e-5, 3e-4, 3e-3)]
            sets += [("method.tau", value) for value in (0.1, 2 / 3, 1.5)]
            variants = [(f"-{k}={v:.3g}", base, {**width, **from_task["set"], k: v}) for k, v in sets]
        else:
            sizes = (1000, 4000)
            few = {"method.candidates": 20, "method.controls": 0}
            variants = [(f"-n={n}", {**base, "limit": n}, {**width, **from_task["set"], **few}) for n in sizes]
        units += [
            {**base_, "name": f"{part}-{arguments.data}-w{arguments.width}{tag}-s{seed}", "seed": seed, "set": set_}
            for tag, base_, set_ in variants
        ]
    return units


def run_all(
    work: Callable[[dict[str, Any]], dict[str, Any]], units: list[dict], arguments, out: Path, note: dict
) -> None:
    """Run what is missing, so many at a time, and write the record after each."""
    known = json.loads(out.read_text())["runs"] if out.exists() else []
    done = {run["name"]: run for run in known}
    missing = [unit for unit in units if unit["name"] not in done]
    with ProcessPoolExecutor(arguments.parallel, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(work, {**unit, "work": str(arguments.work)}) for unit in missing]
        for future in as_completed(futures):
            result = future.result()
            done[result["name"]] = result
            write(out, arguments, {**note, "runs": [done[name] for name in sorted(done)]})
            print(result["name"], round(result["seconds"]), "s", flush=True)


def write(out: Path, arguments: argparse.Namespace, record: dict[str, Any]) -> None:
    """Write a record with the command and the machine, whole or not at all."""
    import torch

    from bayesarch.workflows.environment import environment

    torch.set_num_threads(arguments.threads)
    command = f"python benchmarks/pgnas.py {arguments.part}"
    if arguments.part != "throughput":
        command += f" --data {arguments.data} --seeds {arguments.seeds} --width {arguments.width}"
    record = {"command": command, "environment": environment(torch.device("cpu")), **record}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    part.replace(out)


def trained(target: Path, unit: dict[str, Any], extra: dict[str, Any], data: Any) -> tuple[Any, Any, Any]:
    """Return (space, sizes, scorer) of a supernet trained with the unit's settings."""
    import safetensors.torch

    import bayesarch as ba
    from bayesarch.methods.candidates import Scorer
    from bayesarch.nets.gated import GatedSupernet, network_of

    if not target.exists():
        given = {"space.width": unit["width"], "engine.epochs": unit["epochs"], "method.candidates": 20, **extra}
        ba.search("digits", method="pgnas", space="shake-shake", seed=unit["seed"], out=target, set=given)
    space = ba.open_run(target).architecture.space
    sizes = space.sizes(width=unit["width"])
    net = GatedSupernet(space, network_of(space, sizes, (1, 8, 8), 10), input_shape=(1, 8, 8), classes=10)
    tensors = safetensors.torch.load_file(target / "checkpoints" / "last.safetensors")
    net.load_state_dict({k.removeprefix("net/"): v for k, v in tensors.items() if k.startswith("net/")})
    return space, sizes, Scorer(net, data, None)


def wide_masks(space: Any, n: int, seed: int) -> list:
    """Return masks that differ much: every group has a rate of its own; image and head stay whole."""
    import numpy as np

    from bayesarch.spaces import Architecture

    rng, masks = np.random.default_rng(seed), []
    for _ in range(n):
        rates = rng.uniform(0.3, 1.0, len(space.choices))
        rates[0] = rates[-1] = 1.0
        picks = []
        for choice, rate in zip(space.choices, rates, strict=True):
            kept = tuple(i for i in range(len(choice.options)) if rng.random() < rate)
            picks.append(kept or (0,))
        masks.append(Architecture(space, tuple(picks)))
    return masks


def retrained_loss(mask: Any, sizes: Any, data: Any, *, epochs: int, seed: int) -> float:
    """Return the held-out loss of a mask's network trained from scratch, on everything it was not trained on."""
    from bayesarch.engine import TrainConfig, Trainer, score
    from bayesarch.functional import Streams
    from bayesarch.nets import build

    streams = Streams(seed)
    net = build(mask, input_shape=(1, 8, 8), classes=10, sizes=sizes, generator=streams["init"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            net, classes=10, training=data["weights"], selection=data["selection"],
            config=TrainConfig(epochs=epochs, nesterov=True), streams=streams,
            checkpoint=Path(folder) / "last.safetensors",
        ).run()  # fmt: skip
    trainer.net.eval()
    scores = [score(trainer.net, data[name], batch_size=256) for name in ("architecture", "selection", "test")]
    return sum(s.loss * s.n for s in scores) / sum(s.n for s in scores)


def mismatch(unit: dict[str, Any]) -> dict[str, Any]:
    """Return inherited and retrained losses of 30 sub-networks drawn alike for a learned and a fixed drop rate."""
    import torch
    from scipy.stats import kendalltau

    from bayesarch.data import SPLITS, DataConfig, load, split, splits_on

    torch.set_num_threads(1)
    started, seed = time.monotonic(), unit["seed"]
    config = DataConfig(source="digits", fractions=(0.7, 0.1, 0.1, 0.1))
    examples = load(config)
    data = splits_on(examples, split(examples, config), SPLITS, config=config, device=torch.device("cpu"))
    settings = {"learned": {}, "fixed": {"method.gate_lr": 0.0}}
    arms = {
        arm: trained(Path(unit["work"]) / f"{unit['name']}-{arm}", unit, extra, data) for arm, extra in settings.items()
    }
    space, sizes, _ = arms["learned"]
    masks = wide_masks(space, 30, 1000 + seed)
    inherited = {
        arm: [
            (loss, float(right.float().mean())) for right, loss in (scorer.right(mask, "selection") for mask in masks)
        ]
        for arm, (_, _, scorer) in arms.items()
    }
    retrained = [
        [retrained_loss(mask, sizes, data, epochs=unit["retrain"], seed=5000 + 100 * again + seed) for mask in masks]
        for again in range(2)
    ]
    mean = [(a + b) / 2 for a, b in zip(*retrained, strict=True)]
    return {
        "name": unit["name"],
        "seed": seed,
        "tau": {
            arm: {
                "loss": float(kendalltau([loss for loss, _ in scored], mean)[0]),
                "accuracy": float(kendalltau([-accuracy for _, accuracy in scored], mean)[0]),
            }
            for arm, scored in inherited.items()
        },
        "tau_of_two_retrainings": float(kendalltau(*retrained)[0]),
        "retrained_loss": mean,
        "inherited_loss": {arm: [loss for loss, _ in scored] for arm, scored in inherited.items()},
        "seconds": time.monotonic() - started,
    }


def throughput() -> list[dict[str, Any]]:
    """Return seconds per candidate of each way, interleaved."""
    import torch

    from bayesarch.nets.gated import gated_supernet, kept_by
    from bayesarch.posteriors import ChannelMasks
    from bayesarch.spaces import SHAKE_SHAKE

    rows = []
    for channels, side, images_n in ((1, 8, 1000), (1, 28, 1000), (3, 32, 1000)):
        sizes = SHAKE_SHAKE.sizes(width=16)
        generator = torch.Generator().manual_seed(0)
        net = gated_supernet(SHAKE_SHAKE, sizes, (channels, side, side), 10, generator=generator)
        net = net.to(memory_format=torch.channels_last).eval()
        images = torch.randn(images_n, side, side, channels, generator=generator).permute(0, 3, 1, 2)
        masks = ChannelMasks(net.space, [0.8] * len(net.space.choices)).sample(8, seed=0)
        batch = min(max(50_000 // side**2, 16), 512)
        ways = {"fp32": (net.masked(), batch), "bf16": (net.masked(torch.bfloat16), 4 * batch)}

        @torch.no_grad()
        def plain(arch: Any, net: Any = net, images: Any = images) -> torch.Tensor:
            gates = net.one_hot(arch)
            return torch.cat([net(part, gates) for part in images.split(256)])

        def folded(way: str, arch: Any, ways: Any = ways, images: Any = images) -> torch.Tensor:
            masked, size = ways[way]
            masked.mask(kept_by(arch))
            return torch.cat([masked(part) for part in images.split(size)])

        times: dict[str, list[float]] = {"plain loop": [], "fp32": [], "bf16": []}
        for repeat in range(2):
            for arch in masks:
                for way in times:
                    started = time.perf_counter()
                    out = plain(arch) if way == "plain loop" else folded(way, arch)
                    if repeat:  # the first round warms up
                        times[way].append(time.perf_counter() - started)
                    if way == "fp32":
                        assert torch.allclose(out, plain(arch), atol=1e-3)
        medians = {way: statistics.median(values) for way, values in times.items()}
        rows.append(
            {
                "image": [channels, side, side], "images": images_n, "width": 16, "threads": torch.get_num_threads(),
                "seconds_per_candidate": medians,
                "candidate_images_per_second": {way: images_n / value for way, value in medians.items()},
                "ratio_to_plain_loop": {way: medians["plain loop"] / value for way, value in medians.items()},
            }
        )  # fmt: skip
        print(rows[-1]["image"], {way: round(r, 2) for way, r in rows[-1]["ratio_to_plain_loop"].items()}, flush=True)
    return rows


def main() -> None:
    """Read the arguments and go."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("guided", "settings", "examples", "mismatch", "throughput"))
    parser.add_argument("--data", choices=sorted(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/pgnas"))
    arguments = parser.parse_args()
    arguments.data = arguments.data or ("mnist" if arguments.part == "examples" else "digits")
    if arguments.part == "throughput":
        import torch

        arguments.threads = torch.get_num_threads()
        write(RESULTS / "pgnas_throughput.json", arguments, {"rows": throughput()})
        return
    name = f"pgnas_{arguments.part}" + (f"_{arguments.data}" if arguments.part == "guided" else "")
    if arguments.part == "mismatch":
        arguments.width = 8
        units = [
            {"name": f"mismatch-s{seed}", "seed": seed, "width": 8, "epochs": 60, "retrain": 20}
            for seed in range(arguments.seeds)
        ]
        run_all(mismatch, units, arguments, RESULTS / f"{name}.json", {"epochs": 60, "retraining_epochs": 20})
        return
    run_all(searched, units_of(arguments.part, arguments), arguments, RESULTS / f"{name}.json", {})


if __name__ == "__main__":
    main()
