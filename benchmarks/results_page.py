"""docs/results.md and its pictures, written from the records in benchmarks/results and from nothing else."""

import io
import json
import statistics
from pathlib import Path

from results_bayesnas import bayesnas_part
from results_compress import compress_part, pruning_part
from results_ensembles import ensembles_part, stacking_part
from results_pgnas import pgnas_part
from results_speed import elsewhere_part, machine_part, speed_part

__all__ = ["FOLDER", "PAGE", "page", "pictures", "write_page"]

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
INTRO = """# Results

Written by `python benchmarks/quality.py page` from the records in `benchmarks/results/`; every number has its command,
seeds and machine beside it. Accuracies are of weights inherited from the search, on the selection split, which neither
weights nor architecture were trained on; no test data were read. Seconds were measured with several runs side by side
and other work on the machine, so compare forward MACs, which are counted.
"""


def records(prefix: str) -> dict[str, dict]:
    """Return the records whose file names begin so, by what comes behind."""
    return {p.stem.removeprefix(prefix): json.loads(p.read_text()) for p in sorted(FOLDER.glob(f"{prefix}*.json"))}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def machine(record: dict) -> str:
    """Return what a record was measured on."""
    e = record["environment"]
    return (
        f"Command: `{record['command']}`. {e['processor']}, {e['cores']} cores, {e['threads']} thread(s) a run, "
        f"{e['device_name']}; Python {e['python']}, torch {e['torch']}."
    )


