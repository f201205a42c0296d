"""What docs/results.md says of speed, from the record of benchmarks/speed.py."""

from collections.abc import Callable, Iterable

from waiting import WAYS

__all__ = ["elsewhere_part", "machine_part", "speed_part"]

Table = Callable[[list[str], list[list[str]]], str]
Machine = Callable[[dict], str]
HEAD = ["step", "seconds", "times faster"]


def _ratio(cell: dict) -> str:
    """Return the median of the rounds' ratios, and their range."""
    return f"{cell['ratio']:.2f} ({cell['lowest']:.2f} to {cell['highest']:.2f})"


def _steps(row: dict, table: Table, base: str) -> str:
    body = [
        [name, f"{cell['seconds']:.3f}", "1" if name == base else _ratio(cell)] for name, cell in row["steps"].items()
    ]
    return table(HEAD, body)


def _networks(rows: dict, table: Table) -> str:
    body = []
    for name in ("nb201", "darts", "bayesnas-cell"):
        if name in rows:
            row = rows[name]
            steps, peak = row["steps"], row["peak_mib"]
            sizes = ", ".join(f"{key} {value}" for key, value in row["given"]["sizes"].items())
            body.append(
                [
                    name, f"{sizes}, batch {row['batch']}", f"{steps['published']['seconds']:.2f}",
                    f"{steps['ours']['seconds']:.2f}", _ratio(steps["ours"]), f"{peak['published']:.0f}",
                    f"{peak['ours']:.0f}", f"{peak['ours'] / peak['published']:.2f}",
                ]
            )  # fmt: skip
    head = ["space", "sizes", "published way, s", "ours, s", "times faster", "its peak, MiB", "our peak, MiB", "ratio"]
    return "### A first-order step, 32 × 32 pixels\n\n" + table(head, body)


def _ways(row: dict, table: Table) -> str:
    ways = ("ours", "ours, bf16", "compiled")
    body = [
        [name, *(_ratio(cell["steps"][way]) if way in cell["steps"] else "–" for way in ways),
         f"{cell['compiling']:.0f}" if "compiling" in cell else "–"]
        for name, cell in row["of"].items()
    ]  # fmt: skip
    head = ["space", *ways, "compiling, s"]
    return (
        "### The same step in bf16, and compiled\n\nTimes faster than the published step in fp32; compiled as "
        "`engine.compile` does, the time until both passes have run once beside it and in no figure.\n\n"
        + table(head, body)
    )


def _fused(row: dict, table: Table) -> str:
    cells = list(row["of"].values())
    ways = [way for way in ("ours", "ours, bf16", "fused", "fused, bf16") if all(way in c["steps"] for c in cells)]
    kept = [way for way in ways if all(way in c["peak_mib"] for c in cells)]
    body = [
        [name, *(_ratio(cell["steps"][way]) for way in ways),
         *(f"{cell['peak_mib'][way] / cell['peak_mib']['published']:.2f}" for way in kept)]
        for name, cell in row["of"].items()
    ]  # fmt: skip
    head = ["space", *ways, *(f"peak memory: {way}" if way == kept[0] else way for way in kept)]
    return (
        "### Sums by kernels of our own\n\nTimes faster than the published step in fp32, and peak memory over its own; fused "
        "as `engine.fused` does. Rounds of their own, so that *ours* is not to the digit what it is above.\n\n"
        + table(head, body)
    )


def _search(rows: Iterable[dict], table: Table) -> str:
    """Return whole searches; in older rows all stand beside the same steps, which were taken after them."""
    body = [
        [f"{name}, {found['epochs']} epochs to one operation per edge", f"{found['seconds']:.0f}",
         *(f"{seconds:.0f}" for seconds in others), *(f"{found['seconds'] / seconds:.2f}" for seconds in others),
         f"{100 * found['selection_accuracy']:.1f}"]
        for row in rows
        for name, found in row["searches"].items()
        for others in [[found.get("others", row.get("seconds"))[key] for key in ("published", "ours, drnas")]]
    ]  # fmt: skip
    head = [
        "",
        "seconds",
        "100 epochs of the published step",
        "of our DrNAS",
        "over the published step's",
        "over our DrNAS's",
        "accuracy on the selection split, %",
    ]
    return (
        "### A whole search, 5,000 images of CIFAR-10 (JPEG q75), C = 8, N = 1\n\nOne run each, seed 0; compiling kernels is in "
        "the time. The two of 100 epochs are their step's median times the number of their steps: steps in turn with the "
        "epochs of the search where the row has them, else five after it.\n\n" + table(head, body)
    )


def _curvature(row: dict, table: Table) -> str:
    against, steps = row["against_extrapolated"], row["steps"]
    gradient, step = steps["one gradient"]["seconds"], steps["step"]["seconds"]
    body = [
        [name, f"{steps[name]['seconds']:.2f}", f"{steps[name]['seconds'] / gradient:.1f}",
         f"{steps[name]['seconds'] / step:.1f}", f"{against[name]:.0f}"]
        for name in ("exact", "mc")
    ]  # fmt: skip
    head = [
        "curvature of a batch",
        "seconds",
        "gradients in the gates",
        "steps",
        "published update, extrapolated, over it",
    ]
    return f"### BayesNAS's curvature, batch {row['given']['batch']}\n\n" + table(head, body)


