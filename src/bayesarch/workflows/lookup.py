"""`--benchmark nb201=PATH`: what a table says of what was found. Read after a search has ended, never during one."""

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bayesarch.benchmarks import read_table
from bayesarch.errors import ConfigError
from bayesarch.report import write_repeats_report, write_report
from bayesarch.workflows.repeats import child_runs
from bayesarch.workflows.run import Run

__all__ = ["look_up"]


def look_up(run: Run, spec: str) -> dict[str, Any]:
    """Return, and keep in the run's lookup.json, what the table says of the found cell, per data set.

    Of repeated runs every run's cell is looked up too, and their mean accuracy and regret are given.

    Args:
        run: a finished run.
        spec: `name=path`.

    Raises:
        ConfigError: if the run is not finished or of another space than the table.
        DataError: if the table cannot be read.
    """
    if not run.folder.has("summary.json"):
        raise ConfigError(f"{run.path} is not finished, and a table is never read before that")
    table = read_table(spec)
    searched_on = run.config["data"].get("called") or Path(run.config["data"]["source"]).stem
    answers = [asdict(answer) for answer in table.look_up(run.architecture, searched_on=searched_on)]
    record: dict[str, Any] = {
        "benchmark": spec.partition("=")[0],
        "note": table.benchmark.note,
        "reference": table.benchmark.reference[1],
        "searched_on": searched_on,
        "answers": answers,
    }
    children = child_runs(run)
    if children:
        each = [table.look_up(child.architecture, searched_on=searched_on) for child in children]
        record["over_runs"] = [
            {
                "dataset": rows[0].dataset,
                "accuracy": statistics.mean(row.accuracy for row in rows),
                "accuracy_sd": statistics.stdev(row.accuracy for row in rows),
                "regret": statistics.mean(row.regret for row in rows),
                "n": len(rows),
            }
            for rows in zip(*each, strict=True)
        ]
    run.folder.write_json("lookup.json", record)
    (write_repeats_report if children else write_report)(run.folder)
    return record
