"""What the final table, `show` and the report say of a finished search."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bayesarch.engine import Engine
from bayesarch.nets import OPERATIONS, architecture_cost
from bayesarch.posteriors import ArchitecturePosterior, ConditionalsAtMode, entropy_of, word
from bayesarch.spaces import Architecture, Choice
from bayesarch.workflows.config import Settings
from bayesarch.workflows.limits import LimitsConfig

__all__ = ["belief_warnings", "collapse_warnings", "edge_base", "kept_limits", "summarise"]


def summarise(
    settings: Settings,
    posterior: ArchitecturePosterior,
    arch: Architecture,
    engine: Engine,
    *,
    input_shape: tuple[int, int, int],
) -> dict[str, Any]:
    """Return the summary: found cell, edges, cost, score with inherited weights, warnings. Holds no times."""
    said = settings.method.summary(engine.state)
    cost = architecture_cost(arch, sizes=settings.sizes, input_shape=input_shape, classes=engine.net.classes)
    selection = engine.selection()
    place, epoch = engine.place, engine.steps_per_epoch
    return {
        "cell": str(arch),
        "digest": arch.digest,
        "method": settings.method.name,
        "space": settings.space.name,
        "cite": settings.method.cite,
        "kind": posterior.kind,
        "word": word(posterior),
        "edges": edge_rows(arch, posterior),
        "params": cost.params,
        "macs": cost.macs,
        "selection_accuracy": selection.accuracy,
        "selection_loss": selection.loss,
        "selection_n": selection.n,
        "search_epochs": round(place.searched / epoch, 1),
        "closing_epochs": round((place.steps - place.searched) / epoch, 1),
        "images": place.images,
        "forward_macs": place.macs,
        "selection_balanced_accuracy": selection.balanced_accuracy,
        "selection_macro_f1": selection.macro_f1,
        "metric": settings.data.metric,
        "metric_value": getattr(selection, settings.data.metric),
        **said,
        "warnings": [*collapse_warnings(arch), *belief_warnings(posterior), *said.get("warnings", [])],
    }


def kept_limits(
    limits: LimitsConfig, summary: Mapping[str, Any], latency_ms: float
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return, per limit, what was allowed and what the found network has, and a warning for each that was missed.

    Parameters and MACs are exact and never missed. A latency is measured once before the search and once after it; the
    second measurement may come out above the limit.
    """
    has = {"macs": summary["macs"], "params": summary["params"], "latency_ms": latency_ms}
    table = {k: {"allowed": v, "found": has[k]} for k, v in limits.model_dump().items() if v is not None}
    missed = [
        f"limit missed: {name} is {row['found']:,g}, allowed were {row['allowed']:,g}"
        for name, row in table.items()
        if row["found"] > row["allowed"]
    ]
    return table, missed


def edge_base(arch: Architecture, position: int) -> dict[str, Any]:
    """Return what pictures and tables need of one choice of an architecture, whatever its weights are."""
    choice, names = arch.space.choices[position], arch.option_names(position)
    return {
        "choice": choice.name,
        "cell": choice.cell,
        "source": choice.source,
        "target": choice.target,
        "zero": choice.zero is not None and names == (choice.options[choice.zero],),
        "options": [f"{len(names)} of {len(choice.options)}"] if choice.alike else list(names),
        "inactive": position in arch.inactive,
    }


def edge_rows(arch: Architecture, posterior: ArchitecturePosterior) -> list[dict[str, Any]]:
    """Return one row per choice: what was picked, the weights of that, entropy, loss gap, whether inactive."""
    table = posterior.weights()
    gaps = posterior.gaps if isinstance(posterior, ConditionalsAtMode) else None
    rows = []
    for position, choice in enumerate(arch.space.choices):
        weights = table[choice.name]
        names = ("kept",) if choice.alike else arch.option_names(position)
        if choice.pick == "any" and not names and choice.zero is not None:
            names = (choice.options[choice.zero],)
        rows.append(
            {
                **edge_base(arch, position),
                "weights": [float(weights[name]) for name in names],
                "entropy": _entropy(choice, weights),
                "gap_nats": None if gaps is None else float(gaps[position][choice.options.index(names[0])]),
            }
        )
    return rows


def _entropy(choice: Choice, weights: Mapping[str, float]) -> float:
    """Return the entropy of one choice's weights, nats: of one draw, or of every option's being in or out."""
    if choice.pick == "one":
        return entropy_of(np.array(list(weights.values())))
    real = list(weights.values()) if choice.alike else [weights[choice.options[i]] for i in choice.real]
    return sum(entropy_of(np.array([p, 1.0 - p])) for p in real)


def collapse_warnings(arch: Architecture) -> list[str]:
    """Return warnings where the found cell hardly computes anything: unconnected, or mostly nothing and copies."""
    if any(choice.alike for choice in arch.space.choices):
        return []
    if not arch.connected:
        return ["collapse: no path leads from the cell's input to its output, so the network sees no image"]
    # where any number of options may stay, an empty edge is a finding and no collapse
    choices = arch.space.choices
    active = [p for p in range(len(choices)) if p not in arch.inactive and (arch.picks[p] or choices[p].pick == "one")]
    idle = [p for p in active if all(_is_idle(name) for name in arch.option_names(p))]
    if active and len(idle) * 3 >= len(active) * 2:
        names = sorted({name for p in idle for name in arch.option_names(p)})
        return [
            f"collapse: {len(idle)} of {len(active)} active edges are {' or '.join(names)}; searches with weight "
            "sharing drift there when trained long, so compare with fewer epochs or another seed"
        ]
    return []


def belief_warnings(posterior: ArchitecturePosterior) -> list[str]:
    """Return warnings of what was believed when the search ended: that no image gets through, that all is equal.

    Equal is where every choice's possible options weigh the same to within 5 %.
    """
    blind = []
    if posterior.kind != "candidates" and not posterior.mode().connected:
        blind = ["the most probable cell lets no image through; what was found is the most probable one that does"]
    table = [
        [weight for weight in posterior.weights()[choice.name].values() if weight > 0]
        for choice in posterior.space.choices
        if choice.pick == "one"
    ]
    open_ = [row for row in table if len(row) > 1]
    if not open_ or any(max(row) > 1.05 * min(row) for row in open_):
        return blind
    return [
        *blind,
        "undecided: the options of every edge weigh the same, so what was picked is chance; give the search more "
        "epochs or more time, or its weights a higher learning rate (method.alpha_lr)",
    ]


def _is_idle(name: str) -> bool:
    """Return whether an option passes nothing, or its input as it is."""
    op = OPERATIONS.get(name)
    return op is not None and op.passive
