"""Tables and lines of searches, trainings and comparisons."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bayesarch.report.amounts import amount, counted, duration

__all__ = [
    "print_architecture",
    "print_comparison",
    "print_data_check",
    "print_doctor",
    "print_overview",
    "print_repeats",
    "print_samples",
    "print_summary",
    "print_training",
    "status_line",
]


def status_line(run: Any) -> str:
    """Return one line on how a run stands, and what to do next."""
    status, metrics = run.status, run.metrics
    far = f", epoch {metrics[-1]['epoch']:g} of {metrics[-1]['stage']}" if metrics else ""
    following = {
        "finished": f"; see bayesarch show {run.path}",
        "running": "",
        "failed": f": {status.get('error', '')}; bayesarch resume {run.path}",
    }.get(status["state"], f"; continue with bayesarch resume {run.path}")
    return f"{run.path}: {status['state']}{far}{following}"


def print_overview(rows: Sequence[Mapping[str, Any]], folder: str) -> None:
    """Print the runs of a folder by their names in it: what each is, how it stands, its accuracy, when it changed."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "what", "data", "state", "accuracy", "changed"):
        table.add_column(name, justify="right" if name == "accuracy" else "left", overflow="fold")
    names = [os.path.relpath(row["path"], folder) for row in rows]
    table.columns[0].min_width = min(max(map(len, names)), 32)  # names are there to be copied, the rest may fold
    for name, row in zip(names, rows, strict=True):
        since = time.time() - time.mktime(time.strptime(row["changed"], "%Y-%m-%d %H:%M:%S"))
        table.add_row(
            escape(name),
            f"{row['kind']}, {escape(row['of'])}" if "kind" in row else "",
            escape(Path(str(row.get("data", ""))).name),
            row["state"] + _far(row),
            f"{row['accuracy']:.4f}" if "accuracy" in row else "",
            f"{duration(max(since, 0.0))} ago",
        )
    console = Console()
    if not console.is_terminal:  # a file has lines of any length
        console = Console(width=max(console.width, 200))
    console.print(f"{counted(len(rows), 'run')} in {folder}", highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    if any("accuracy" in row for row in rows):
        console.print("accuracy: selection split of searches, test split of everything else", style="dim")
    for row in rows:
        if "error" in row:
            console.print(f"error     {row['error']}", style="yellow", highlight=False, soft_wrap=True, markup=False)


def _far(row: Mapping[str, Any]) -> str:
    if "done" in row:
        return f", {row['done']} of {counted(row['runs'], 'run')}"
    return f", epoch {row['epoch']:g}" if "epoch" in row else ""


def print_summary(run: Any) -> None:
    """Print the final table: per edge the option, its weight and entropy; then cell, cost, accuracy, where to look."""
    if "repeats" in run.summary:
        print_repeats(run)
        return
    if run.is_training:
        print_training(run)
        return
    summary, console = run.summary, Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("edge")
    table.add_column("picked")
    for name in (summary["word"], "loss gap, nats", "entropy, nats"):
        table.add_column(name, justify="right")
    for edge in summary["edges"]:
        if edge["inactive"]:
            table.add_row(edge["choice"], "inactive", "-", "-", "-", style="dim")
            continue
        gap = "-" if edge["gap_nats"] is None else f"{edge['gap_nats']:.1f}"
        picked = " + ".join(edge["options"]) or "none"
        weights = " ".join(f"{value:.3f}" for value in edge["weights"])
        table.add_row(edge["choice"], picked, weights, gap, f"{edge['entropy']:.3f}")
    console.print(table)
    times = summary["times"]
    console.print()
    for warning in summary["warnings"]:
        console.print(f"warning   {warning}", style="yellow", highlight=False, soft_wrap=True, markup=False)
    for name, value in (
        ("cell", summary["cell"] if len(summary["cell"]) < 2000 and "rows" not in summary
                 else f"{summary['digest']}, in {run.path}/architectures/found.json"),
        ("size", f"{summary['params']:,} parameters, {amount(summary['macs'])} MACs, "
                 f"{times['latency_ms']:.2f} ms for one image"),
        ("accuracy", f"{summary['selection_accuracy']:.4f} on the selection split (n = {summary['selection_n']}), "
                     "weights inherited from the search"),
        *_more_lines(summary),
        ("search", f"{summary['search_epochs']:g} + {summary['closing_epochs']:g} epochs, {duration(times['seconds'])}"
                   + _fired(summary.get("fired_by"))),
        *_lookup_lines(run.lookup),
        ("weights", f"{summary['kind']}; {_caveat(summary['word'])}"),
        ("report", f"{run.path}/report.html"),
        ("next", f"bayesarch sample {run.path} -n 5"),
    ):  # fmt: skip
        console.print(f"{name:<9} {value}", highlight=False, soft_wrap=True, markup=False)


def print_training(run: Any) -> None:
    """Print what came out of a training."""
    summary, console = run.summary, Console()
    start = "inherited weights" if summary["inherited"] else "scratch"
    for name, value in (
        ("cell", summary["architecture"]),
        ("size", f"{summary['params']:,} parameters, {amount(summary['macs'])} MACs"),
        ("training", f"{summary['epochs']} epochs from {start}, {duration(summary['times']['seconds'])}"),
        ("selection", f"{summary['selection']['accuracy']:.4f} accuracy, {summary['selection']['loss']:.4f} nats "
                      f"(n = {summary['selection']['n']})"),
        ("test", f"{summary['test']['accuracy']:.4f} accuracy, {summary['test']['loss']:.4f} nats "
                 f"(n = {summary['test']['n']}), read once"),
        ("network", f"{run.path}/networks/trained.safetensors"),
    ):  # fmt: skip
        console.print(f"{name:<9} {value}", highlight=False, soft_wrap=True, markup=False)


def print_repeats(run: Any) -> None:
    """Print the union of repeated runs: per edge each option's share with its interval; then what to say of them."""
    summary, console = run.summary, Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("edge", "option"):
        table.add_column(name)
    for name in ("runs", summary["word"], "90 % interval"):
        table.add_column(name, justify="right")
    for edge in summary["edges"]:
        ranked = sorted(edge["shares"].items(), key=lambda item: -item[1]["share"])
        for place, (option, row) in enumerate(item for item in ranked if item[1]["share"] > 0):
            low, high = row["interval_90"]
            off = f" (inactive in {edge['inactive_runs']})" if edge["inactive_runs"] and place == 0 else ""
            first = f"{edge['choice']}{off}" if place == 0 else ""
            count = f"{row['share'] * summary['repeats']:.0f}"
            table.add_row(first, option, count, f"{row['share']:.2f}", f"{low:.2f} - {high:.2f}")
    console.print(table)
    console.print()
    for warning in summary["warnings"]:
        console.print(f"warning   {warning}", style="yellow", highlight=False, soft_wrap=True, markup=False)
    accuracies = [row["selection_accuracy"] for row in summary["runs"]]
    low, high = min(accuracies), max(accuracies)
    for name, value in (
        ("cell", f"{summary['cell']}, found in {summary['votes']} of {summary['repeats']} runs"),
        ("runs", f"{summary['repeats']}, {counted(summary['distinct_cells'], 'different cell')}, "
                 f"{counted(summary['distinct_functions'], 'different function')}"),
        ("size", f"{summary['params']:,} parameters, {amount(summary['macs'])} MACs"),
        ("accuracy", f"{sum(accuracies) / len(accuracies):.4f} ({low:.4f} to {high:.4f}) on the selection split, "
                     "weights inherited from the search"),
        ("search", f"{duration(summary['times']['seconds'])} in all runs together"),
        *_lookup_lines(run.lookup),
        ("report", f"{run.path}/report.html"),
        ("next", f"bayesarch sample {run.path} -n 5"),
    ):  # fmt: skip
        console.print(f"{name:<9} {value}", highlight=False, soft_wrap=True, markup=False)


def print_comparison(record: dict[str, Any], page: str | None) -> None:
    """Print groups of runs side by side."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("group")
    for name in ("runs", record["metric"].replace("_", " "), "difference", "MACs", "search", "MACs spent"):
        table.add_column(name, justify="right")
    for dataset in record["datasets"]:
        table.add_column(f"regret, {dataset}", justify="right")
    for place, group in enumerate(record["groups"]):
        gap = "-" if place == 0 else f"{group['difference']['mean']:+.4f}{_span(group['difference'])}"
        table.add_row(
            group["name"],
            str(group["n"]),
            f"{group['quality']['mean']:.4f}{_span(group['quality'])}",
            gap if place == 0 or group["difference"]["paired"] else f"{gap} unpaired",
            amount(group["macs"]) + ("*" if group["pareto_macs"] else ""),
            duration(group["seconds"]) + ("*" if group["pareto_seconds"] else ""),
            amount(group["forward_macs"]),
            *(_regret(group["table"].get(dataset)) for dataset in record["datasets"]),
        )
    console = Console()
    console.print(table)
    console.print(
        f"selection split, n = {record['n_selection']}; in brackets {100 * record['level']:.0f} % intervals; "
        f"differences are to {record['groups'][0]['name']}; * no other group is as good and as cheap",
        highlight=False,
    )
    if page is not None:
        console.print(f"page      {page}", highlight=False)


def _span(interval: dict[str, float]) -> str:
    missing = interval["low"] != interval["low"]
    return "" if missing else f" ({interval['low']:.4f} to {interval['high']:.4f})"


def _regret(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{row['regret']['mean']:.2f}{' (transfer)' if row['transfer'] else ''}"


def _more_lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines that only some runs have: another metric, and limits with what was measured."""
    lines = []
    if summary.get("metric", "accuracy") != "accuracy":
        lines.append(
            ("metric", f"{summary['metric_value']:.4f} {summary['metric'].replace('_', ' ')}, selection split")
        )
    for row in summary.get("rows", []):
        spread = "" if row["selection"]["sd"] is None else f", sd {row['selection']['sd']:.4f}, n = {row['masks']}"
        lines.append(
            (
                "masks",
                f"{row['name']:<34} {row['params_kept']:6.1%} of the parameters, {row['architecture']['mean']:.4f} "
                f"ranking split, {row['selection']['mean']:.4f} selection split "
                f"(se {row['selection']['se']:.4f}{spread})",
            )
        )
    for size in summary.get("sizes", []):
        lines.append(
            (
                "posterior",
                f"{amount(size['mean'])} {size['what']} in a mask drawn, 90 % between {amount(size['low'])} and "
                f"{amount(size['high'])}, whole network {amount(size['whole'])}",
            )
        )
    if "test" in summary:
        test = summary["test"]
        lines.append(("test", f"{test['accuracy']:.4f} on the test split (n = {test['n']}), {test['loss']:.4f} nats"))
    if "beyond_drift" in summary:
        lines.append(("data", f"{summary['beyond_drift']:.0%} of the groups lie beyond their drift curve"))
    for name, row in summary.get("limits", {}).items():
        lines.append(("limit", f"{name} {row['found']:,.6g}, allowed {row['allowed']:,.6g}"))
    return lines


def _lookup_lines(record: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return one line per data set of a benchmark's table."""
    if record is None:
        return []
    lines = []
    for row in record["answers"]:
        transfer = " (transfer)" if row["transfer"] else ""
        reference = "" if row["reference"] is None else f", {record['reference']} {row['reference']:.2f}"
        lines.append(
            (
                "table",
                f"{row['dataset']}{transfer}: {row['accuracy']:.2f} % test, rank {row['rank']:,} of {row['of']:,}, "
                f"regret {row['regret']:.2f} (optimum {row['optimum']:.2f}{reference})",
            )
        )
    for row in record.get("over_runs", []):
        lines.append(
            (
                "table",
                f"{row['dataset']}: mean over {row['n']} runs {row['accuracy']:.2f} % test, standard deviation "
                f"{row['accuracy_sd']:.2f}, regret {row['regret']:.2f}",
            )
        )
    return lines


def _fired(counts: dict[str, int] | None) -> str:
    if not counts:
        return ""
    return "; removed by " + ", ".join(f"{why} {count}" for why, count in counts.items())


def _caveat(word: str) -> str:
    if word == "probability":
        return "checked for calibration"
    return "a single run's are not calibrated (docs/results.md), so called relative weights"


def print_samples(rows: list[dict[str, Any]]) -> None:
    """Print sampled architectures with their cost; each in one piece, to be copied, where it is not very long."""
    table, console = Table(box=None, pad_edge=False, header_style="bold"), Console()
    for name in ("log weight", "parameters", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("architecture", overflow="fold")
    for row in rows:
        cost = (f"{row['log_weight']:.2f}", f"{row['params']:,}", amount(row["macs"]))
        table.add_row(*cost, escape(row["architecture"]))
    longest = max(len(row["architecture"]) for row in rows)
    if longest < 300:
        console = Console(width=max(console.width, longest + 40))
    console.print(table)


def print_architecture(record: dict[str, Any]) -> None:
    """Print what an architecture is and costs."""
    shape = " x ".join(map(str, record["input_shape"]))
    for name, value in (
        ("cell", record["architecture"]),
        ("canonical", record["canonical"]),
        ("digest", record["digest"]),
        ("inactive", ", ".join(record["inactive"]) or "-"),
        ("connected", "yes" if record["connected"] else "no: nothing reaches the output"),
        ("size", f"{record['params']:,} parameters, {amount(record['macs'])} MACs for an image of {shape}, "
                 f"{record['classes']} classes, the space's default sizes"),
    ):  # fmt: skip
        Console().print(f"{name:<9} {value}", highlight=False, soft_wrap=True, markup=False)


def print_data_check(record: dict[str, Any]) -> None:
    """Print what a data source holds, what is wrong with it, and settings to start from."""
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class")
    for split in record["splits"]:
        table.add_column(split, justify="right")
    classes = sorted({label for counts in record["splits"].values() for label in counts})
    for label in classes[:30]:
        table.add_row(label, *(str(counts.get(label, 0)) for counts in record["splits"].values()))
    if len(classes) > 30:
        table.add_row(f"... {len(classes) - 30} more")
    table.add_row("all", *(str(sum(counts.values())) for counts in record["splits"].values()), style="bold")
    console.print(table)
    console.print()
    for name in ("sizes", "modes"):
        some = ", ".join(f"{k} ({n})" for k, n in list(record[name].items())[:6])
        more = f", {len(record[name]) - 6} more" if len(record[name]) > 6 else ""
        console.print(f"{name:<9} {some}{more}", highlight=False, soft_wrap=True, markup=False)
    for line in record["faults"]:
        console.print(f"fault     {line}", style="red", highlight=False, soft_wrap=True, markup=False)
    for line in record["remarks"]:
        console.print(f"note      {line}", style="yellow", highlight=False, soft_wrap=True, markup=False)
    settings = {k: v for k, v in record["suggested"].items() if k != "data.source"}
    sets = "".join(f" --set {k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in settings.items())
    after = "" if record["usable"] else ", after the faults are mended"
    console.print(
        f"try{after}: bayesarch search --data {record['source']}{sets}", highlight=False, soft_wrap=True, markup=False
    )


def print_doctor(result: dict[str, Any]) -> None:
    """Print the checks of `doctor`."""
    console = Console()
    for key, value in result["environment"].items():
        console.print(f"{key:<12} {value}", highlight=False, markup=False)
    for check in result["checks"]:
        mark = "ok    " if check["passed"] else "FAILED"
        console.print(f"{mark} {check['name']}: {check['detail']}", highlight=False, markup=False)
    absent = [name for name, there in result["extras"].items() if not there]
    if absent:
        console.print(f"extras not installed: {', '.join(absent)} (pip install 'bayesarch[{absent[0]}]')", markup=False)
