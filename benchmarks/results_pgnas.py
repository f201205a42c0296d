"""What docs/results.md says of PGNAS, from the records of benchmarks/pgnas.py."""

import statistics
from collections.abc import Callable

__all__ = ["pgnas_part"]

Table = Callable[[list[str], list[list[str]]], str]
Machine = Callable[[dict], str]
ORDER = (
    "best candidate",
    "best candidate, norms recalibrated",
    "all candidates",
    "random masks",
    "mode",
    "whole network",
)


def _over_seeds(values: list[float], digits: int = 4) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _guided(name: str, record: dict, table: Table, machine: Machine) -> str:
    runs, body = record["runs"], []
    for row_name in ORDER:
        rows = [row for run in runs for row in run["rows"] if row["name"] == row_name]
        spreads = [row["selection"]["sd"] for row in rows if row["selection"]["sd"] is not None]
        body.append(
            [
                row_name,
                f"{100 * statistics.fmean(row['params_kept'] for row in rows):.1f} %",
                _over_seeds([row["architecture"]["mean"] for row in rows]),
                _over_seeds([row["selection"]["mean"] for row in rows]),
                f"{statistics.fmean(spreads):.4f}" if spreads else "",
                _over_seeds([row["selection"]["max"] for row in rows]) if spreads else "",
            ]
        )
    head = ["masks", "parameters kept", "ranking split", "selection split", "sd over masks", "highest of 50"]
    n, tests = runs[0]["examples"], [run["test"]["accuracy"] for run in runs]
    epochs = runs[0]["set"]["engine.epochs"]
    return (
        f"### Guided by the posterior or blind: {name}\n\nShake-Shake 26 of width {runs[0]['set']['space.width']}, {epochs} "
        f"epochs on {n['weights']} examples, {len(runs)} seed(s). Accuracy with inherited weights; the best candidate was "
        f"chosen on the ranking split (n = {n['architecture']}), so its number there is too high, and the selection split "
        f"(n = {n['selection']}) tells. *Random masks* drop every channel at one rate that leaves as many parameters in "
        "the mean; they may drop the image's only channel, which the posterior never does.\n\n"
        f"{table(head, body)}\n\nChosen network on the test split (n = {n['test']}), read once: {_over_seeds(tests)}. Groups "
        f"beyond their drift curve: {_over_seeds([run['beyond_drift'] for run in runs], 2)}. Seconds a search: "
        f"{statistics.median(run['seconds'] for run in runs):.0f}, with other work on the machine.\n\n{machine(record)}\n"
    )


def _settings(record: dict, table: Table, machine: Machine, base: dict | None) -> str:
    groups: dict[str, list[dict]] = {}
    if base is not None:
        groups["defaults"] = base["runs"]
    for run in record["runs"]:
        groups.setdefault(run["name"].split("method.")[1].rsplit("-s", 1)[0], []).append(run)
    body = []
    for label, runs in groups.items():
        by = {name: [row for run in runs for row in run["rows"] if row["name"] == name] for name in ORDER}
        body.append(
            [
                label,
                str(len(runs)),
                f"{100 * statistics.fmean(row['params_kept'] for row in by['all candidates']):.0f} %",
                *(_over_seeds([row["selection"]["mean"] for row in by[name]], 3) for name in (ORDER[0], *ORDER[2:])),
                _over_seeds([run["test"]["accuracy"] for run in runs], 3),
            ]
        )
    head = ["setting", "seeds", "parameters kept", "best", "candidates", "random", "mode", "whole", "best, test split"]
    return (
        "### One setting at a time, digits\n\n*weight_decay*: what the length-scale is chosen for; its square is "
        "proportional. *tau*: temperature of the relaxed gates (default .2). Accuracy on the selection split "
        f"(n = {record['runs'][0]['examples']['selection']}).\n\n{table(head, body)}\n\n{machine(record)}\n"
    )


