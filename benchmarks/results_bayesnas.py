"""What docs/results.md says of BayesNAS, from the records of benchmarks/evidence.py and benchmarks/bayesnas.py."""

import statistics
from collections.abc import Callable

__all__ = ["bayesnas_part"]

Table = Callable[[list[str], list[list[str]]], str]
Machine = Callable[[dict], str]
PRIORS = {
    "prior": "digits",
    "prior-mnist": "2,000 images of MNIST",
    "prior-mnist-1000": "1,000 images of MNIST",
}
"""What the records of `benchmarks/bayesnas.py prior` are of."""

ARMS = {
    "default": "the default",
    "lambda .007": "the published lambda",
    "flat prior": "a flat prior (lambda = 1e-12)",
}


def _span(interval: dict, digits: int = 3) -> str:
    return f"{interval['mean']:+.{digits}f} ({interval['low']:+.{digits}f} to {interval['high']:+.{digits}f})"


def _evidence(name: str, record: dict, table: Table, machine: Machine) -> str:
    n = len(record["runs"])
    body = []
    for keep in dict.fromkeys(row["keep"] for row in record["evidence_minus"]):
        for other in dict.fromkeys(row["than"] for row in record["evidence_minus"]):
            by = {r["of"]: r for r in record["evidence_minus"] if (r["keep"], r["than"]) == (keep, other)}
            body.append(
                [
                    f"{keep} of 24, against {other}",
                    *(_span(by[of][what]) for of in ("inherited", "from_scratch") for what in ("loss", "accuracy")),
                ]
            )  # fmt: skip
    head = ["kept", "inherited loss, nats", "inherited accuracy", "loss from scratch", "accuracy from scratch"]
    sizes = ", ".join(f"{key} {value}" for key, value in record["sizes"].items())
    return (
        f"### Evidence against magnitude, {name}\n\nOne supernet training per seed ({n} seeds; {sizes}), then the same "
        "number of options removed by each criterion. Differences, evidence minus the other, on the test split "
        f"(n = {record['runs'][0]['whole']['n']}), paired by seed, with 95 % t intervals: below 0 in loss, above 0 in "
        "accuracy means that evidence is better. *Inherited*: weights and switches of the supernet, norms "
        f"recalibrated. *From scratch*: what is left trained for {record['epochs_from_scratch']} epoch(s). Whole supernet: "
        "accuracy "
        f"{statistics.fmean(run['whole']['accuracy'] for run in record['runs']):.3f}.\n\n{table(head, body)}\n\n"
        f"{_verdict(record)}\n\n{machine(record)}\n"
    )


def _verdict(record: dict) -> str:
    """Return which differences in loss have an interval on one side of 0."""
    said = []
    for of in ("inherited", "from_scratch"):
        rows = [row for row in record["evidence_minus"] if row["of"] == of]
        better = [f"{row['than']} at {row['keep']}" for row in rows if row["loss"]["high"] < 0]
        worse = [f"{row['than']} at {row['keep']}" for row in rows if row["loss"]["low"] > 0]
        said.append(
            f"{of.replace('_', ' ').capitalize()}: of {len(rows)} comparisons of loss evidence is better in "
            + f"{len(better)}"
            + (f" ({', '.join(better)})" if better else "")
            + f" and worse in {len(worse)}"
            + (f" ({', '.join(worse)})" if worse else "")
            + "; the others cannot be told from none."
        )
    return " ".join(said) + " No correction for their number."


def _prior(data: str, record: dict, table: Table, machine: Machine) -> str:
    body = []
    groups: dict[str, list[dict]] = {}
    for name, row in sorted(record["rows"].items()):
        groups.setdefault(name.rsplit(", seed", 1)[0], []).append(row)
    arms = [said for arm, said in ARMS.items() if any(name.endswith(arm) for name in groups)]
    rows = list(record["rows"].values())
    for name, some in groups.items():
        shares = [row["by_criterion"] / row["options"] for row in some]
        body.append(
                [
                    name, str(len(some)),
                    f"{min(shares):.0%} to {max(shares):.0%}", _lambdas(some), str(sum(row["kept_by_guard"] for row in some)),
                    f"{statistics.fmean(row['left'] for row in some):.1f} of {some[0]['options']}",
                    f"{statistics.fmean(row['before_last_update'] for row in some):.3f}",
                    f"{statistics.fmean(row['accuracy'] for row in some):.3f}",
                    f"{min(row['accuracy'] for row in some):.3f}",
                    " ".join(sorted({f"{row.get('closing_epochs', 5):g}" for row in some})),
                    f"{statistics.median(row['seconds'] for row in some):.0f}",
                ]
            )  # fmt: skip
    old = any("closing_epochs" not in row for row in rows)
    older = " Rows with 5 closing epochs are of an earlier day, on an Intel Xeon with two cores." if old else ""
    head = ["space", "seeds", "removed by the criterion", "lambda", "kept by the guard", "options left",
            "accuracy while searching", "at the end", "lowest", "closing epochs", "seconds"]  # fmt: skip
    return (
        f"### Does the prior do the work? {data}\n\nSearches on {data}: "
        + " and ".join([*([", ".join(arms[:-1])] if arms[1:] else []), arms[-1]])
        + ". *Removed by the criterion*: options that went by the evidence, with their gate, or with what "
        "they depended on, smallest and largest share over seeds. *Accuracy while searching*: mean over the last epochs "
        "before the last update, which under the flat prior is that of the whole supernet. *At the end*: after removal, "
        "one option per edge where the space wants that, and closing epochs. *lambda*: "
        "smallest and largest of operations at the last update. Selection split, "
        f"n = {rows[0]['n']}. The spaces have their default widths, but for 8 channels in tree-cell where 16 are not "
        f"told. Seconds beside other work, pauses of the process included.{older}\n\n"
        f"{table(head, body)}\n\n{machine(record)}\n"
    )


