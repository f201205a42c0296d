"""One self-contained page per run: reads a run folder, draws, writes report.html. No torch, no network."""

from importlib.resources import files
from typing import Any

import yaml

from bayesarch.runs import RunFolder, write_atomically

__all__ = ["write_report"]


def write_report(folder: RunFolder) -> None:
    """Write report.html of a run whose summary and posterior are there.

    Raises:
        RunError: if they are not, or the page cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    template = files("bayesarch.report").joinpath("template.html").read_text()
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(template)
    write_atomically(folder.path / "report.html", page.render(**_content(folder)).encode())


def _content(folder: RunFolder) -> dict[str, Any]:
    """Return what the template shows."""
    from bayesarch.report import plots  # matplotlib loads where it is used

    summary, metrics = folder.read_json("summary.json"), folder.read_metrics()
    weights = folder.read_json("posterior.json")["weights"]
    return {
        "name": folder.name,
        "summary": summary,
        "data": folder.read_json("data.json"),
        "environment": folder.read_json("environment.json"),
        "config": yaml.safe_dump(folder.read_config(), sort_keys=False),
        "heatmap": plots.heatmap(weights, summary["edges"], summary["word"]),
        "cell": plots.cell(summary["edges"]),
        "pruning": plots.pruning(metrics),
        "learning": plots.learning(metrics),
        "fired_by": summary.get("fired_by"),
    }
