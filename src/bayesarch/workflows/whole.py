"""`run`: the whole road in one command, from labelled examples to files that run elsewhere.

    OUT/search/      the search
    OUT/ensemble/    members, calibration, evaluation, report, exports

Run again with the same --out it goes on where it was broken off.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bayesarch.data import Examples
from bayesarch.errors import ConfigError, nearest
from bayesarch.workflows.config import SECTIONS as SEARCH_SECTIONS
from bayesarch.workflows.config import merge, overrides, read_config
from bayesarch.workflows.ensemble import EnsembleListener, ensemble
from bayesarch.workflows.ensemble_settings import SECTIONS as ENSEMBLE_SECTIONS
from bayesarch.workflows.export import FORMATS, export
from bayesarch.workflows.job import Arrays
from bayesarch.workflows.run import Run, open_run
from bayesarch.workflows.search import Listener, resume, search

__all__ = ["RunListener", "run"]


@dataclass
class RunListener:
    """Who is told how it goes."""

    search: Listener = field(default_factory=Listener)
    ensemble: EnsembleListener = field(default_factory=EnsembleListener)
    on_part: Callable[[str, Run], None] = lambda name, run: None


def run(
    data: str | os.PathLike[str] | Arrays | Examples | None = None,
    *,
    out: str | os.PathLike[str] = "runs/run",
    seed: int | None = None,
    device: str | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    set: Sequence[str] | Mapping[str, Any] | None = None,
    listener: RunListener | None = None,
) -> Run:
    """Search, train and calibrate an ensemble, evaluate it, export it; return the ensemble.

    Args:
        data: as `search` takes it.
        out: a folder for both runs; one that is there already is gone on with.
        seed: decides everything random; default 0.
        device: auto (default), cpu, cuda or cuda:N.
        config: a YAML file or a mapping of settings: the sections of a search (space, method, data, engine, limits) and
            those of an ensemble (ensemble, train).
        set: `section.field=value` pairs or a mapping of dotted names; the last word.
        listener: who is told how it goes.

    Raises:
        BayesarchError: of a kind that says what is wrong.
        Interrupted: when SIGINT or SIGTERM asked to stop; the same call goes on.
    """
    told, place = listener or RunListener(), Path(out)
    given = read_config(config) if isinstance(config, str | os.PathLike) else dict(config or {})
    given = merge(given, overrides(set))
    legal = {*SEARCH_SECTIONS, *ENSEMBLE_SECTIONS}
    unknown = [key for key in given if key not in legal]
    if unknown:
        raise ConfigError(f"{unknown[0]}: unknown section, {nearest(str(unknown[0]), legal)}")
    parts = {
        "search": {key: value for key, value in given.items() if key in SEARCH_SECTIONS},
        "ensemble": {key: value for key, value in given.items() if key in ("ensemble", "train")},
    }
    if (place / "search" / "status.json").is_file():
        found = resume(place / "search", data=data if not isinstance(data, str | os.PathLike) else None,
                       device=device, listener=told.search)  # fmt: skip
    else:
        found = search(
            data, seed=seed, device=device, out=place / "search", config=parts["search"], listener=told.search
        )
    told.on_part("search", found)
    if (place / "ensemble" / "status.json").is_file():
        made = resume(place / "ensemble", device=device, listener=told.ensemble)
    else:
        made = ensemble(
            found,
            data if isinstance(data, Examples) else None,
            seed=seed if seed is not None else found.config["seed"],
            device=device,
            out=place / "ensemble",
            config=parts["ensemble"],
            listener=told.ensemble,
        )
    told.on_part("ensemble", made)
    told.ensemble.on_stage("exporting")
    here = [name for name in FORMATS if name != "onnx" or importlib.util.find_spec("onnxscript") is not None]
    kept = made.folder.read_json("exports/exports.json")["files"] if made.folder.has("exports/exports.json") else []
    for name in here:
        if name not in {row["format"] for row in kept}:
            export(made, format=name)
    return open_run(made.path)
