"""What people see of a compression: a line per round, and a table at the end."""

import math
import sys
from typing import Any, Self

from rich.console import Console
from rich.status import Status
from rich.table import Table

from bayesarch.report.amounts import amount

__all__ = ["CompressionProgress", "print_compression"]


class CompressionProgress:
    """A spinner that says how small the network is by now, on standard error.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        from bayesarch.workflows.compression import CompressionListener  # loads torch

        self.quiet, self.path = quiet, ""
        self._status = Status("starting", console=Console(file=sys.stderr))
        self.listener = CompressionListener(on_start=self._start, on_stage=self._stage, on_round=self._round)

    def __enter__(self) -> Self:
        if not self.quiet:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the spinner away."""
        self._status.stop()

    def _start(self, path: str) -> None:
        self.path = path

    def _stage(self, text: str) -> None:
        self._status.update(text)

    def _round(self, record: dict[str, Any]) -> None:
        self._status.update(
            f"round {record['epoch']}: {amount(record['params'])} parameters, {amount(record['macs'])} MACs, "
            f"accuracy {record['selection_accuracy']:.4f} on the selection split"
        )


def print_compression(run: Any) -> None:
    """Print a finished compression: before and after."""
    summary = run.summary
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("parameters", "MACs", "file, kB", "latency, ms", "accuracy", "NLL", "ECE"):
        table.add_column(name, justify="right")
    for row in summary["rows"]:
        table.add_row(
            row["name"],
            f"{row['params']:,}",
            f"{row['macs']:,}",
            f"{row['bytes'] / 1e3:.1f}",
            f"{row['latency_ms']:.3f}",
            f"{row['accuracy']['value']:.4f}",
            f"{row['nll']['value']:.4f}",
            f"{row['ece_width']['value']:.4f}",
        )
    Console().print(table)
    gap = summary["difference"]["accuracy"]
    print(
        f"accuracy {gap['value']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f}), test split, n = {summary['n']}, "
        "90 %, paired by example"
    )
    if len({row["params"] for row in summary["rows"]}) == 1:
        print("nothing was cut: the network keeps the limits as it is, and was only trained on")
    if summary.get("also"):
        after = [row["after"] for row in summary["layers"]]
        left, of = sum(row["nonzero"] for row in after), sum(math.prod(row["shape"]) for row in after)
        print(f"not zero   {left:,} of {of:,} weights ({', '.join(summary['also'])}): zeros are stored and multiplied")
    for where, why in summary["whole"].items():
        print(f"left whole: {where or 'the network'}, {why}")
    print(f"report     {run.path}/report.html")
