"""Pictures of a network made smaller, as SVG text: the path of its rounds, and its layers before and after."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from bayesarch.report.amounts import tick
from bayesarch.report.plots import ACCENT, GREY, INK, WARM, amounts, quiet, svg

__all__ = ["layers", "path"]


def path(metrics: Sequence[Mapping[str, Any]], chosen: int, dense: float) -> str:
    """Return accuracy on the selection split against MACs, round after round.

    Args:
        metrics: one record per round.
        chosen: the round (from 1) that the network is of.
        dense: accuracy of the whole network.
    """
    figure = Figure(figsize=(6.4, 3.2))
    axes = figure.subplots()
    macs, accuracy = [r["macs"] for r in metrics], [r["selection_accuracy"] for r in metrics]
    axes.axhline(dense, color=GREY, linewidth=0.8)
    axes.plot(macs, accuracy, color=ACCENT, marker="o", markersize=3, linewidth=1)
    for r in metrics:
        if r["epoch"] == chosen:
            axes.plot([r["macs"]], [r["selection_accuracy"]], color=WARM, marker="o", markersize=8, fillstyle="none")
    amounts(axes, "x")
    axes.invert_xaxis()
    axes.set_xlabel("MACs of one image", fontsize=8)
    axes.set_ylabel("accuracy, selection split", fontsize=8)
    axes.tick_params(which="both", labelsize=7)
    quiet(axes)
    figure.tight_layout()
    return svg(figure)


def layers(table: Sequence[Mapping[str, Any]]) -> str:
    """Return the MACs of each layer, before and after."""
    figure = Figure(figsize=(6.4, 0.6 + 0.24 * len(table)))
    axes = figure.subplots()
    rows = range(len(table))
    axes.barh(rows, [row["before"]["macs"] for row in table], color=GREY, height=0.75)
    axes.barh(rows, [row["after"]["macs"] for row in table], color=ACCENT, height=0.45)
    axes.set_yticks(list(rows), [row["layer"] or "the layer" for row in table], fontsize=7)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: tick(value))
    axes.set_xlabel("MACs of one image", fontsize=8, color=INK)
    axes.tick_params(labelsize=7)
    quiet(axes)
    figure.tight_layout()
    return svg(figure)
