"""One self-contained page per run: reads a run folder, draws, writes report.html. No torch, no network."""

import statistics
from collections.abc import Mapping, Sequence
from importlib.resources import files
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bayesarch.report.amounts import amount, counted, duration, score
from bayesarch.runs import RunFolder, write_atomically

__all__ = [
    "write_answers",
    "write_comparison",
    "write_compression_report",
    "write_ensemble_report",
    "write_repeats_report",
    "write_report",
]


def write_report(folder: RunFolder) -> None:
    """Write report.html of a run whose summary and posterior are there.

    Raises:
        RunError: if they are not, or the page cannot be written.
    """
    from bayesarch.report import plots  # matplotlib loads where it is used

    content, metrics = _common(folder), folder.read_metrics()
    content |= {
        "pruning": plots.pruning(metrics),
        "learning": plots.learning(metrics),
        "fired_by": content["summary"].get("fired_by"),
        "masks": plots.candidates(content["summary"]) if "rows" in content["summary"] else None,
    }
    _write(folder, "run.html", content)


def write_repeats_report(folder: RunFolder) -> None:
    """Write report.html of repeated runs whose union is there.

    Raises:
        RunError: if it is not, or the page cannot be written.
    """
    from bayesarch.report import plots

    content = _common(folder)
    summary = content["summary"]
    accuracies = [run["selection_accuracy"] for run in summary["runs"]]
    content |= {
        "intervals": plots.intervals(summary["edges"]),
        "most_entropy": log(summary["repeats"]),
        "mean_accuracy": statistics.mean(accuracies),
        "sd_accuracy": statistics.stdev(accuracies),
    }
    _write(folder, "repeats.html", content)


def write_ensemble_report(folder: RunFolder, pictures: Sequence[np.ndarray]) -> None:
    """Write the page of an evaluated run: report.html of an ensemble, evaluation.html of any other.

    Args:
        folder: holds evaluation.json; of an ensemble, ensemble.json as well.
        pictures: the examples it is least sure of, uint8 of shape (H, W, C), in the order of the record.

    Raises:
        RunError: if the evaluation is not there, or the page cannot be written.
    """
    from bayesarch.report import plots_ensemble as plots

    record, ensemble = folder.read_json("evaluation.json"), folder.has("ensemble.json")
    content = {
        "name": folder.name,
        "summary": {},
        "record": record,
        "kept": folder.read_json("ensemble.json") if ensemble else None,
        "data": folder.read_json("data.json"),
        "lookup": None,
        "environment": folder.read_json("environment.json"),
        "config": yaml.safe_dump(folder.read_config(), sort_keys=False),
        "reliability": plots.reliability(record["curves"]),
        "coverage": plots.risk_coverage(record["curves"]),
        "confusion": plots.confusion(record["confusion"], record["classes"]),
        "corruptions": plots.corruptions(record["corruptions"]) if record["corruptions"] else None,
        "members": _drawn(record["members"]) if ensemble else [],
        "pictures": [plots.picture(image) for image in pictures],
        "exports": folder.read_json("exports/exports.json")["files"] if folder.has("exports/exports.json") else [],
    }
    name = "report.html" if ensemble else "evaluation.html"
    write_atomically(folder.path / name, _render("ensemble.html", content))


def write_compression_report(folder: RunFolder) -> None:
    """Write report.html of a network made smaller.

    Raises:
        RunError: if its summary is not there, or the page cannot be written.
    """
    from bayesarch.report import plots_compression as plots

    summary, metrics = folder.read_json("summary.json"), folder.read_metrics()
    content = {
        "name": folder.name,
        "summary": summary,
        "lookup": None,
        "data": folder.read_json("data.json"),
        "environment": folder.read_json("environment.json"),
        "config": yaml.safe_dump(folder.read_config(), sort_keys=False),
        "path": plots.path(metrics, summary["round"], summary["selection"]["dense"]),
        "layers": plots.layers(summary["layers"]),
    }
    _write(folder, "compression.html", content)


def _drawn(members: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return names, notation and drawing of members, equal cells once; what has no edges is not drawn."""
    from bayesarch.report import plots

    alike: dict[str, list[Mapping[str, Any]]] = {}
    for member in members:
        alike.setdefault(member["text"], []).append(member)
    return [
        {
            "paths": [member["path"] for member in some],
            "text": text,
            "drawing": plots.cell(some[0]["edges"]) if any(e["source"] is not None for e in some[0]["edges"]) else None,
        }
        for text, some in alike.items()
    ]


def _common(folder: RunFolder) -> dict[str, Any]:
    """Return what every page shows."""
    from bayesarch.report import plots

    summary = folder.read_json("summary.json")
    weights = folder.read_json("posterior.json")["weights"]
    return {
        "name": folder.name,
        "summary": summary,
        "data": folder.read_json("data.json"),
        "lookup": folder.read_json("lookup.json") if folder.has("lookup.json") else None,
        "environment": folder.read_json("environment.json"),
        "config": yaml.safe_dump(folder.read_config(), sort_keys=False),
        "heatmap": plots.heatmap(weights, summary["edges"], summary["word"]),
        "cell": plots.cell(summary["edges"]),
    }


def write_comparison(path: Path, record: dict[str, Any]) -> None:
    """Write one page that sets groups of runs side by side.

    Raises:
        RunError: if it cannot be written.
    """
    from bayesarch.report import plots

    write_atomically(path, _render("compare.html", {"record": record, "picture": plots.pareto(record)}))


def write_answers(path: Path, record: dict[str, Any]) -> None:
    """Write one page that sets evaluated runs side by side.

    Raises:
        RunError: if it cannot be written.
    """
    from bayesarch.report import plots_ensemble as plots

    write_atomically(path, _render("answers.html", {"record": record, "picture": plots.loss_and_cost(record["rows"])}))


def _write(folder: RunFolder, template: str, content: dict[str, Any]) -> None:
    write_atomically(folder.path / "report.html", _render(template, content))


def _render(template: str, content: dict[str, Any]) -> bytes:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=PackageLoader("bayesarch.report", "."), autoescape=True, undefined=StrictUndefined)
    filters = {"amount": amount, "counted": counted, "duration": duration, "score": score, "breaking": _breaking}
    environment.filters |= filters
    style = files("bayesarch.report").joinpath("style.css").read_text()
    return environment.get_template(template).render(**content, style=Markup(style), span=_span).encode()


def _breaking(cell: str) -> str:
    """Return a cell's notation that breaks between edges where a line is too short, and not within a name."""
    from markupsafe import Markup, escape

    return escape(cell).replace("|", Markup("|<wbr>"))


def _span(interval: dict[str, float]) -> str:
    """Return an interval as text; nothing where there is none."""
    if interval["low"] != interval["low"]:
        return ""
    return f" ({interval['low']:.4f} to {interval['high']:.4f})"
