"""How fast is a search step, against the published way of computing it?

    python benchmarks/speed.py                 every row; about 35 minutes on two idle cores
    python benchmarks/speed.py --short         small networks, one round: that the rows can be measured, not how fast
    python benchmarks/speed.py --row nb201     one row; the others stay as they are in the record

Ours and the published step (`published.py`) take turns in one process: A B A B, medians, the median of the ratios round
by round. Both start from the same weights, and their losses are compared before anything is timed. Peak memory is of a
process of its own for each, above what Python, torch and one small convolution take. Nothing else should run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from records import measure
from searches import search_row
from steps import Case, in_turn

from bayesarch.workflows.waiting import wait_shortly

wait_shortly()  # as the command line does

OUT = Path(__file__).parent / "results" / "speed.json"
NETS: dict[str, dict[str, Any]] = {
    "nb201": {"space": "nb201", "sizes": {"channels": 16, "cells": 5}, "batch": 64, "rounds": 5},
    "darts": {"space": "darts", "sizes": {"channels": 16, "layers": 8}, "batch": 64, "rounds": 3},
    "bayesnas-cell": {"space": "bayesnas-cell", "sizes": {"channels": 36, "layers": 8}, "batch": 18, "rounds": 3},
}
SHORT: dict[str, dict[str, Any]] = {
    "nb201": {"space": "nb201", "sizes": {"channels": 4, "cells": 1}, "batch": 8, "rounds": 1},
    "darts": {"space": "darts", "sizes": {"channels": 4, "layers": 3}, "batch": 8, "rounds": 1},
    "bayesnas-cell": {"space": "bayesnas-cell", "sizes": {"channels": 4, "layers": 3}, "batch": 8, "rounds": 1},
}
COMPILED = ("nb201",)
"""Spaces whose step is compiled as well, which takes minutes."""
PUBLISHED_CURVATURE = 2900.0
"""Seconds of BayesNAS's released curvature update for a batch of 18, extrapolated: shared/specs/speed.md, section 3."""


