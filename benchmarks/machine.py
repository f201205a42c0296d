"""What the library does on this machine, that our choices rest on: memory, threads, convolutions, smaller networks.

    python benchmarks/machine.py               about 15 minutes on two idle cores
    python benchmarks/machine.py --short       one size each: that the rows can be measured
    python benchmarks/machine.py --row memory  one row; the others stay as they are in the record

Nothing else should run.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from records import measure
from speed import kib
from steps import Case, in_turn
from waiting import WAYS, environment, waiting_row

from bayesarch.workflows.heap import TUNABLES

OUT = Path(__file__).parent / "results" / "machine.json"
MEMORY: list[tuple[str, str, dict[str, int], int, int]] = [
    ("bpnas", "nb201", {"channels": 16, "cells": 1}, 16, 32),
    ("bpnas", "nb201", {"channels": 16, "cells": 1}, 64, 32),
    ("bpnas", "nb201", {"channels": 16, "cells": 1}, 128, 32),
    ("bpnas", "nb201", {"channels": 8, "cells": 2}, 64, 32),
    ("bpnas", "nb201", {"channels": 16, "cells": 1}, 64, 8),
    ("darts", "darts", {"channels": 8, "layers": 3}, 32, 32),
    ("bpnas", "darts", {"channels": 16, "layers": 5}, 16, 32),
    ("bayesnas", "bayesnas-cell", {"channels": 8, "layers": 3}, 18, 32),
]
"""(method, space, sizes, batch, side) of searches whose memory is told and measured."""


PAGED = (1, 4, 5, 7)
"""Places in it of those whose steps are timed with pages of their own for large tensors."""


def photographs(batch: int, side: int) -> tuple[Any, Any]:
    """Return random images and labels, as many as a few steps take."""
    import numpy as np

    rng, n = np.random.default_rng(0), 12 * batch + 120
    return rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8), np.arange(n) % 10


def sized(sizes: dict[str, int], batch: int) -> dict[str, Any]:
    """Return the settings of a search of some sizes."""
    return {"engine.batch_size": batch, **{f"space.{key}": value for key, value in sizes.items()}}


def memory_of(place: int, paged: bool) -> dict[str, float]:
    """Return what a search is told to hold, and by how much a process grows over a whole one of two epochs, MiB.

    Args:
        place: in `MEMORY`.
        paged: whether large tensors have pages of their own.
    """
    import torch

    import bayesarch as ba
    from bayesarch.workflows.fitting import resident
    from bayesarch.workflows.job import prepare

    torch.set_num_threads(1)
    method, space, sizes, batch, side = MEMORY[place]
    data, settings = photographs(batch, side), sized(sizes, batch) | {"engine.own_pages": paged}
    short = {"engine.epochs": 2} | ({"method.reopen_steps": 0} if method == "bpnas" else {})
    before = kib("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        ba.search(data, space=space, method=method, set=settings | short, out=Path(folder) / "run")
    grown = (kib("VmHWM") - before) / 1024
    told = prepare(data, space=space, method=method, set=settings).trial().memory()
    return {
        "grown": grown,
        "told": told / 2**20,
        "resident": resident(told, torch.device("cpu"), paged=paged, recomputed=False) / 2**20,
    }


def memory_row(short: bool) -> dict[str, Any]:
    """Return told and resident memory of several searches: in the heap, in a tight one, with pages of their own."""
    found = []
    for place, (method, space, sizes, batch, side) in enumerate(MEMORY[4:5] if short else MEMORY):
        at = place + 4 * short
        row = {"method": method, "space": space, "sizes": sizes, "batch": batch, "side": side}
        found.append(row | {way: _alone("--memory", at, way) for way in ("heap", "tight", "paged")})
    return {"of": found}


def pages_row(short: bool) -> dict[str, Any]:
    """Return how long a step takes with pages of its own for large tensors, over one with the heap's.

    In processes of their own, in turn: a heap that has once grown serves what would have had pages of its own.
    """
    given = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    large = given.read_text().partition("[")[2].partition("]")[0] if given.is_file() else "unknown"
    found = []
    for place in (4,) if short else PAGED:
        ways = ("heap", "tight", "paged")
        rounds = [{way: _alone("--step", place, way) for way in ways} for _ in range(1 if short else 3)]
        ratios = [each["paged"]["seconds"] / each["heap"]["seconds"] for each in rounds]
        tight = statistics.median(each["tight"]["seconds"] / each["heap"]["seconds"] for each in rounds)
        of_system = statistics.median(each["paged"]["system"] for each in rounds)
        found.append(
            {"seconds": {way: statistics.median(each[way]["seconds"] for each in rounds) for way in rounds[0]},
             "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "system": of_system,
             "tight": tight}
        )  # fmt: skip
    return {"large pages": large, "of": found}


def step_of(place: int, way: str) -> dict[str, float]:
    """Return seconds of a search's step by one thread, and the share of its work that is the system's."""
    import torch

    from bayesarch.engine import own_pages
    from bayesarch.workflows.job import prepare

    torch.set_num_threads(1)
    method, space, sizes, batch, side = MEMORY[place]
    times: list[float] = []
    with own_pages(way == "paged"):
        trial = prepare(photographs(batch, side), space=space, method=method, set=sized(sizes, batch)).trial()
        for _ in range(2):
            trial.step(batch)
        before = resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(7):
            began = time.perf_counter()
            trial.step(batch)
            times.append(time.perf_counter() - began)
    after = resource.getrusage(resource.RUSAGE_SELF)
    system, own = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
    return {"seconds": statistics.median(times), "system": system / (system + own)}


def _alone(what: str, place: int, way: str) -> dict[str, float]:
    command = [sys.executable, __file__, what, str(place), way]
    surroundings = {**os.environ, "GLIBC_TUNABLES": TUNABLES if way == "tight" else ""}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=surroundings)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def points_row(short: bool) -> dict[str, Any]:
    """Return (input, output) channels of strided 1 x 1 convolutions whose gradients end a process: plain, and ours."""
    import torch

    wide = (1, 4) if short else (1, 2, 3, 5, 8, 12, 16, 32)
    tried = [(inputs, outputs) for inputs in range(1, 4 if short else 13) for outputs in wide]
    plain, ours = ([pair for pair in tried if not _lives(*pair, ours=ours)] for ours in (False, True))
    return {"isa": torch.backends.cpu.get_cpu_capability(), "tried": len(tried), "plain": plain, "ours": ours}


def _lives(inputs: int, outputs: int, *, ours: bool) -> bool:
    """Return whether a process lives through 60 gradients, channels last, with small blocks of memory between."""
    import torch

    from bayesarch.nets.pointwise import pixels_first

    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        torch.set_num_threads(1)
        conv = torch.nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)
        conv = (pixels_first(conv) if ours else conv).to(memory_format=torch.channels_last)
        kept = []
        for i in range(60):
            x = torch.randn(8, inputs, 12, 12).contiguous(memory_format=torch.channels_last)
            conv(x).square().sum().backward()
            kept += [torch.randn(1 + (37 * i + 11 * j) % 400) for j in range(20)]
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def threads_row(short: bool) -> dict[str, Any]:
    """Return weights' passes of nb201 by one thread and by two, in each way to wait."""
    sizes = [(8, 8, 1), (8, 16, 1), (8, 32, 1), (8, 16, 5), (16, 16, 1), (28, 8, 1), (16, 32, 1), (32, 16, 1)]
    return {
        "batch": 64,
        **{way: _passes(sizes[:1] if short else sizes, way) for way in WAYS},
    }


