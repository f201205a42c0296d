"""Networks of one architecture trained as one: how many times faster than one after another?

    python benchmarks/stacking.py

A training step (forward, loss, backward) of M networks with own batches of 64: one after another, and as one network
with grouped convolutions; one process, the two in turn, medians. The cell is NAS-Bench-201's ResNet cell, one cell a
stage. Nothing else should run.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

OUT = Path(__file__).parent / "results" / "stacking.json"
CELL = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
SIZES = [((1, 8, 8), 8), ((1, 8, 8), 16), ((3, 16, 16), 8), ((1, 28, 28), 8), ((3, 32, 32), 16)]


def paired(first: Callable[[], None], second: Callable[[], None], rounds: int) -> tuple[float, float, float]:
    """Return the median seconds of both, and the median of their ratio round by round."""
    first(), second()
    times = []
    for _ in range(rounds):
        pair = []
        for work in (first, second):
            began = time.perf_counter()
            work()
            pair.append(time.perf_counter() - began)
        times.append(pair)
    a, b = zip(*times, strict=True)
    return statistics.median(a), statistics.median(b), statistics.median(x / y for x, y in times)


def main() -> None:
    """Measure, and write the record."""
    import torch
    from torch.nn import functional as F

    from bayesarch.nets import build, stack
    from bayesarch.spaces import Architecture
    from bayesarch.workflows.environment import environment

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    arch, generator, rows = Architecture.parse(CELL, "nb201"), torch.Generator().manual_seed(0), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for shape, channels in SIZES:
            for m in (3, 8):
                nets = [
                    build(arch, input_shape=shape, classes=10, sizes={"channels": channels, "cells": 1},
                          generator=generator).to(memory_format=torch.channels_last)
                    for _ in range(m)
                ]  # fmt: skip
                images = torch.randn(m, 64, *shape, generator=generator)
                each = [x.contiguous(memory_format=torch.channels_last) for x in images]
                labels = torch.randint(10, (m, 64), generator=generator)
                joint = stack([copy.deepcopy(net) for net in nets])

                def alone(nets=nets, each=each, labels=labels) -> None:
                    for net, x, y in zip(nets, each, labels, strict=True):
                        F.cross_entropy(net(x), y).backward()

                def together(joint=joint, images=images, labels=labels, m=m) -> None:
                    (m * F.cross_entropy(joint(images).flatten(0, 1), labels.flatten())).backward()

                a, b, ratio = paired(alone, together, arguments.rounds)
                rows.append(
                    {"threads": threads, "shape": shape, "channels": channels, "networks": m, "alone_ms": 1e3 * a,
                     "together_ms": 1e3 * b, "ratio": ratio}
                )  # fmt: skip
                print(rows[-1], flush=True)
    record = {
        "command": "python benchmarks/stacking.py",
        "environment": environment(torch.device("cpu")),
        "rounds": arguments.rounds,
        "rows": rows,
    }
    OUT.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
