"""Networks of one architecture trained as one: how many times faster than one after another?

    python benchmarks/stacking.py
    python benchmarks/stacking.py --out FILE       a record of another machine

A training step (forward, loss, backward, clipped SGD) of M networks with own batches of 64: one after another as plain
torch code does it (NCHW, its own optimiser), one after another as ours do it, as one network with the library's grouped
convolutions, and as one with those of our kernels (`train.fused`, compiled before); one process, all in turn, medians.
The cell is NAS-Bench-201's ResNet cell, one cell a stage; the heap is that of our commands. Nothing else should run.
"""

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from records import typed
from steps import in_turn

OUT = Path(__file__).parent / "results" / "stacking.json"
CELL = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
SIZES = [((1, 8, 8), 8), ((1, 8, 8), 16), ((3, 16, 16), 8), ((1, 28, 28), 8), ((3, 32, 32), 16)]
SGD = {"momentum": 0.9, "weight_decay": 3e-4}


def ways_of(shape: Sequence[int], channels: int, m: int, generator: Any) -> dict[str, Callable[[], None]]:
    """Return a step of m networks in each way, the plain one first; `generator` draws weights and images."""
    import torch
    from torch.nn import functional as F

    from bayesarch.engine.weights import Weights
    from bayesarch.nets import build, convolving, stack
    from bayesarch.spaces import Architecture

    arch, sizes = Architecture.parse(CELL, "nb201"), {"channels": channels, "cells": 1}
    plain = [build(arch, input_shape=shape, classes=10, sizes=sizes, generator=generator) for _ in range(m)]
    nets = [copy.deepcopy(net).to(memory_format=torch.channels_last) for net in plain]
    members = [copy.deepcopy(net) for net in nets]
    images = torch.randn(m, 64, *shape, generator=generator)
    each = [x.contiguous(memory_format=torch.channels_last) for x in images]
    labels = torch.randint(10, (m, 64), generator=generator)
    joint = stack(members)
    torchs = [torch.optim.SGD(net.parameters(), lr=0.01, **SGD) for net in plain]
    ours, theirs = ([Weights(net, **SGD, nesterov=False, clip=5.0) for net in of] for of in (nets, members))

    def one_by_one() -> None:
        for net, x, y, sgd in zip(plain, images, labels, torchs, strict=True):
            sgd.zero_grad()
            F.cross_entropy(net(x), y).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            sgd.step()

    def alone() -> None:
        for net, x, y, weights in zip(nets, each, labels, ours, strict=True):
            weights.zero()
            F.cross_entropy(net(x), y).backward()
            weights.step(0.01)

    def together(*, fused: bool) -> None:
        with convolving(fused):
            logits = joint(images).flatten(0, 1)
        (m * F.cross_entropy(logits, labels.flatten())).backward()
        joint.hand_out_gradients()
        for weights in theirs:
            weights.step(0.01)

    one, two = partial(together, fused=False), partial(together, fused=True)
    return {"plain": one_by_one, "alone": alone, "together": one, "fused": two}


def main() -> None:
    """Measure, and write the record."""
    import torch

    from bayesarch.nets.kernels import library
    from bayesarch.workflows.heap import tighten

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    tighten()
    library(torch.float32)
    generator, rows = torch.Generator().manual_seed(0), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for shape, channels in SIZES:
            for m in (1, 3, 8):
                found = in_turn(ways_of(shape, channels, m, generator), arguments.rounds, "plain")
                rows.append(
                    {"threads": threads, "shape": shape, "channels": channels, "networks": m,
                     "faster": {way: times["ratio"] for way, times in found.items()},
                     "ranges": {way: [times["lowest"], times["highest"]] for way, times in found.items()},
                     "milliseconds": {way: 1e3 * times["seconds"] for way, times in found.items()}}
                )  # fmt: skip
                print(rows[-1], flush=True)
    record(rows, arguments.rounds, arguments.out)


def record(rows: list[dict[str, Any]], rounds: int, out: Path) -> None:
    """Write what was measured, by which command and where."""
    import torch

    from bayesarch.workflows.environment import environment

    known = {
        "command": typed(),
        "environment": environment(torch.device("cpu")),
        "rounds": rounds,
        "rows": rows,
    }
    out.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
