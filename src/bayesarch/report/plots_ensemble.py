"""Pictures of an evaluation as SVG text: reliability, risk against coverage, confusion, corruptions, single images."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from bayesarch.report.plots import ACCENT, GREY, INK, WARM, amounts, quiet, svg

__all__ = ["confusion", "corruptions", "loss_and_cost", "picture", "reliability", "risk_coverage"]

COLOURS = (GREY, ACCENT, WARM, INK, "#7d5ba6")


def reliability(curves: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a reliability diagram per way to answer; the size of a mark is how many examples it stands for."""
    columns = min(len(curves), 2)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.1 * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(curves) :]:
        axes.axis("off")
    for axes, (name, curve) in zip(grid.flat, curves.items(), strict=False):
        total = sum(curve["n"])
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        axes.scatter(
            curve["confidence"],
            curve["accuracy"],
            s=[10 + 150 * n / total for n in curve["n"]],
            color=ACCENT,
            alpha=0.75,
            clip_on=False,  # the largest mark is the surest answers', in the corner
        )
        axes.set_title(name, fontsize=8, loc="left", color=INK)
        axes.set_xlabel("confidence", fontsize=8)
        axes.set_ylabel("accuracy", fontsize=8)
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.03)
        axes.tick_params(labelsize=7)
        quiet(axes)
    figure.tight_layout()
    return svg(figure)


def risk_coverage(curves: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the share of errors among the answers it is surest of, for every share answered."""
    figure = Figure(figsize=(7.2, 2.8))
    axes = figure.subplots()
    for (name, curve), colour in zip(curves.items(), COLOURS * 3, strict=False):
        axes.plot(curve["coverage"], curve["risk"], color=colour, linewidth=1.3, label=name)
    axes.set_xlabel("share answered, surest first", fontsize=9)
    axes.set_ylabel("share wrong", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=7)
    quiet(axes)
    return svg(figure)


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Return the confusion matrix, true classes down; with many classes counts are not written."""
    k, table = len(classes), np.array(counts, dtype=float)
    size = min(1.5 + 0.42 * k, 7.2)
    figure = Figure(figsize=(size, size * 0.9))
    axes = figure.subplots()
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if k <= 20:
        for i in range(k):
            for j in range(k):
                if table[i, j]:
                    colour = "white" if shares[i, j] > 0.55 else INK
                    axes.text(j, i, f"{table[i, j]:.0f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(k), classes, fontsize=8, rotation=45 if max(map(len, classes)) > 3 else 0)
        axes.set_yticks(range(k), classes, fontsize=8)
    axes.set_xlabel("said", fontsize=9)
    axes.set_ylabel("true", fontsize=9)
    for side in axes.spines.values():
        side.set_visible(False)
    return svg(figure)


def corruptions(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return accuracy and calibration error per kind of corruption, one line per severity."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure = Figure(figsize=(7.2, 3.6))
    left, right = figure.subplots(1, 2, sharey=True)
    for severity, colour in zip(
        sorted({row["severity"] for row in rows}), (GREY, ACCENT, WARM, INK, "black"), strict=False
    ):
        by = {row["kind"]: row for row in rows if row["severity"] == severity}
        places = [i for i, kind in enumerate(kinds) if kind in by]
        for axes, key in ((left, "accuracy"), (right, "ece_width")):
            axes.plot(
                [by[kinds[i]][key] for i in places],
                places,
                "o",
                color=colour,
                markersize=3.5,
                label=f"severity {severity}",
            )
    left.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds], fontsize=7)
    left.invert_yaxis()
    left.set_xlabel("accuracy", fontsize=9)
    right.set_xlabel("ECE", fontsize=9)
    left.legend(frameon=False, fontsize=7)
    for axes in (left, right):
        axes.grid(axis="y", color="#eef1f4")
        quiet(axes)
    figure.tight_layout()
    return svg(figure)


def loss_and_cost(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the loss of each run against its MACs, with intervals."""
    figure = Figure(figsize=(7.2, 3.0))
    axes = figure.subplots()
    for row, colour in zip(rows, COLOURS * len(rows), strict=False):
        loss = row["nll"]
        spread = [[loss["value"] - loss["low"]], [loss["high"] - loss["value"]]]
        axes.errorbar([row["macs"]], [loss["value"]], spread, fmt="o", color=colour, markersize=5, label=row["path"])
    amounts(axes, "x")
    axes.set_xlabel("MACs of one image", fontsize=9)
    axes.set_ylabel("NLL, nats", fontsize=9)
    axes.legend(frameon=False, fontsize=7)
    quiet(axes)
    return svg(figure)


def picture(image: np.ndarray, *, side: int = 96) -> str:
    """Return an image as a data URI, enlarged without smoothing."""
    shown = image[..., 0] if image.shape[2] in (1, 2) else image[..., :3]
    made = Image.fromarray(shown)
    factor = max(side // max(made.size), 1)
    buffer = io.BytesIO()
    made.resize((made.width * factor, made.height * factor), Image.Resampling.NEAREST).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
