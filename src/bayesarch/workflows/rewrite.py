"""`report`: the pages of a run written again from its records."""

import os

from bayesarch.errors import RunError
from bayesarch.report import write_compression_report, write_repeats_report, write_report
from bayesarch.workflows.evaluate import write_page
from bayesarch.workflows.run import open_run

__all__ = ["rewrite"]


def rewrite(path: str | os.PathLike[str]) -> list[str]:
    """Write every page that a run's records are enough for, and return where they are.

    Raises:
        RunError: if there is nothing to show yet.
    """
    run, written = open_run(path), []
    if run.folder.has("posterior.json") and run.folder.has("summary.json"):
        (write_repeats_report if run.config.get("repeats", 1) > 1 else write_report)(run.folder)
        written.append(f"{run.path}/report.html")
    if run.is_compression and run.folder.has("summary.json"):
        write_compression_report(run.folder)
        written.append(f"{run.path}/report.html")
    if run.folder.has("evaluation.json"):
        write_page(run)
        written.append(f"{run.path}/{'report' if run.is_ensemble else 'evaluation'}.html")
    if not written:
        hint = f"bayesarch evaluate {run.path}" if run.is_training else f"bayesarch resume {run.path}"
        raise RunError(f"{run.path} is {run.status.get('state')} and has nothing to show yet: {hint}")
    return written