def _lambdas(rows: list[dict]) -> str:
    """Return the lambda of operations at the last update, smallest and largest."""
    told = sorted({
        f"{row['settings'].get('method.penalty_operations') or row['penalty']['operations']:.2g}" for row in rows
    }, key=float)  # fmt: skip
    return told[0] if len(told) == 1 else f"{told[0]} to {told[-1]}"


def _sensitivity(record: dict, table: Table, machine: Machine) -> str:
    return (
        "### One setting at a time\n\nNAS-Bench-201's cell on digits, at the published lambda, everything else at its "
        f"default; {_settings(record, table)}\n\n{machine(record)}\n"
    )


def _shares(record: dict, table: Table, machine: Machine) -> str:
    return (
        "### How much goes by the share\n\nNAS-Bench-201's cell on digits, lambda by `method.penalty_share`; "
        f"{_settings(record, table)}\n\n{machine(record)}\n"
    )


def _settings(record: dict, table: Table) -> str:
    """Return what is counted, and the table."""
    groups: dict[str, list[dict]] = {}
    for name, row in record["rows"].items():
        groups.setdefault(name.rsplit(", seed", 1)[0], []).append(row)
    body = [
        [
            name, str(len(rows)), " ".join(str(row["by_criterion"]) for row in rows),
            f"{statistics.fmean(row['accuracy'] for row in rows):.3f}", str(len({row["cell"] for row in rows})),
        ]
        for name, rows in groups.items()
    ]  # fmt: skip
    head = ["setting", "seeds", "removed by the criterion, of 24", "accuracy at the end", "different cells"]
    n = next(iter(record["rows"].values()))["n"]
    return f"counts per seed; selection split, n = {n}.\n\n{table(head, body)}"


def _cost(record: dict, table: Table, machine: Machine) -> str:
    published = record["published_code"]
    body = []
    for name, times in record["seconds"].items():
        theirs = published["step" if name == "step" else "curvature"]
        peak = record["peak_mib_over_start"].get(name)
        body.append([name, f"{times['median']:.2f}", f"{peak:.0f}", f"{theirs:g}", f"{theirs / times['median']:.0f} x"])
    head = ["what", "seconds", "peak memory over start, MiB", "published code, s", "ratio"]
    return (
        "### What a step costs\n\nThe published supernet (C = 36, 8 cells of eight edges), batch 18, images of 32 x 32. "
        f"The published code's figures ({published['peak_mib']} MiB at its peak) were measured on another two-core CPU "
        "and its curvature is extrapolated, so the ratios say the order of magnitude and no more.\n\n"
        f"{table(head, body)}\n\n{machine(record)}\n"
    )


def bayesnas_part(found: dict[str, dict], evidence: dict[str, dict], table: Table, machine: Machine) -> list[str]:
    """Return the sections of BayesNAS; empty where nothing has been measured.

    Args:
        found: records of benchmarks/bayesnas.py by part.
        evidence: records of benchmarks/evidence.py by data set.
        table: makes a Markdown table.
        machine: says what a record was measured on.
    """
    parts = [_prior(data, found[name], table, machine) for name, data in PRIORS.items() if name in found]
    makers = {"sensitivity": _sensitivity, "shares": _shares, "cost": _cost}
    parts += [maker(found[name], table, machine) for name, maker in makers.items() if name in found]
    parts += [_evidence(name, record, table, machine) for name, record in evidence.items() if record["evidence_minus"]]
    return ["## BayesNAS\n", *parts] if parts else []
