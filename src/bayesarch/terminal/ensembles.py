"""Progress and tables of ensembles and evaluations."""

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from bayesarch.report.amounts import amount, counted, duration, score

__all__ = ["EnsembleProgress", "RoadProgress", "print_answers", "print_evaluation"]


class EnsembleProgress:
    """A live line: what is being done, how many members are trained.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        from bayesarch.workflows.ensemble import EnsembleListener

        self.path = ""
        self._bar = Bar(
            TextColumn("{task.fields[text]}"), BarColumn(bar_width=18), TimeElapsedColumn(),
            console=Console(stderr=True, quiet=quiet), transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("ensemble", total=None, text="ensemble")
        self.listener = EnsembleListener(on_start=self._start, on_stage=self._stage, on_members=self._members)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the live line away."""
        self._bar.stop()

    def _start(self, path: str) -> None:
        self.path = path

    def _stage(self, text: str) -> None:
        self._bar.update(self._task, text=text, total=None)

    def _members(self, done: int, running: int, of: int) -> None:
        self._bar.update(
            self._task, text=f"members: {done} of {of} trained, {running} running", completed=done, total=of
        )


class RoadProgress:
    """One part's progress after the other's.

    Args:
        out: the folder of everything.
        quiet: show nothing.
    """

    def __init__(self, out: str, *, quiet: bool = False) -> None:
        from bayesarch.terminal.progress import Progress
        from bayesarch.workflows.whole import RunListener

        self.path, self.again = out, f"bayesarch run --out {out}"
        self._search, self._ensemble = Progress(quiet=quiet), EnsembleProgress(quiet=quiet)
        self._console = Console(stderr=True, quiet=quiet)
        self.listener = RunListener(self._search.listener, self._ensemble.listener, self._part)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the live lines away."""
        self._search.stop()
        self._ensemble.stop()

    def _part(self, name: str, run: Any) -> None:
        if name != "search":
            return
        self._search.stop()
        found = run.summary
        self._console.print(
            f"found {found['cell'] if len(found['cell']) < 200 else found['digest']} "
            f"({found['params']:,} parameters); now the ensemble",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip
        self._ensemble.__enter__()


def print_evaluation(run: Any) -> None:
    """Print the table of a run's evaluation, and for an ensemble who is in it."""
    record, console = run.folder.read_json("evaluation.json"), Console()
    if console.width < 100:  # a table cut off says nothing
        console = Console(width=100)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for name in ("accuracy", "90 %", "NLL", "90 %", "Brier", "ECE", "AURC"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in record["rows"]:
        cells = [
            text
            for k in ("accuracy", "nll")
            for text in (f"{row[k]['value']:.4f}", f"{row[k]['low']:.3f}-{row[k]['high']:.3f}")
        ]
        cells += [score(row[k]["value"]) for k in ("brier", "ece_width", "aurc")]
        table.add_row(row["name"], *cells)
    console.print(table)
    console.print(
        f"test split, n = {record['n']}; temperatures from n = {record['n_calibration']} others", highlight=False
    )
    console.print()
    for name, value in [*_ensemble_lines(run), *_record_lines(record)]:
        console.print(f"{name:<10} {value}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"{'report':<10} {run.path}/{report_name(run)}", highlight=False, soft_wrap=True, markup=False)


def print_answers(record: dict[str, Any], page: str | None) -> None:
    """Print evaluated runs side by side."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run")
    for name in ("accuracy", "difference (90 %)", "NLL", "difference (90 %)", "ECE", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in record["rows"]:
        cells = []
        for key in ("accuracy", "nll"):
            gap = row[f"{key}_difference"]
            cells += [f"{row[key]['value']:.4f}", f"{gap['value']:+.4f} ({gap['low']:+.3f}, {gap['high']:+.3f})"]
        table.add_row(row["path"], *cells, f"{row['ece']:.4f}", amount(row["macs"]))
    console = Console()
    console = console if console.width >= 110 else Console(width=110)
    console.print(table)
    console.print(
        f"test split, n = {record['n']}; differences to {record['rows'][0]['path']}, paired by example", highlight=False
    )
    if page is not None:
        console.print(f"page      {page}", highlight=False)


def report_name(run: Any) -> str:
    """Return where the page of an evaluation lies in its folder."""
    return "report.html" if run.is_ensemble else "evaluation.html"


def _ensemble_lines(run: Any) -> list[tuple[str, str]]:
    if not run.is_ensemble:
        return []
    summary = run.summary
    lines = [
        ("member", f"{row['path']}  {row['architecture']}")
        for row in summary["members"]
        if len(row["architecture"]) < 200
    ]
    lines.append(
        (
            "trained",
            f"{counted(summary['candidates'], 'candidate')} from {summary['source']}, "
            f"{counted(summary['distinct'], 'different function')} among the members, "
            f"{summary['budget']['epochs']} epochs in all, {amount(summary['budget']['epoch_macs'])} forward MACs, "
            f"{duration(summary['times']['seconds'])}",
        )
    )
    if summary["failed"]:
        lines.append(("failed", ", ".join(summary["failed"]) + " (see their process.txt)"))
    return lines


def _record_lines(record: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for row in record["differences"]:
        gap = row["nll"]
        lines.append(
            ("loss", f"{row['name']} minus {row['minus']}: {gap['value']:+.4f} nats "
                     f"({gap['low']:+.4f} to {gap['high']:+.4f})")
        )  # fmt: skip
    nats = record["uncertainty"]["nats"]
    if record["uncertainty"]["disagreement"]:
        lines.append(
            ("nats", f"total {nats['total']['all']:.4f} = aleatoric {nats['aleatoric']['all']:.4f} + epistemic "
                     f"{nats['epistemic']['all']:.4f}; members disagree on {record['uncertainty']['disagreement']:.1%}")
        )  # fmt: skip
    for row in record["conformal"]:
        c = row["coverage"]
        lines.append(
            ("sets", f"{row['name']}: promised {row['promised']:.0%}, hold the truth in {c['value']:.1%} "
                     f"({c['low']:.1%} to {c['high']:.1%}), {row['mean_size']:.2f} classes")
        )  # fmt: skip
    if record["ood"] is not None:
        for row in record["ood"]["rows"]:
            lines.append(
                (
                    "strange",
                    f"{record['ood']['name']}: AUROC {row['auroc']:.3f}, FPR95 {row['fpr95']:.3f} by {row['by']}",
                )
            )
    if record["corruptions"]:
        worst = min(record["corruptions"], key=lambda row: row["accuracy"])
        mean = sum(row["accuracy"] for row in record["corruptions"]) / len(record["corruptions"])
        lines.append(
            ("corrupted", f"accuracy {mean:.4f} over {len(record['corruptions'])} kinds and severities, worst "
                          f"{worst['accuracy']:.4f} under {worst['kind']} {worst['severity']}")
        )  # fmt: skip
    for row in record["costs"]:
        lines.append(
            ("cost", f"{row['name']}: {row['params']:,} parameters, {amount(row['macs'])} MACs, "
                     f"{row['latency_ms']:.2f} ms on {record.get('device', 'cpu')}, {row['bytes'] / 1e6:.2f} MB")
        )  # fmt: skip
    return lines
