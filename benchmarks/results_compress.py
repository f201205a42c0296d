"""What docs/results.md says of smaller networks, from the records of benchmarks/compress.py."""

import statistics
from collections.abc import Callable

__all__ = ["compress_part"]

Table = Callable[[list[str], list[list[str]]], str]
Machine = Callable[[dict], str]
METHODS = ("evidence", "group-lasso", "magnitude", "random")
PUBLISHED = {
    "lenet-300-100": "L0 266-88-33 at 1.6 % and 53.3 K FLOPs, VIB 97-71-33 at 1.6 % and 19.1 K FLOPs, both 2 x MACs, so "
    "26.6 and 9.6 K MACs (their dense networks have 1.6 to 1.8 %)",
    "lenet-500-300": "SBP 245-160-55 at 1.55 to 1.6 % and 97.1 K FLOPs",
    "lenet-5": "MACs with biases: SBP 3-18-284-283 at 0.9 % and 217 K, BC-GHS 5-10-76-16 at 1.0 % and 158 K, BC-GNJ "
    "8-13-88-13 at 1.0 % and 290 K",
}


def _widths(shapes: list[list[int]]) -> str:
    """Return widths as papers write them: what each layer reads."""
    return "-".join(str(shape[1]) for shape in shapes)


def _row(name: str, drop: float, points: list[dict]) -> list[str]:
    found = [p for p in points if "error" in p]
    if not found:
        return [name, f"{100 * drop:.1f}", f"0 of {len(points)}", *["–"] * 8]
    first = found[0]

    def over(key: str, scale: float, digits: int) -> str:
        values = [scale * p[key] for p in found]
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.{digits}f}{spread}"

    gaps = [100 * p["difference"]["value"] for p in found]
    low, high = min(p["difference"]["low"] for p in found), max(p["difference"]["high"] for p in found)
    return [
        name,
        f"{100 * drop:.1f}",
        f"{len(found)} of {len(points)}",
        _widths(first["shapes"]),
        over("params", 1e-3, 1),
        over("macs", 1e-3, 1),
        over("error", 100, 2),
        f"{statistics.fmean(gaps):+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
        over("nll", 1, 4),
        over("ece", 1, 4),
        over("auroc", 1, 3),
    ]


def _network(name: str, record: dict, table: Table, machine: Machine) -> list[str]:
    runs = record["runs"]
    dense = {run["seed"]: run["dense"] for run in runs if "dense" in run}
    body = [
        [
            "whole", "–", f"{len(dense)}", "–",
            *(f"{statistics.fmean(d[key] for d in dense.values()) * scale:.{digits}f}"
              for key, scale, digits in (("params", 1e-3, 1), ("macs", 1e-3, 1), ("error", 100, 2))),
            "–",
            *(f"{statistics.fmean(d[key] for d in dense.values()):.{digits}f}"
              for key, digits in (("nll", 4), ("ece", 4), ("auroc", 3))),
        ]
    ]  # fmt: skip
    for method in METHODS:
        mine = [run for run in runs if run["method"] == method]
        for i, drop in enumerate([p["drop"] for p in mine[0]["points"]] if mine else []):
            body.append(_row(method, drop, [run["points"][i] for run in mine]))
    head = [
        "method", "margin, points", "seeds that kept it", "reads, seed 0", "parameters, K", "MACs, K", "test error, %",
        "accuracy, points (widest 90 %)", "NLL", "ECE", "AUROC, shuffled",
    ]  # fmt: skip
    published = f" Published, for orientation: {PUBLISHED[name]}." if name in PUBLISHED else ""
    return [
        f"### {name}, MNIST",
        "The smallest network of a path whose accuracy on the *selection* split stays within the margin of the whole "
        "network's, after fine-tuning; test split, n = 10,000. One MAC is two FLOPs; biases are not counted. Mean ± "
        f"standard deviation over seeds.{published}",
        table(head, body),
        machine(record),
    ]


def compress_part(records: dict[str, dict], table: Table, machine: Machine) -> list[str]:
    """Return the paragraphs on smaller networks; none where there is no record."""
    if not records:
        return []
    parts = ["## Networks made smaller"]
    for name in sorted(records):
        parts += _network(name, records[name], table, machine)
    return parts