def _passes(sizes: list[tuple[int, int, int]], way: str) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, "--threads", json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(way))
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def passes_by_threads(sizes: list[list[int]]) -> list[dict[str, Any]]:
    """Return a weights' pass at each size, by one thread and by two in turn."""
    import torch
    from torch.nn import functional as F

    found = []
    for side, channels, cells in sizes:
        case = Case({"space": "nb201", "sizes": {"channels": channels, "cells": cells}, "batch": 64}, side=side)
        gates, batch = torch.full((1, 1, case.space.n_options), 0.2), case.batches["weights"]

        def step(threads: int, case: Case = case, gates: Any = gates, batch: Any = batch) -> None:
            torch.set_num_threads(threads)
            case.net.zero_grad()
            F.cross_entropy(case.net(batch.images, gates), batch.labels).backward()

        def twice(threads: int, step: Any = step) -> Callable[[], None]:
            return lambda: (step(threads), step(threads))[0]

        works = {"one": twice(1), "two": twice(2)}
        found.append(
            {"side": side, "channels": channels, "cells": cells, "macs": 64 * case.net.full_macs,
             "steps": in_turn(works, 7, "one")}
        )  # fmt: skip
    return found


def depthwise_row(short: bool) -> dict[str, Any]:
    """Return the parts of a depthwise convolution by the library and by `nets/depthwise.py`, one thread, batch 64."""
    import torch

    from bayesarch.nets.depthwise import kernel_gradient

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    shapes = [
        (16, 32, 3, 1),
        (16, 32, 5, 1),
        (16, 32, 3, 2),
        (16, 32, 5, 2),
        (32, 16, 3, 2),
        (32, 16, 5, 2),
        (64, 8, 5, 2),
    ]
    found = []
    for channels, side, kernel, d in shapes[:1] if short else shapes:
        x, dy = (torch.randn(64, channels, side, side).contiguous(memory_format=torch.channels_last) for _ in range(2))
        weight, pad = torch.randn(channels, 1, kernel, kernel), d * (kernel - 1) // 2

        def back(mask: list[bool], x: Any = x, dy: Any = dy, w: Any = weight, pad: int = pad, d: int = d) -> Any:
            return lambda: torch.ops.aten.convolution_backward(
                dy, x, w, None, [1, 1], [pad, pad], [d, d], False, [0, 0], len(w), mask
            )

        def forward(y: Any, w: Any, pad: int = pad, d: int = d) -> Callable[[], Any]:
            return lambda: torch.conv2d(y, w, None, 1, pad, d, len(w))

        def ours(x: Any = x, dy: Any = dy, w: Any = weight, d: int = d) -> Any:
            return kernel_gradient(x, dy, w, d)

        works = {
            "forward": forward(x, weight),
            "library, input": back([True, False, False]),
            "ours, input": forward(dy, weight.flip(2, 3)),
            "library, kernel": back([False, True, False]),
            "ours, kernel": ours,
        }
        found.append(
            {"channels": channels, "side": side, "kernel": kernel, "dilation": d,
             "steps": in_turn(works, 2 if short else 15, "forward")}
        )  # fmt: skip
    torch.set_num_threads(before)
    return {"of": found}