def _growth(row: dict, table: Table) -> str:
    body = [
        [name, ", ".join(map(str, cell["values"])), ", ".join(f"{1e3 * s:.0f}" for s in cell["seconds"]),
         f"{cell['exponent']:.2f}"]
        for name, cell in row["of"].items()
    ]  # fmt: skip
    base = ", ".join(f"{name} {value}" for name, value in row["base"].items())
    head = ["size", "values", "milliseconds of a step", "exponent"]
    return f"### How a step grows, nb201 ({base}; one at a time)\n\n" + table(head, body)


def _roofline(row: dict, table: Table) -> str:
    limits = row["limits"]
    parts = [
        "### How far from the machine's limits\n\n"
        f"Measured limits: {limits['flops'] / 1e9:.0f} GFLOP/s (a product of matrices, fp32), "
        f"{limits['bytes'] / 1e9:.0f} GB/s (a copy of memory larger than the caches). *Least*: the longer of FLOPs over the "
        "one and bytes over the other. Less than it can be taken where data stay in the caches.\n"
    ]
    for name, kinds in row["of"].items():
        whole = sum(kind["seconds"] for kind in kinds.values())
        least = sum(kind["least"] for kind in kinds.values())
        body = [
            [kind, f"{cell['calls']:.0f}", f"{100 * cell['seconds'] / whole:.0f} %",
             f"{cell['flops'] / cell['seconds'] / 1e9:.0f}", f"{cell['bytes'] / cell['seconds'] / 1e9:.1f}",
             f"{cell['seconds'] / cell['least']:.1f}"]
            for kind, cell in kinds.items()
        ]  # fmt: skip
        body.append(["all", "", f"{whole:.2f} s", "", "", f"{whole / least:.1f}"])
        head = [name, "calls", "share of the time", "GFLOP/s", "GB/s", "times the least"]
        parts.append(table(head, body) + "\n")
    return "\n".join(parts)