def _examples(record: dict, table: Table, machine: Machine, guided: dict | None) -> str:
    groups: dict[int, list[dict]] = {}
    for run in [*record["runs"], *([] if guided is None else guided["runs"])]:
        groups.setdefault(run["examples"]["weights"], []).append(run)
    body = []
    for n, runs in sorted(groups.items()):
        spread = [statistics.pstdev(run["drop_rates"]) for run in runs]
        body.append(
            [
                str(n),
                str(len(runs)),
                _over_seeds([run["beyond_drift"] for run in runs], 2),
                _over_seeds([statistics.fmean(run["drop_rates"]) for run in runs], 3),
                _over_seeds([statistics.fmean(run["drift_rates"]) for run in runs], 3),
                _over_seeds(spread, 3),
                _over_seeds([run["test"]["accuracy"] for run in runs], 3),
            ]
        )
    head = [
        "training examples",
        "seeds",
        "beyond drift",
        "mean drop rate",
        "by entropy alone",
        "sd over groups",
        "test",
    ]
    epochs = record["runs"][0]["set"]["engine.epochs"]
    return (
        f"### Do the data speak? MNIST\n\nThe share of groups whose drop logit lies more than a quarter from where the "
        f"entropy alone would have taken it, after {epochs} epochs of more and more examples; the largest are the runs of "
        f"the guided comparison above.\n\n{table(head, body)}\n\n"
        f"{machine(record)}\n"
    )


def _mismatch(record: dict, table: Table, machine: Machine) -> str:
    body = [
        [
            f"{run['seed']}",
            *(f"{run['tau'][arm][of]:.2f}" for arm in ("learned", "fixed") for of in ("loss", "accuracy")),
            f"{run['tau_of_two_retrainings']:.2f}",
        ]
        for run in record["runs"]
    ]
    head = [
        "seed", "learned rates: inherited loss", "inherited accuracy", "fixed rate: inherited loss", "inherited accuracy",
        "two retrainings",
    ]  # fmt: skip
    return (
        "### Do inherited weights rank as retrained ones do? Digits, width 8\n\nKendall's tau over 30 sub-networks, every "
        "group with a rate of its own between .3 and 1, between the loss or the error of inherited weights (selection "
        f"split) and the held-out loss after {record['retraining_epochs']} epochs from scratch, mean of two trainings. The "
        "control is a supernet trained at the fixed drop rate .1. *Two retrainings*: tau between the two, about the most "
        f"that could be reached.\n\n{table(head, body)}\n\n{machine(record)}\n"
    )


def _throughput(record: dict, table: Table, machine: Machine) -> str:
    body = [
        [
            " × ".join(map(str, row["image"])),
            *(f"{row['candidate_images_per_second'][way]:,.0f}" for way in ("plain loop", "fp32", "bf16")),
            *(f"{row['ratio_to_plain_loop'][way]:.2f}" for way in ("fp32", "bf16")),
        ]
        for row in record["rows"]
    ]
    head = ["image", "plain loop", "fp32", "bf16", "fp32 / loop", "bf16 / loop"]
    return (
        "### Candidates x images a second\n\nShake-Shake 26 of width 16, 80 % of the channels kept. *Plain loop*: one mask "
        "at a time as gates through the supernet, batches of 256. *fp32*: masked weights, norms folded, batches that fit "
        f"the cache; the same numbers. *bf16*: that in bf16.\n\n{table(head, body)}\n\n{machine(record)}\n"
    )


def pgnas_part(records: dict[str, dict], table: Table, machine: Machine) -> list[str]:
    """Return the page's part on PGNAS, from records by what comes behind `pgnas_`."""
    parts = []
    for name in ("digits", "mnist", "cifar10-jpeg"):
        if f"guided_{name}" in records:
            parts.append(_guided(name, records[f"guided_{name}"], table, machine))
    if "settings" in records:
        parts.append(_settings(records["settings"], table, machine, records.get("guided_digits")))
    if "examples" in records:
        parts.append(_examples(records["examples"], table, machine, records.get("guided_mnist")))
    for name, write in (("mismatch", _mismatch), ("throughput", _throughput)):
        if name in records:
            parts.append(write(records[name], table, machine))
    return ["## PGNAS\n", *parts] if parts else []