def spread(values: list[float], digits: int = 4) -> str:
    """Return mean and standard deviation over seeds."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _where(record: dict) -> str:
    """Return on what the units ran, where that was not one machine, and what else is to be known of their times."""
    processors = sorted({row["processor"] for row in record["rows"] if "processor" in row})
    several = f" Units ran on {' and on '.join(processors)}." if len(processors) > 1 else ""
    return several + (f" {record['remark']}" if record.get("remark") else "")


def quality(record: dict) -> str:
    """Return the table of one task of benchmarks/quality.py."""
    methods = list(dict.fromkeys(row["method"] for row in record["rows"]))
    datasets = sorted({d for row in record["rows"] for d in row["table"]})
    head = [
        "method",
        "seeds",
        "accuracy",
        "cells",
        "epochs",
        "search, s",
        "images, k",
        "forward MACs, T",
        "found MACs, M",
    ]
    head += [f"{d} test, % (regret)" for d in datasets]
    body = []
    for method in methods:
        rows = [row for row in record["rows"] if row["method"] == method]
        line = [
            method,
            str(len(rows)),
            spread([row["selection_accuracy"] for row in rows]),
            str(len({row["cell"] for row in rows})),
            f"{statistics.median(row['epochs'] for row in rows):g} + {rows[0]['closing_epochs']:g}",
            f"{statistics.median(row['seconds'] for row in rows):.0f}",
            f"{statistics.median(row['images'] for row in rows) / 1e3:.0f}",
            f"{statistics.median(row['forward_macs'] for row in rows) / 1e12:.2f}",
            f"{statistics.fmean(row['macs'] for row in rows) / 1e6:.2f}",
        ]
        for dataset in datasets:
            known = [row["table"][dataset] for row in rows if dataset in row["table"]]
            transfer = ", transfer" if known and all(k["transfer"] for k in known) else ""
            regret = statistics.fmean(k["regret"] for k in known)
            line.append(f"{spread([k['accuracy'] for k in known], 2)} ({regret:.2f}{transfer})")
        body.append(line)
    fired = [row["fired_by"] for row in record["rows"] if row["fired_by"]]
    note = ""
    if fired:
        total = {k: sum(f.get(k, 0) for f in fired) for k in ("threshold", "inactive", "cap")}
        note = f"\nBPNAS prunings: {total['threshold']} by the threshold, {total['inactive']} on inactive edges, " \
               f"{total['cap']} by the cap on epochs.\n"  # fmt: skip
    n = record["rows"][0]["selection_n"]
    seeds = {row["seed"] for row in record["rows"]}
    alone = " One seed each so far: nothing follows for the order of the methods." if len(seeds) == 1 else ""
    matched = (
        "Random search has the epochs that make its forward MACs, those of its ranking included, those of BPNAS."
        if "random" in methods
        else ("Random search at matched cost is not in this record yet.")
    )
    return (
        f"## {record['task']}\n\nMean ± standard deviation over seeds; accuracy on n = {n} examples each; medians of cost. "
        f"{matched}{alone}{_where(record)}\n\n{table(head, body)}\n{note}\n"
        f"{machine(record)}\n"
    )


def recurrence(name: str, record: dict) -> str:
    """Return the calibration table of one data set of benchmarks/posterior.py."""
    head = ["method", "runs", "ECE (5 % to 95 %)", "weight of picked", "recurs", "ECE of picked", "T", "ECE at T",
            "ECE at T = 1", "log loss", "equal weights", "interval coverage", "cells", "accuracy", "forward MACs, T"]  # fmt: skip
    body = []
    for method, m in record["methods"].items():
        t = m["tempered"]
        low, high = m["ece_90_over_runs"]
        body.append(
            [
                method, str(m["runs"]), f"{m['ece']:.3f} ({low:.3f} to {high:.3f})", f"{m['picked']['mean_weight']:.2f}",
                f"{m['picked']['mean_recurrence']:.2f}", f"{m['ece_of_picked']:.2f}", f"{t['temperature']:.3g}",
                f"{t['ece_on_other_half']:.3f}", f"{t['ece_untempered_on_other_half']:.3f}",
                f"{m['log_loss']:.2f}", f"{m['log_loss_of_equal_weights']:.2f}", f"{m['interval_coverage_at_90']:.2f}", str(m["distinct_cells"]),
                f"{m['selection_accuracy']['mean']:.3f} ± {m['selection_accuracy']['sd']:.3f}",
                f"{m['forward_macs'] / 1e12:.2f}",
            ]
        )  # fmt: skip
    return (
        f"## Is the posterior calibrated? {name}\n\n"
        "Independent runs, each with its own seed and its own bootstrap of the two halves. *Weight of picked*: what a run "
        "gives, on average, to the options it picks; *recurs*: the share of the other runs that picked them too. A "
        "calibrated posterior has the two equal. ECE: mean distance between weight and recurrence over all options, in "
        "ten bins. *T*: the temperature that calibrates best on one half of the runs; *ECE at T* and *at T = 1* are "
        "measured on the other half. *Log loss*: of a run's weights as predictions, nats per option, beside that of *equal weights*, "
        "which say nothing. *Interval coverage*: how often the 90 % intervals of `--repeats`, made from one half "
        f"of the runs, hold the counts of the other half.\n\n{table(head, body)}\n\n"
        f"![Reliability diagrams](figures/reliability_{name}.svg)\n\n"
        f"Methods that use all their epochs had {epochs_of(record)}. {machine(record)}\n"
    )


def epochs_of(record: dict) -> str:
    """Return the epochs given on the command line of a record."""
    words = record["command"].split()
    return f"{words[words.index('--epochs') + 1]} of them" if "--epochs" in words else "the default"


def enumeration(record: dict) -> str:
    """Return the table against exact enumeration."""
    head = ["posterior", "total variation", "truth in the 90 % set", "weight of the truth", "entropy, nats"]
    body = [
        [name, f"{m['total_variation']:.2f} ± {m['total_variation_se']:.2f}", f"{m['covered_90']:.2f}",
         f"{m['weight_of_truth']:.2f}", f"{m['entropy']:.2f}"]
        for name, m in record["methods"].items()
    ]  # fmt: skip
    p = record["problem"]
    return (
        f"## Against exact enumeration: the toy space\n\n{record['datasets']} problems drawn from a model: one of the "
        f"{p['cells']} cells uniformly, standard normal read-out weights, noise of standard deviation {p['noise']:g}, "
        f"{p['examples']} examples of {p['features']} features. *exact*: all cells enumerated, evidence of Bayesian linear "
        "regression in closed form, on the halves that a search sees. A search sees only the sign of the target; *exact "
        "from the labels* is the closed form for least squares on those signs, and what the methods are compared with. "
        f"Mean ± standard error over problems; cells of one function are counted as one.\n\n{table(head, body)}\n\n"
        f"{machine(record)}\n"
    )


def page() -> str:
    """Return the text of docs/results.md."""
    parts = [INTRO]
    parts += [recurrence(name, record) for name, record in records("posterior_").items() if name != "toy"]
    parts += [enumeration(record) for name, record in records("posterior_").items() if name == "toy"]
    parts += bayesnas_part(records("bayesnas_"), records("evidence_"), table, machine)
    parts += pgnas_part(records("pgnas_"), table, machine)
    parts += ensembles_part(records("ensembles_"), table, machine)
    for name, record in records("stacking").items():
        parts += stacking_part(name.removeprefix("_"), record, table, machine)
    speeds = records("speed")
    parts += speed_part(speeds.pop("", None), table, machine)
    for name, record in speeds.items():
        parts += elsewhere_part(name.removeprefix("_"), record, table, machine)
    parts += machine_part(records("machine").get(""), table, machine)
    parts += compress_part(records("compress_"), table, machine)
    parts += pruning_part(records("pruning_cifar10").get("-jpeg"), table, machine)
    parts += [quality(record) for record in records("quality_").values()]
    return "\n".join(parts)


def pictures() -> dict[str, str]:
    """Return SVG text by file name: a reliability diagram per method."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    made = {}
    for name, record in records("posterior_").items():
        if name == "toy":
            continue
        methods = record["methods"]
        columns = min(len(methods), 5)
        rows = -(-len(methods) // columns)
        figure = Figure(figsize=(2.2 * columns, 2.3 * rows))
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat:
            axes.axis("off")
        for axes, (method, m) in zip(grid.flat, methods.items(), strict=False):
            axes.axis("on")
            axes.plot([0, 1], [0, 1], color="#9aa5b1", linewidth=0.8)
            bars = m["reliability"]
            sizes = [12 + 120 * bar["n"] / sum(b["n"] for b in bars) for bar in bars]
            axes.scatter(
                [b["predicted"] for b in bars], [b["observed"] for b in bars], s=sizes, color="#2f6f8f", alpha=0.8
            )
            axes.set_title(f"{method}, ECE {m['ece']:.2f}", fontsize=8, loc="left")
            axes.tick_params(labelsize=7)
        figure.supxlabel("weight in one run", fontsize=8)
        figure.supylabel("share of the other runs", fontsize=8)
        figure.tight_layout()
        buffer = io.StringIO()
        with rc_context({"svg.hashsalt": "bayesarch", "svg.fonttype": "none"}):
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        made[f"reliability_{name}.svg"] = buffer.getvalue()
    return made


def write_page() -> None:
    """Write the page and its pictures."""
    PAGE.write_text(page())
    (PAGE.parent / "figures").mkdir(exist_ok=True)
    for name, text in pictures().items():
        (PAGE.parent / "figures" / name).write_text(text)
    print(f"wrote {PAGE}")