def cuts_row(short: bool) -> dict[str, Any]:
    """Return what it is worth to cut every second unit of well-known networks, one thread, images one by one and 64."""
    import torch

    from bayesarch.nets import CLASSICS, cut_units, network_cost, units_of
    from bayesarch.nets.module import in_layout

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    shapes = {
        "lenet-300-100": (1, 28, 28),
        "lenet-500-300": (1, 28, 28),
        "lenet-5": (1, 28, 28),
        "mobilenet": (3, 32, 32),
        "resnet18": (3, 32, 32),
        "vgg16": (3, 32, 32),
    }
    found = []
    for name in ["lenet-300-100"] if short else shapes:
        shape = shapes[name]
        whole = CLASSICS[name](shape, 10)
        units = units_of(whole, shape)
        keep = torch.ones(units.count, dtype=torch.bool)
        leaving = units.free.clone()
        leaving[units.inputs] = False
        keep[leaving.nonzero().flatten()[::2]] = False
        small = in_layout(cut_units(whole, units, keep), shape).eval()
        nets = {"whole": in_layout(whole, shape).eval(), "cut": small}
        steps = {}
        for batch in (1, 64):
            images = torch.randn(batch, *shape).contiguous(memory_format=torch.channels_last)

            def ahead(net: Any, images: Any = images) -> Callable[[], None]:
                def go() -> None:
                    with torch.inference_mode():
                        net(images)

                return go

            works = {key: ahead(net) for key, net in nets.items()}
            steps[str(batch)] = in_turn(works, 2 if short else 15, "whole")
        macs = [network_cost(net, shape).macs for net in (nets["whole"], small)]
        found.append({"network": name, "macs": macs, "steps": steps})
    torch.set_num_threads(before)
    return {"of": found}


def main() -> None:
    """Measure, and write the record after each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", action="append")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--threads", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory is not None:
        print(json.dumps(memory_of(int(arguments.memory[0]), arguments.memory[1] == "paged")))
        return
    if arguments.step is not None:
        print(json.dumps(step_of(int(arguments.step[0]), arguments.step[1])))
        return
    if arguments.threads:
        print(json.dumps(passes_by_threads(json.loads(arguments.threads))))
        return
    rows = {
        "memory": lambda: memory_row(arguments.short),
        "pages": lambda: pages_row(arguments.short),
        "points": lambda: points_row(arguments.short),
        "threads": lambda: threads_row(arguments.short),
        "waiting": lambda: waiting_row(arguments.short),
        "depthwise": lambda: depthwise_row(arguments.short),
        "cuts": lambda: cuts_row(arguments.short),
    }
    measure(rows, arguments.row or list(rows), arguments.out)


if __name__ == "__main__":
    main()
