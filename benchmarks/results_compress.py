"""What docs/results.md says of smaller networks, from the records of benchmarks/compress.py."""

import statistics
from collections.abc import Callable

__all__ = ["compress_part", "pruning_part"]

Table = Callable[[list[str], list[list[str]]], str]
Machine = Callable[[dict], str]
METHODS = ("evidence", "switches", "bernoulli", "group-lasso", "magnitude", "random")
ORDER = (
    "evidence", "switches", "bernoulli", "torch-pruning magnitude", "torch-pruning Taylor", "torch-pruning group norm",
)  # fmt: skip
PUBLISHED = {
    "lenet-300-100": "L0 266-88-33 at 1.6 % and 53.3 K FLOPs, VIB 97-71-33 at 1.6 % and 19.1 K FLOPs, both 2 x MACs, so "
    "26.6 and 9.6 K MACs (their dense networks have 1.6 to 1.8 %)",
    "lenet-500-300": "SBP 245-160-55 at 1.55 to 1.6 % and 97.1 K FLOPs",
    "lenet-5": "MACs with biases: SBP 3-18-284-283 at 0.9 % and 217 K, BC-GHS 5-10-76-16 at 1.0 % and 158 K, BC-GNJ "
    "8-13-88-13 at 1.0 % and 290 K",
}


def _over(points: list[dict], key: str, scale: float, digits: int) -> str:
    """Return mean and standard deviation over seeds."""
    values = [scale * p[key] for p in points]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _row(name: str, points: list[dict]) -> list[str]:
    gap = "–"
    if "difference" in points[0]:
        mean = 100 * statistics.fmean(p["difference"]["value"] for p in points)
        low, high = (100 * pick(p["difference"][key] for p in points) for pick, key in ((min, "low"), (max, "high")))
        gap = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
    return [
        name,
        f"{len(points)}",
        _over(points, "round", 1, 0) if points[0]["round"] else "–",
        "-".join(str(n) for n in points[0]["reads"]),
        _over(points, "params", 1e-3, 1),
        _over(points, "macs", 1e-3, 1),
        _over(points, "error", 100, 2),
        gap,
        _over(points, "nll", 1, 4),
        _over(points, "ece", 1, 4),
        _over(points, "auroc", 1, 3),
    ]


def _network(name: str, record: dict, table: Table, machine: Machine) -> str:
    runs = record["runs"]
    limits = ", ".join(f"{point['bound'] / 1000:g}" for point in runs[0]["points"])
    body = [_row("whole", list({run["seed"]: run["dense"] for run in runs}.values()))]
    for method in METHODS:
        mine = [run for run in runs if run["method"] == method]
        body += [_row(method, [run["points"][i] for run in mine]) for i in range(len(mine[0]["points"]) if mine else 0)]
    head = [
        "method", "seeds", "rounds", "reads, seed 0", "parameters, K", "MACs, K", "test error, %",
        "accuracy, points (widest 90 %)", "NLL", "ECE", "AUROC, shuffled",
    ]  # fmt: skip
    network, _, crop = name.partition("-crop-")
    published = f" Published, for orientation: {PUBLISHED[network]}." if network in PUBLISHED else ""
    shifted = f", crops of padding {crop}" if crop != "0" else ", no crops"
    sizes = [(run["first"], run["last"]) for run in runs if run["method"] == "evidence"]
    shrunk = statistics.fmean(a["bytes"] / b["bytes"] for a, b in sizes) if sizes else 0
    smaller = f"The files of the smallest ones (evidence) are {shrunk:.1f} times smaller.\n\n" if sizes else ""
    return (
        f"### {network}, MNIST{shifted if crop else ''}\n\nThe networks that runs with limits of {limits} K MACs end at, fine-tuned (one channel may "
        "be much of what is left; perceptrons' points clearly below a limit are older: the first network of a path "
        "under it); test split, n = 10,000; nothing is chosen by it. "
        "One MAC is two FLOPs; biases are not counted. Mean ± standard deviation "
        "over seeds; differences are paired by example, with the widest 90 % interval of the seeds. All methods start "
        "from the same networks and train as many epochs in a round and at the end; *rounds* is how many came before."
        f"{published}\n\n{table(head, body)}\n\n{smaller}{machine(record)}\n"
    )


def _pruned(network: str, runs: list[dict], table: Table) -> str:
    """Return the table of one network: the whole one, and every method at every bound."""
    whole = {run["seed"]: run["dense"] for run in runs if "dense" in run}
    rows = [("whole", list(whole.values()))]
    for method in dict.fromkeys(run["method"] for run in runs):
        mine = [run["points"] for run in runs if run["method"] == method]
        rows += [(method, list(points)) for points in zip(*mine, strict=True)]
    body = []
    for name, points in rows:
        gap = "–"
        if "difference" in points[0]:
            mean = 100 * statistics.fmean(p["difference"]["value"] for p in points)
            low, high = (100 * f(p["difference"][k] for p in points) for f, k in ((min, "low"), (max, "high")))
            gap = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
        rounds = _over(points, "round", 1, 0) if "round" in points[0] else "–"
        body.append(
            [name, str(len(points)), rounds, _over(points, "params", 1e-3, 0), _over(points, "macs", 1e-6, 2),
             _over(points, "error", 100, 1), gap, _over(points, "nll", 1, 3), _over(points, "ece", 1, 3)]
        )  # fmt: skip
    head = [
        "method", "seeds", "rounds", "parameters, K", "MACs, M", "test error, %", "accuracy, points (widest 90 %)",
        "NLL", "ECE",
    ]  # fmt: skip
    return f"#### {network}\n\n{table(head, body)}\n"


def pruning_part(record: dict | None, table: Table, machine: Machine) -> list[str]:
    """Return the paragraphs on ours against torch-pruning; none where there is no record."""
    if record is None:
        return []
    given, runs = record["given"], sorted(record["runs"], key=lambda run: ORDER.index(run["method"]))
    names = dict.fromkeys(run["network"] for run in sorted(runs, key=lambda run: run["network"]))
    tables = [_pruned(name, [run for run in runs if run["network"] == name], table) for name in names]
    return [
        f"### Against torch-pruning, {given['limit']:,} images of CIFAR-10 (JPEG q75), a quarter of the width\n\n"
        f"torch-pruning {record['environment']['torch-pruning']}. Every seed's whole network is trained for {given['dense']} "
        f"epochs; a round has {given['epochs']}, the end {given['finetune']}. torch-pruning's paths take as many rounds "
        "as our masks' to half and to a quarter of the MACs, cutting by equal factors on the way, with the same training; "
        "points are the networks with half and a quarter, fine-tuned. Test split, n = 10,000; nothing is chosen by it. Mean ± standard "
        "deviation over seeds.\n",
        *tables,
        f"{machine(record)}\n",
    ]


def compress_part(records: dict[str, dict], table: Table, machine: Machine) -> list[str]:
    """Return the paragraphs on smaller networks; none where there is no record."""
    parts = [_network(name, records[name], table, machine) for name in sorted(records)]
    return ["## Networks made smaller\n", *parts] if parts else []
