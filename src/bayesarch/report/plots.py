"""Pictures of a run as SVG text: posterior heatmap, the cell drawn, pruning over time, learning curves. No torch."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.ticker import LogLocator, NullFormatter

from bayesarch.report.amounts import tick

__all__ = [
    "amounts",
    "candidates",
    "cell",
    "heatmap",
    "intervals",
    "learning",
    "pareto",
    "pruning",
    "quiet",
    "svg",
]

INK, GREY, ACCENT, WARM = "#1f2933", "#9aa5b1", "#2f6f8f", "#c8553d"

DRAWN = 8
"""Cell types that are drawn at most; tables show all."""

Records = Sequence[Mapping[str, Any]]


def svg(figure: Figure) -> str:
    """Return a figure as SVG text without date or XML prologue, its text as text; equal figures, equal text."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "bayesarch", "svg.fonttype": "none", "font.family": "sans-serif"}):
        # the box of all that is drawn, found by measuring it: "tight" would draw it all to find the same
        figure.set_layout_engine(None)
        box = figure.get_tightbbox().padded(rcParams["savefig.pad_inches"])
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches=box)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def quiet(axes: Axes) -> None:
    """Leave only the left and bottom spine."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def amounts(axes: Axes, which: Literal["x", "y"]) -> None:
    """Label amounts on an axis with prefixes, logarithmically where they differ threefold; call it last."""
    axis, (low, high) = {
        "x": (axes.xaxis, axes.dataLim.intervalx),
        "y": (axes.yaxis, axes.dataLim.intervaly),
    }[which]
    if 0 < 3 * low <= high:
        axes.set(**{f"{which}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: tick(value))


def heatmap(weights: Mapping[str, Mapping[str, float]], edges: Records, word: str) -> str:
    """Return the table of weights as a picture: a row per choice, a column per option, the picked one framed."""
    options = list(dict.fromkeys(option for row in weights.values() for option in row))
    figure = Figure(figsize=(1.2 + 1.05 * len(options), 0.7 + 0.42 * len(edges)))
    axes = figure.subplots()
    values = [[weights[e["choice"]].get(option, float("nan")) for option in options] for e in edges]
    grid = [[k - 0.5 for k in range(n + 1)] for n in (len(options), len(edges))]
    axes.pcolormesh(*grid, values, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1.0)
    axes.invert_yaxis()
    for side in axes.spines.values():
        side.set_visible(False)
    for i, edge in enumerate(edges):
        for j, option in enumerate(options):
            value = values[i][j]
            colour = GREY if edge["inactive"] else ("white" if value > 0.55 else INK)
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
            if option in edge["options"]:
                axes.add_patch(_frame(j, i))
    axes.set_xticks(range(len(options)), options, fontsize=8)
    axes.set_yticks(
        range(len(edges)),
        [f"{e['choice']}{' (inactive)' if e['inactive'] else ''}" for e in edges],
        fontsize=9,
    )
    axes.tick_params(length=0)
    axes.set_title(f"{word} of each option; framed: picked", fontsize=9, color=INK, loc="left")
    return svg(figure)


def intervals(edges: Records) -> str:
    """Return every option's share of runs as a dot with its 90 % interval, a panel per choice."""
    columns = min(len(edges), 3)
    rows = -(-len(edges) // columns)
    figure = Figure(figsize=(3.0 * columns, 0.5 + 1.55 * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(edges) :]:
        axes.axis("off")
    for axes, edge in zip(grid.flat, edges, strict=False):
        for height, (option, row) in enumerate(reversed(edge["shares"].items())):
            colour = WARM if option in edge["options"] else GREY if edge["inactive"] else ACCENT
            axes.plot(row["interval_90"], [height, height], color=colour, linewidth=1.6, alpha=0.6)
            axes.plot([row["share"]], [height], "o", color=colour, markersize=4.5)
        axes.set_yticks(range(len(edge["shares"])), list(reversed(edge["shares"])), fontsize=7)
        axes.set_xlim(-0.03, 1.03)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(edge["choice"], fontsize=8, color=INK, loc="left")
        quiet(axes)
    figure.tight_layout()
    return svg(figure)


def pareto(record: Mapping[str, Any]) -> str:
    """Return quality against the MACs of what was found, and against the seconds of the search; a line is the front."""
    figure = Figure(figsize=(7.2, 3.1))
    for axes, cost, label in zip(
        figure.subplots(1, 2, sharey=True),
        ("macs", "seconds"),
        ("MACs of the found network", "search, seconds"),
        strict=True,
    ):
        for row in record["runs"]:
            axes.plot([row[cost]], [row["quality"]], ".", color=GREY, markersize=4)
        front = sorted((g[cost], g["quality"]["mean"]) for g in record["groups"] if g[f"pareto_{cost}"])
        axes.plot([x for x, _ in front], [y for _, y in front], "-", color=WARM, linewidth=1.0, zorder=1)
        for group in record["groups"]:
            colour = WARM if group[f"pareto_{cost}"] else ACCENT
            axes.plot([group[cost]], [group["quality"]["mean"]], "o", color=colour, markersize=6)
            axes.annotate(
                group["name"],
                (group[cost], group["quality"]["mean"]),
                xytext=(5, 4),
                textcoords="offset points",
                fontsize=7,
            )
        amounts(axes, "x")
        axes.set_xlabel(label, fontsize=9)
        quiet(axes)
    figure.axes[0].set_ylabel(record["metric"].replace("_", " "), fontsize=9)
    figure.tight_layout()
    return svg(figure)


def candidates(summary: Mapping[str, Any]) -> str:
    """Return a histogram of candidates with their controls, and each group's drop rate beside its drift curve."""
    figure = Figure(figsize=(7.2, 3.1))
    left, right = figure.subplots(1, 2)
    left.hist([accuracy for accuracy, _ in summary["candidates"]], bins=20, color=ACCENT, alpha=0.7)
    for row, style in zip(summary["rows"], ("-", "--", "-.", ":", (0, (1, 3))), strict=False):
        left.axvline(row["architecture"]["mean"], color=WARM, linestyle=style, linewidth=1.2, label=row["name"])
    left.set_xlabel("accuracy, ranking split", fontsize=9)
    left.set_ylabel("candidates", fontsize=9)
    left.legend(fontsize=6, frameon=False)
    drops = [1 - edge["weights"][0] for edge in summary["edges"]]
    right.plot(range(len(drops)), drops, "o", color=ACCENT, markersize=3.5, label="learned")
    right.plot(range(len(drops)), summary["drift_rates"], "_", color=GREY, markersize=7, label="entropy alone")
    right.set_xlabel("group of gates, in the network's order", fontsize=9)
    right.set_ylabel("drop rate", fontsize=9)
    right.legend(fontsize=7, frameon=False)
    for axes in (left, right):
        quiet(axes)
    figure.tight_layout()
    return svg(figure)


def _frame(x: float, y: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, fill=False, edgecolor=WARM, linewidth=1.8)


def cell(edges: Records) -> str:
    """Return the found cell as a graph: nodes left to right, an arrow per edge that is there.

    More than two operations on an edge are counted; the table beside it names them.
    """
    drawn = [edge for edge in edges if edge["source"] is not None]
    kinds = list(dict.fromkeys(edge["cell"] for edge in drawn))[:DRAWN]
    figure = Figure(figsize=(7.2, 2.9 * max(len(kinds), 1)))
    grid = figure.subplots(max(len(kinds), 1), 1, squeeze=False)
    for row, kind in enumerate(kinds):
        _draw(grid[row][0], [edge for edge in drawn if edge["cell"] == kind])
        if len(kinds) > 1:
            grid[row][0].set_title(kind, fontsize=9, color=INK, loc="left")
    return svg(figure)


def _draw(axes: Axes, edges: Records) -> None:
    nodes, heights = _forward(edges), [0.0]
    place = {node: 2.0 * i for i, node in enumerate(nodes)}
    for index, edge in enumerate(edge for edge in edges if edge["options"]):
        start, end = place[edge["source"]], place[edge["target"]]
        span = (end - start) / 2.0
        side = 1.0 if index % 2 else -1.0
        bend = 0.0 if span == 1 else side * (0.28 + 0.06 * span)
        dim = edge["inactive"] or edge["zero"]
        axes.add_patch(
            FancyArrowPatch(
                (start, 0),
                (end, 0),
                connectionstyle=f"arc3,rad={bend}",
                arrowstyle="-|>",
                mutation_scale=12,
                shrinkA=13,
                shrinkB=13,
                color=GREY if dim else ACCENT,
                linestyle=":" if dim else "-",
                linewidth=1.0 if dim else 1.6,
            )
        )
        several = len(edge["options"]) > 2
        named = f"{len(edge['options'])} operations" if several else "\n".join(edge["options"])
        label = "inactive" if edge["inactive"] else named
        height = -bend * (end - start) / 2.0
        heights.append(height)
        axes.text(
            (start + end) / 2,
            height + (0.1 if height >= 0 else -0.1),
            label,
            ha="center",
            va="bottom" if height >= 0 else "top",
            fontsize=8,
            color=GREY if dim else INK,
        )
    for node, x in place.items():
        axes.add_patch(Circle((x, 0), 0.2, facecolor="white", edgecolor=INK, linewidth=1.4, zorder=3))
        axes.text(x, 0, node, ha="center", va="center", fontsize=10, color=INK, zorder=4)
    axes.set_xlim(-0.5, place[nodes[-1]] + 0.5)
    axes.set_ylim(min(heights) - 0.5, max(heights) + 0.5)
    axes.set_aspect("equal")
    axes.axis("off")


def _forward(edges: Records) -> list[str]:
    """Return the nodes so that every edge leads to the right."""
    waiting = sorted({edge["source"] for edge in edges} | {edge["target"] for edge in edges})
    order: list[str] = []
    while waiting:
        ready = [n for n in waiting if all(e["source"] in order for e in edges if e["target"] == n)]
        order.append(ready[0])
        waiting.remove(ready[0])
    return order


def pruning(metrics: Records) -> str:
    """Return live options and mean entropy of undecided choices over steps; marks show prunings."""
    figure = Figure(figsize=(7.2, 2.6))
    axes = figure.subplots()
    steps = [m["steps"] for m in metrics]
    axes.step(steps, [m["live_options"] for m in metrics], where="post", color=ACCENT)
    axes.set_xlabel("steps", fontsize=9)
    axes.set_ylabel("options left", fontsize=9, color=ACCENT)
    quiet(axes)
    other = axes.twinx()
    known = [m for m in metrics if m.get("entropy") is not None]
    other.plot([m["steps"] for m in known], [m["entropy"] for m in known], color=WARM, linewidth=1.2)
    other.set_ylabel("mean entropy, nats", fontsize=9, color=WARM)
    other.set_ylim(bottom=0)
    other.spines["top"].set_visible(False)
    marks = [m for m in metrics if m.get("prunings")]
    axes.plot([m["steps"] for m in marks], [m["live_options"] for m in marks], ".", color=ACCENT, markersize=5)
    return svg(figure)


def learning(metrics: Records) -> str:
    """Return losses on both halves and selection accuracy over steps."""
    figure = Figure(figsize=(7.2, 2.6))
    left, right = figure.subplots(1, 2)
    for key, colour, label in (
        ("weights_loss", ACCENT, "weights half"),
        ("architecture_loss", WARM, "architecture half"),
    ):
        known = [m for m in metrics if m.get(key) is not None]
        left.plot([m["steps"] for m in known], [m[key] for m in known], color=colour, label=label, linewidth=1.3)
    amounts(left, "y")
    left.set_xlabel("steps", fontsize=9)
    left.set_ylabel("cross-entropy, nats", fontsize=9)
    left.legend(frameon=False, fontsize=8)
    quiet(left)
    right.plot([m["steps"] for m in metrics], [m["selection_accuracy"] for m in metrics], color=INK, linewidth=1.3)
    right.set_xlabel("steps", fontsize=9)
    right.set_ylabel("accuracy, selection split", fontsize=9)
    right.set_ylim(top=1.005)
    quiet(right)
    figure.tight_layout()
    return svg(figure)
