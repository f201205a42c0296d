"""What docs/results.md says of ensembles, from the records of benchmarks/ensembles.py."""

import statistics
from collections.abc import Callable

__all__ = ["ensembles_part", "stacking_part"]

Table = Callable[[list[str], list[list[str]]], str]
Machine = Callable[[dict], str]


def _over(values: list[float], digits: int = 4) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _gap(cell: dict) -> str:
    return f"{cell['mean']:+.4f} ({cell['low']:+.4f} to {cell['high']:+.4f})"


def _scores(record: dict, table: Table) -> str:
    runs, body = record["runs"], []
    for name in dict.fromkeys(run["source"] for run in runs):
        mine = [run for run in runs if run["source"] == name]
        body.append(
            [
                name,
                str(len(mine)),
                _over([run["plain"]["accuracy"] for run in mine]),
                _over([run["plain"]["nll"] for run in mine]),
                _over([run["scaled"]["nll"] for run in mine]),
                _over([run["member"]["nll"] for run in mine]),
                _over([run["plain"]["brier"] for run in mine]),
                _over([run["plain"]["ece_width"] for run in mine], 3),
                f"{statistics.fmean(run['distinct'] for run in mine):.1f}",
                f"{100 * statistics.fmean(run['disagreement'] for run in mine):.1f} %",
                _over([run["auroc"] for run in mine], 3),
                _over([run["corrupted_accuracy"] for run in mine], 3),
                _over([run["corrupted_nll"] for run in mine], 3),
                f"{statistics.fmean(run['epoch_macs'] for run in mine) / 1e9:.0f}",
            ]
        )
    head = [
        "source", "seeds", "accuracy", "NLL", "NLL, T joint", "a member's NLL", "Brier", "ECE", "different functions",
        "disagree", "AUROC, shuffled", "accuracy, corrupted", "NLL, corrupted", "MACs trained, G",
    ]  # fmt: skip
    return table(head, body)


def _verdict(record: dict) -> str:
    """Return which sources differ from other seeds of one cell in loss, with the interval on one side of 0."""
    rows = record["against_deepens"]
    if not rows:
        return "One seed so far: nothing follows."
    better = [name for name, row in rows.items() if row["nll"]["high"] < 0]
    worse = [name for name, row in rows.items() if row["nll"]["low"] > 0]
    open_ = [name for name in rows if name not in better + worse]
    said = []
    for names, what in ((better, "lower"), (worse, "higher")):
        if names:
            said.append(f"a {what} loss: {', '.join(names)}")
    if open_:
        said.append(f"cannot be told from it: {', '.join(open_)}")
    return (
        "Against `deepens`, other seeds of the found cell, by 95 % intervals of the loss without temperature: "
        f"{'; '.join(said)}. No correction for their number."
    )


def ensembles_part(records: dict[str, dict], table: Table, machine: Machine) -> list[str]:
    """Return the page's part on ensembles, from records by data set."""
    parts = []
    for name, record in records.items():
        runs = record["runs"]
        head = ["source", "NLL", "NLL, T joint", "accuracy", "NLL, corrupted"]
        body = [
            [source, *(_gap(row[key]) for key in ("nll", "nll_scaled", "accuracy", "corrupted_nll"))]
            for source, row in record["against_deepens"].items()
        ]
        gaps = f"Minus `deepens`, paired by seed, with 95 % t intervals:\n\n{table(head, body)}\n\n" if body else ""
        parts.append(
            f"### {name}\n\nEnsembles of {record['members']}; sources that choose (nes-rs, nes-re) train "
            f"{record['pool']} candidates, the others their members for {record['pool'] // record['members']} times as many "
            f"epochs: {runs[0]['epochs']} epochs in all for each. *resnet*: the benchmark's ResNet cell, other seeds. Test "
            f"split, n = {runs[0]['n']}; mean ± standard deviation over seeds. *Corrupted*: mean over 15 kinds and severities "
            f"1, 3 and 5.\n\n{_scores(record, table)}\n\n{gaps}{_verdict(record)}\n\n{machine(record)}\n"
        )
    return ["## Ensembles: different architectures or different seeds?\n", *parts] if parts else []


def stacking_part(name: str, record: dict, table: Table, machine: Machine) -> list[str]:
    """Return the page's part on networks trained as one; `name` is that of another machine, or empty."""
    where = f", on another machine: {name}" if name else ""
    ways = {"alone": "one after another", "together": "as one", "fused": "as one, `train.fused`"}
    there = {way: said for way, said in ways.items() if way in record["rows"][0]["milliseconds"]}
    head = ["image", "C", "networks", "threads", "plain torch, ms", *there.values()]
    body = [
        [
            " × ".join(str(n) for n in row["shape"]), str(row["channels"]), str(row["networks"]), str(row["threads"]),
            f"{row['milliseconds']['plain']:.1f}", *(_faster(row, way) for way in there),
        ]
        for row in record["rows"]
    ]  # fmt: skip
    return [
        f"## Networks trained as one{where}\n\nA training step, clipped SGD included, of networks of the ResNet cell, "
        "one cell a stage, own batches of 64. As plain torch code in NCHW, and how many times faster: one after another "
        "as our trainings take it, as one network, and as one with convolutions of our own. Medians of "
        f"{record['rounds']} rounds' ratios and, where it was kept, their range, all in turn in one process.\n\n{table(head, body)}\n\n{machine(record)}\n"
    ]


def _faster(row: dict, way: str) -> str:
    """Return how many times faster than plain torch, and its range; older records have ratios to one way alone."""
    if "faster" in row:
        low, high = row["ranges"][way]
        return f"{row['faster'][way]:.2f} ({low:.2f} to {high:.2f})"
    plain = row["ratios"]["plain"] if way == "together" else row["milliseconds"]["plain"] / row["milliseconds"][way]
    return f"{plain:.2f}"