def machine_part(record: dict | None, table: Table, machine: Machine) -> list[str]:
    """Return the page's part on what our choices rest on; none where there is no record."""
    if record is None:
        return []
    rows = record["rows"]
    held = [
        [f"{row['method']}, {row['space']}", ", ".join(f"{k} {v}" for k, v in row["sizes"].items()), str(row["batch"]),
         str(row["side"]), f"{row['heap']['told']:.0f}",
         *(f"{row[way][key]:.0f}" for way in ("heap", "tight", "paged") for key in ("resident", "grown"))]
        for row in rows["memory"]["of"]
    ]  # fmt: skip
    slower = ", ".join(f"{_ratio(row)}, {row['system']:.0%}" for row in rows["pages"]["of"])
    tight = ", ".join(f"{row['tight']:.2f}" for row in rows["pages"]["of"])
    called = {"passive": "asleep", "shortly": "looking first", "active": "spinning"}
    known = [way for way in WAYS if way in rows["threads"]]
    passes = [
        [f"{ways[0]['side']}, {ways[0]['channels']}, {ways[0]['cells']}", f"{ways[0]['macs'] / 1e9:.2f}",
         f"{1e3 * ways[0]['steps']['one']['seconds']:.0f}", *(_ratio(way["steps"]["two"]) for way in ways)]
        for ways in zip(*(rows["threads"][way] for way in known), strict=True)
    ]  # fmt: skip
    places = {"alone": "alone", "company": "beside one busy process", "published": "the published step, alone"}
    waits = [
        [name, places[place],
         *(f"{by[way]['seconds']:.2f} ({min(by[way]['all']):.2f} to {max(by[way]['all']):.2f})" for way in WAYS)]
        for name, row in rows.get("waiting", {"of": {}})["of"].items()
        for place, by in row.items()
    ]  # fmt: skip
    names = ("forward", "library, input", "ours, input", "library, kernel", "ours, kernel")
    deep = [
        [f"{row['channels']}, {row['side']}, {row['kernel']}, {row['dilation']}",
         *(f"{1e3 * row['steps'][name]['seconds']:.2f}" for name in names)]
        for row in rows["depthwise"]["of"]
    ]  # fmt: skip
    cuts = [
        [row["network"], f"{row['macs'][0] / row['macs'][1]:.2f}",
         *(cell for batch in ("1", "64") for cell in (f"{1e3 * row['steps'][batch]['whole']['seconds']:.2f}",
           _ratio(row["steps"][batch]["cut"])))]
        for row in rows.get("cuts", {"of": []})["of"]
    ]  # fmt: skip
    return [
        "## What the machine does\n\n### Memory told and taken\n\n*Tensors*: alive at once, told from two small steps. "
        "*Grown*: resident memory of a process of its own over a whole search of two epochs, report included: in the heap, "
        "where it is *told* to be 3 times the tensors and 110 MiB at most; in a tight one, as `bayesarch search` has it (1.7 "
        "times and 130 MiB); and with pages of their own for large tensors (`engine.own_pages`, 1.1 times and 150 MiB). Where "
        "cells are computed twice 70 MiB more are told, for what torch loads then.\n\n"
        + table(
            [
                "search",
                "sizes",
                "batch",
                "side",
                "tensors, MiB",
                "heap: told",
                "grown",
                "tight: told",
                "grown",
                "own pages: told",
                "grown",
            ],
            held,
        )
        + "\n\nHow many times as long a step takes with pages of its own, one thread (range over 3 pairs of processes), and "
        f"the system's share of its work, for the second, fifth, sixth and last of these: {slower}. The system gives "
        f"large pages: {rows['pages']['large pages']}. In a tight heap: {tight} times (medians).\n",
        "### Strided points\n\n1 x 1 convolutions at stride 2, channels last, 60 gradients each in a process of its own: of "
        f"{rows['points']['tried']} pairs of input (1 to 12) and output channels (1 to 32) "
        f"{len(rows['points']['plain'])} ended the process with the plain convolution, those of "
        f"{', '.join(map(str, sorted({pair[0] for pair in rows['points']['plain']})))} input channels, and "
        f"{len(rows['points']['ours'])} with the pixels taken first (`nets/pointwise.py`); {rows['points']['isa']}.\n",
        "### One thread and two\n\nA weights' pass of nb201, batch 64; the two in turn, medians of 7, how many times faster two "
        "are than one (range over rounds), where threads that wait sleep, look 3,000 times first as ours do, or spin.\n\n"
        + table(
            ["side, C, cells", "GMACs forward", "one, ms", "two, asleep", "two, looking first", "two, spinning"], passes
        )
        + "\n",
        "### Threads that wait\n\nSeconds of a step (nb201: C 16, 5 cells a stage; DARTS's space: C 16, 5 cells; batch 64, fp32, two "
        "threads), each in a process of its own, medians and ranges of 3: *company* is one process that never rests.\n\n"
        + table(["space", "machine", *(called[way] for way in WAYS)], waits)
        + "\n",
        "### Depthwise convolutions\n\nOne thread, batch 64, channels-last, medians of 15, milliseconds: gradients of input and "
        "kernel by the library and by `nets/depthwise.py`.\n\n"
        + table(["C, side, kernel, dilation", *names], deep)
        + "\n",
        "### Smaller networks\n\nEvery second unit cut (`nets.cut_units`), one thread, fp32; latency of one image and of 64, the "
        "two networks in turn, medians of 15, how many times faster the smaller one is (range over rounds).\n\n"
        + table(["network", "times fewer MACs", "one image, ms", "times faster", "64 images, ms", "times faster"], cuts)
        + "\n",
        f"{machine(record)}\n",
    ]


def elsewhere_part(name: str, record: dict, table: Table, machine: Machine) -> list[str]:
    """Return the page's part on steps of a later day and another machine, under a record of its own."""
    head = (
        f"## Speed of a search step, on another machine: {name}\n\nOf a later day. Not to be compared line by line with "
        "what is above: code and machine have both changed.\n"
    )
    return [head, *_measured(record["rows"], table), f"{machine(record)}\n"]


def speed_part(record: dict | None, table: Table, machine: Machine) -> list[str]:
    """Return the page's part on speed; none where there is no record."""
    if record is None:
        return []
    head = (
        "## Speed of a search step\n\nOurs against the published way of computing the same step (`benchmarks/published.py`, "
        "equal weights, losses compared first): the two in turn in one process, medians, the median of the rounds' ratios and "
        "their range. Peaks are of processes of their own, above what Python and torch take.\n"
    )
    return [head, *_measured(record["rows"], table), f"{machine(record)}\n"]


def _measured(rows: dict, table: Table) -> list[str]:
    """Return a part for each row that there is."""
    parts = []
    if "nb201" in rows:
        parts.append(_networks(rows, table) + "\n")
    if "fused" in rows:
        parts.append(_fused(rows["fused"], table) + "\n")
    if "ways" in rows:
        parts.append(_ways(rows["ways"], table) + "\n")
    if searches := [rows[name] for name in ("search", "search-fused") if name in rows]:
        parts.append(_search(searches, table) + "\n")
    if "pruned" in rows:
        parts.append("### Options removed, nb201\n\n" + _steps(rows["pruned"], table, "published, all") + "\n")
    if "curvature" in rows and rows["curvature"]["against_extrapolated"]:
        parts.append(_curvature(rows["curvature"], table) + "\n")
    if "augmentation" in rows:
        taken = _steps(rows["augmentation"], table, "PIL in a loader")
        parts.append(f"### Crop, flip, cutout and scaling, 32 × 32\n\n{taken}\n")
    if "growth" in rows:
        parts.append(_growth(rows["growth"], table) + "\n")
    if "roofline" in rows:
        parts.append(_roofline(rows["roofline"], table))
    return parts