def peak_of(which: str, name: str, given: Mapping[str, Any]) -> float:
    """Return the peak of resident memory of two steps in a process of its own, MiB."""
    command = [sys.executable, __file__, "--peak", which, "--given", json.dumps(dict(given)), "--row", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_peak(which: str, given: Mapping[str, Any]) -> None:
    """Print by how much this process's resident memory grows with two steps, MiB."""
    import torch

    torch.nn.functional.conv2d(torch.zeros(1, 3, 8, 8), torch.zeros(4, 3, 3, 3))
    before = kib("VmRSS")
    case = Case(given)
    if which.startswith("fused"):
        case.net.fuse()
    step = case.published() if which == "published" else case.ours()
    if which == "published":
        del case.net
    if which.endswith("bf16"):
        step = _in_bf16(step)
    step()
    step()
    print((kib("VmHWM") - before) / 1024)


def kib(key: str) -> int:
    """Return what the system says of this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def step_row(name: str, given: Mapping[str, Any], *, peaks: bool = True) -> dict[str, Any]:
    """Return ours against the published step, in time and, in processes of their own, in memory."""
    case = Case(given)
    found = in_turn({"published": case.published(), "ours": case.ours()}, given["rounds"], "published")
    memory = {which: peak_of(which, name, given) for which in ("published", "ours") if peaks}
    return {"given": dict(given), "steps": found, "peak_mib": memory, "batch": given["batch"]}


def ways_row(nets: Mapping[str, Mapping[str, Any]], *, short: bool) -> dict[str, Any]:
    """Return our step with compiled regions, and in bf16, against the published step in fp32.

    The compiler begins with an empty folder; what it takes until both passes have run once stands beside its figure.
    """
    found: dict[str, Any] = {}
    for name in ("nb201",) if short else ("nb201", "darts"):
        case = Case(nets[name])
        works = {"published": case.published(), "ours": case.ours(), "ours, bf16": _in_bf16(case.ours())}
        if name in COMPILED:
            other = Case(nets[name])
            other.net.compile_regions()
            works["compiled"] = other.ours()
            with tempfile.TemporaryDirectory() as folder:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
                began = time.perf_counter()
                works["compiled"]()
                compiling = {"compiling": time.perf_counter() - began}
        else:
            compiling = {}
        steps = in_turn(works, nets[name]["rounds"], "published")
        found[name] = {"given": dict(nets[name]), "steps": steps, **compiling}
    return {"of": found}


def fused_row(nets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return our step with sums by kernels of ours against the published step in fp32, and peaks.

    In fp32, and in bf16 where the processor has it. The kernels are compiled before, which takes some seconds once.
    """
    found: dict[str, Any] = {}
    for name, given in nets.items():
        plain, fused = Case(given), Case(given)
        fused.net.fuse()
        works = {"published": plain.published(), "ours": plain.ours(), "fused": fused.ours()}
        if multiplies_bf16():
            works |= {"ours, bf16": _in_bf16(plain.ours()), "fused, bf16": _in_bf16(fused.ours())}
        steps = in_turn(works, given["rounds"], "published")
        memory = {which: peak_of(which, name, given) for which in works if which != "ours, bf16"}
        found[name] = {"given": dict(given), "steps": steps, "peak_mib": memory}
    return {"of": found}


def multiplies_bf16(known: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the processor does, by what the system knows of it; others take long by doing as if."""
    return known.exists() and bool({"avx512_bf16", "amx_bf16"} & set(known.read_text().split()))


def _in_bf16(step: Callable[[], Any]) -> Callable[[], None]:
    import torch

    def work() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            step()

    return work


AUGMENTED = "PIL in a loader"


def fused_searches() -> list[str]:
    """Return the fused searches that this machine can do."""
    return ["BPNAS, fused", *(["BPNAS, fused, bf16"] if multiplies_bf16() else [])]


def pruned_row(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the step when options have been removed, against the published step with all of them."""
    import random

    works: dict[str, Callable[[], None]] = {}
    first = Case(given)
    works["published, all"] = first.published()
    works["all"] = first.ours()
    rng = random.Random(0)
    order = [rng.sample(row, len(row)) for row in first.rows]
    for kept in (3, 2, 1):
        case = Case(given)
        live = first.net.live.clone()
        for mine in order:
            live[mine[kept:]] = False
        case.net.prune(live)
        works[f"{kept} an edge"] = _of_live(case)
    return {"given": dict(given), "steps": in_turn(works, given["rounds"], "published, all")}


def _of_live(case: Case) -> Callable[[], None]:
    """Return a bilevel step of a pruned network at equal weights of what is left."""
    import torch

    from bayesarch.engine import Weights
    from bayesarch.methods.bilevel import AlphaConfig, bilevel_step, fresh_logits

    weights = Weights(case.net, momentum=0.9, weight_decay=3e-4, nesterov=False, clip=5.0)
    live = case.net.live.float()
    logits = fresh_logits(len(live), generator=torch.Generator().manual_seed(0), device=torch.device("cpu"))

    def step() -> None:
        weights.zero()
        bilevel_step(
            logits,
            lambda a: torch.sigmoid(a) * live,
            case.net,
            case.batches,
            config=AlphaConfig(),
            lr=3e-4,
            moving=True,
        )
        weights.step(0.025)

    return step


def curvature_row(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return BayesNAS's curvature update of one batch, exact and Monte-Carlo, against one gradient in the gates."""
    import torch
    from torch.nn import functional as F

    from bayesarch.engine import gate_curvature

    case = Case(given)
    x, y = case.batches["architecture"].images, case.batches["architecture"].labels
    gates = torch.ones(1, 1, case.space.n_options)

    class OneBatch:
        def in_order(self, batch_size: int, limit: int | None = None) -> Any:
            yield case.batches["architecture"]

    def gradient() -> None:
        leaf = gates.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(case.net(x, leaf), y), leaf)

    def curvature(mode: Any) -> Callable[[], Any]:
        generator = torch.Generator().manual_seed(0)
        return lambda: gate_curvature(
            case.net,
            gates,
            OneBatch(),
            mode=mode,
            batch_size=given["batch"],
            generator=generator,  # type: ignore[arg-type]
        )

    works = {"one gradient": gradient, "exact": curvature("exact"), "mc": curvature("mc"), "step": case.ours()}
    found = in_turn(works, given["rounds"], "one gradient")
    against = {mode: PUBLISHED_CURVATURE / found[mode]["seconds"] for mode in ("exact", "mc")}
    # the figure is for the sizes of the full form alone
    return {"given": dict(given), "steps": found, "against_extrapolated": against if given["batch"] == 18 else None}


def augmentation_row(n: int, rounds: int) -> dict[str, Any]:
    """Return crop, flip, cutout and scaling of batches of 128, against PIL in a loader, image by image."""
    import numpy as np
    import torch
    from published import PublishedImages
    from torch.utils.data import DataLoader

    from bayesarch.data import DataConfig, Feeder
    from bayesarch.data.pipeline import MemorySplit

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n)
    mean, std = np.full(3, 120.0), np.full(3, 60.0)
    split = MemorySplit(
        images, labels, config=DataConfig(crop=4, flip=True, cutout=16), mean=mean, std=std, device=torch.device("cpu")
    )
    streams = [torch.Generator().manual_seed(i) for i in range(2)]
    feeder = Feeder(split, 128, order=streams[0], augment=streams[1])
    published = PublishedImages(images, labels, mean=mean / 255, std=std / 255)

    def by_image() -> None:
        for _ in DataLoader(published, batch_size=128, shuffle=True, drop_last=True):
            pass

    def ours() -> None:
        for _ in range(n // 128):
            feeder.next()

    found = in_turn({AUGMENTED: by_image, "ours": ours}, rounds, AUGMENTED)
    for row in found.values():
        row["images_per_second"] = n / row["seconds"]
    return {"images": n, "steps": found}


def roofline_row(nets: Mapping[str, Mapping[str, Any]], *, short: bool) -> dict[str, Any]:
    """Return how far the steps of two spaces are from the machine's measured limits."""
    from roofline import ceilings, roofline

    limits = ceilings(256, 2**20) if short else ceilings()
    return {"limits": limits, "of": {name: roofline(Case(nets[name]).ours(), limits) for name in ("nb201", "darts")}}


def growth_row(short: bool) -> dict[str, Any]:
    """Return how the seconds of our step grow: least-squares exponents of one size at a time, nb201."""
    import numpy as np

    base = {"channels": 8, "cells": 1, "side": 32, "classes": 10, "batch": 32}
    ranges = {
        "channels": (8, 16, 32, 64), "cells": (1, 2, 4, 8), "side": (16, 32, 64), "classes": (10, 100, 1000),
        "batch": (16, 32, 64, 128),
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, values in ranges.items():
        seconds = []
        for value in values[:2] if short else values:
            now = {**base, name: value}
            sizes = {"channels": now["channels"], "cells": now["cells"]}
            case = Case(
                {"space": "nb201", "sizes": sizes, "batch": now["batch"]}, side=now["side"], classes=now["classes"]
            )
            row = in_turn({"ours": case.ours()}, 1 if short else 5, "ours")["ours"]
            seconds.append(row["least"])
        exponent = float(np.polyfit(np.log(values[: len(seconds)]), np.log(seconds), 1)[0])
        found[name] = {"values": list(values[: len(seconds)]), "seconds": seconds, "exponent": exponent}
    return {"base": base, "of": found}


def main() -> None:
    """Measure, and write the record after each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", action="append")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--peak", choices=["ours", "published", "fused", "fused, bf16"], help=argparse.SUPPRESS)
    parser.add_argument("--given", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(arguments.peak, json.loads(arguments.given))
        return
    nets = SHORT if arguments.short else NETS
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        **{name: partial(step_row, name, nets[name], peaks=name == "nb201" or not arguments.short) for name in nets},
        "fused": lambda: fused_row({"nb201": nets["nb201"]} if arguments.short else nets),
        "ways": lambda: ways_row(nets, short=arguments.short),
        "search": lambda: search_row(["BPNAS"], short=arguments.short),
        "search-fused": lambda: search_row(fused_searches()[: 1 if arguments.short else None], short=arguments.short),
        "pruned": lambda: pruned_row(nets["nb201"]),
        "curvature": lambda: curvature_row(nets["bayesnas-cell"]),
        "augmentation": lambda: augmentation_row(*((256, 1) if arguments.short else (2560, 25))),
        "roofline": lambda: roofline_row(nets, short=arguments.short),
        "growth": lambda: growth_row(arguments.short),
    }
    # compiling takes minutes at any size, and one search is enough to see that searches can be measured
    wanted = [name for name in rows if name not in ("ways", "search") or not arguments.short]
    measure(rows, arguments.row or wanted, arguments.out)


if __name__ == "__main__":
    main()
