"""`ensemble`: candidates from a run, trained from scratch side by side, the best of them mixed and calibrated.

    OUT/config.yaml, data.json, environment.json, status.json, log.txt
    OUT/restarts/, OUT/shared/     what a source needs before there are candidates
    OUT/members/000/ ...           every candidate, a training of its own that can be looked at and resumed
    OUT/reference/                 a plain ResNet that costs as many MACs as all members together
    OUT/ensemble.json              who was chosen, weights, temperatures
    OUT/evaluation.json, summary.json, report.html

The selection split is cut in two halves, class by class: one chooses members and weights, the other calibrates. The
test split is read when all that is decided.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from bayesarch.data import Examples, Split, load, split, splits_on
from bayesarch.engine import check_training, resolve_device
from bayesarch.ensembles import (
    SELECTIONS,
    SOURCES,
    Task,
    Trained,
    fit_mixture,
    stacked_weights,
)
from bayesarch.errors import ConfigError, RunError
from bayesarch.functional.uncertainty import softmax
from bayesarch.nets import architecture_cost, tidy_sizes, widest
from bayesarch.runs import RunFolder, free_path, now, write_atomically
from bayesarch.spaces import NB201, Architecture
from bayesarch.workflows.config import merge, overrides, read_config
from bayesarch.workflows.ensemble_base import BaseSearch, refuse_no_search
from bayesarch.workflows.ensemble_settings import RECIPE, EnsembleSettings, settle_ensemble
from bayesarch.workflows.environment import environment
from bayesarch.workflows.evaluate import evaluate
from bayesarch.workflows.halves import halves
from bayesarch.workflows.job import data_record
from bayesarch.workflows.outcome import outcome
from bayesarch.workflows.processes import at_once, run_folders, what_failed
from bayesarch.workflows.repeats import keep_examples
from bayesarch.workflows.run import Run, open_run
from bayesarch.workflows.signals import stop_on_signal
from bayesarch.workflows.stacks import groups, stacking_pays
from bayesarch.workflows.train import training_record

__all__ = ["EnsembleListener", "continue_ensemble", "ensemble"]

RESNET = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
"""NAS-Bench-201's ResNet cell, what a plain network of equal cost is made of."""


@dataclass
class EnsembleListener:
    """Who is told how it goes."""

    on_start: Callable[[str], None] = lambda path: None
    on_stage: Callable[[str], None] = lambda text: None
    on_members: Callable[[int, int, int], None] = lambda done, running, of: None


def ensemble(  # noqa: PLR0913 - the public face has one keyword per flag
    run: str | os.PathLike[str] | Run,
    data: Examples | None = None,
    *,
    members: int | None = None,
    candidates: str | None = None,
    pool: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    out: str | os.PathLike[str] | None = None,
    parallel: int | None = None,
    ray: str | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    set: Sequence[str] | Mapping[str, Any] | None = None,
    listener: EnsembleListener | None = None,
) -> Run:
    """Train an ensemble of a finished search and return its folder as a run, with `predict_proba`.

    Args:
        run: the search or its folder.
        data: the examples, where the search was given arrays.
        members: how many (default 3).
        candidates: where they come from (default bpnas); see `bayesarch.ensembles.SOURCES`.
        pool: candidates trained by sources that choose among many (default 12).
        seed: decides everything random; default 0.
        device: auto (default), cpu, cuda or cuda:N.
        out: the folder; default <run>-<source>, numbered if taken.
        parallel: members trained at a time; default: one per core, or one on a GPU.
        ray: train them on a Ray cluster at this address (`local`: one on this machine), whose machines see this folder.
        config: a YAML file or a mapping of settings: sections ensemble, data, train.
        set: `section.field=value` pairs or a mapping of dotted names; the last word.
        listener: who is told how it goes.

    Raises:
        BayesarchError: of a kind that says what is wrong; nothing is written before everything is checked.
        Interrupted: when SIGINT or SIGTERM asked to stop; `resume` continues.
    """
    base = open_run(run)
    if not base.is_search:
        raise ConfigError(f"{base.path} is no search; give the search that candidates come from")
    base.summary  # noqa: B018 - a search that is not finished says so here
    wanted = {"run": base.path, "members": members, "candidates": candidates, "pool": pool}
    flags: dict[str, Any] = {"ensemble": {key: value for key, value in wanted.items() if value is not None}}
    flags |= {key: value for key, value in {"seed": seed, "device": device}.items() if value is not None}
    given = read_config(config) if isinstance(config, str | os.PathLike) else dict(config or {})
    settings = settle_ensemble(merge(_of(base), given, flags, overrides(set)))
    if SOURCES[settings.ensemble.candidates].search:
        refuse_no_search(base, settings.ensemble.candidates)
    on = resolve_device(settings.device)
    check_training(settings.train, on)
    examples = data if data is not None else load(settings.data)
    partition = split(examples, settings.data).for_training()
    folder = RunFolder.create(Path(out) if out is not None else _free_name(base, settings))
    record = settings.record()
    if data is not None:
        record = merge(record, {"data": keep_examples(folder, examples)})
    folder.write_config(record)
    folder.write_json("data.json", data_record(examples, partition, settings.data))
    folder.write_json("environment.json", environment(on))
    return _go(
        folder, settle_ensemble(record), examples, parallel=parallel, ray=ray, listener=listener or EnsembleListener()
    )


def continue_ensemble(
    run: Run, *, parallel: int | None = None, device: str | None = None, listener: EnsembleListener | None = None
) -> Run:
    """Continue a broken ensemble: members that are trained stay as they are."""
    settings = settle_ensemble(merge(run.config, {} if device is None else {"device": device}))
    examples = load(settings.data)
    return _go(run.folder, settings, examples, parallel=parallel, listener=listener or EnsembleListener())


def _of(base: Run) -> dict[str, Any]:
    """Return the settings that an ensemble takes from its search."""
    data = {key: value for key, value in base.config["data"].items() if key != "bootstrap"}
    return {"space": base.config["space"], "data": data, "train": RECIPE}


def _go(
    folder: RunFolder,
    settings: EnsembleSettings,
    examples: Examples,
    *,
    parallel: int | None,
    listener: EnsembleListener,
    ray: str | None = None,
) -> Run:
    """Train what is missing, choose, calibrate, evaluate; from where the folder stands."""
    stop, started = threading.Event(), time.time()
    with outcome(folder, "ensemble", f"ensemble: {settings.ensemble.candidates}"):
        listener.on_start(str(folder.path))
        with stop_on_signal(stop):
            work = _Work(folder, settings, examples, parallel, listener, stop, ray)
            work.train()
            work.choose(seconds=time.time() - started)
        listener.on_stage("evaluating")
        evaluate(folder.path)
    return open_run(folder.path)


class _Work:
    """One ensemble under way."""

    def __init__(
        self,
        folder: RunFolder,
        settings: EnsembleSettings,
        examples: Examples,
        parallel: int | None,
        listener: EnsembleListener,
        stop: threading.Event,
        ray: str | None,
    ) -> None:
        self.folder, self.settings, self.examples = folder, settings, examples
        self.listener, self.stop, self.ray = listener, stop, ray
        self.device, self.parallel = resolve_device(settings.device), parallel
        self.base = open_run(settings.ensemble.run)
        self.partition = split(examples, settings.data).for_training()
        self.halves = halves(self.partition.take(examples, "selection")[1])
        self.source = SOURCES[settings.ensemble.candidates]
        self.search = BaseSearch(
            self.base, folder, settings, examples, self.partition, self.halves[0], self.device,
            on_stage=listener.on_stage, should_stop=stop.is_set,
        )  # fmt: skip
        self.split: Split = splits_on(
            examples, self.partition, ("selection",), config=settings.data, device=self.device
        )["selection"]
        self.labels = self.partition.take(examples, "selection")[1]
        self.sizes = tidy_sizes(self.base.architecture.space, {k: v for k, v in settings.space.items() if k != "name"})

    def train(self) -> None:
        """Train candidates until the source asks for no more.

        Raises:
            Interrupted: when stopped.
            RunError: if no candidate could be trained.
        """
        config, task, trained = self.settings.ensemble, self._task(), list[Trained]()
        total = config.pool if self.source.many else config.members
        extra = [self._reference()] if config.reference and self._has_reference() else []
        while asked := self.source.ask(task, trained):
            paths = [self._member(len(trained) + i, arch) for i, arch in enumerate(asked)]
            before = len(trained)
            failed = run_folders(
                [*paths, *extra],
                parallel=at_once(self.parallel, self.device.type, len(paths) + len(extra)),
                device=None,
                stop=self.stop,
                on_change=lambda done, running, before=before: self.listener.on_members(  # type: ignore[misc]
                    min(before + done, total), running, total
                ),
                keep_going=True,
                ray=self.ray,
                stacks=self._stacks(dict(zip(paths, asked, strict=True))),
            )
            for path in failed:
                self.folder.log([f"{path.name} failed: {what_failed(path)}"])
            trained += [
                Trained(arch, self._selection(path) if path not in failed else self._blank())
                for arch, path in zip(asked, paths, strict=True)
            ]
            extra = []
        if not any(self._is_trained(i) for i in range(len(trained))):
            raise RunError(f"no member could be trained: {what_failed(self._path(0))}")

    def _stacks(self, asked: dict[Path, Architecture]) -> list[list[Path]]:
        """Return which of the candidates train as one, and say so in the log."""
        mode = self.settings.ensemble.stack
        if mode == "never" or (mode == "auto" and self.ray is not None):
            return []
        parallel = at_once(self.parallel, self.device.type, len(asked))
        chosen = [
            paths
            for paths in groups(asked)
            if mode == "always"
            or stacking_pays(
                asked[paths[0]], sizes=self.sizes, input_shape=self.examples.input_shape,
                classes=len(self.examples.classes), config=self.settings.train, device=self.device, parallel=parallel,
            )
        ]  # fmt: skip
        for paths in chosen:
            self.folder.log([f"{now()} {len(paths)} members of one architecture train as one"])
        return chosen

    def choose(self, *, seconds: float) -> None:
        """Choose members among what was trained, mix and calibrate them, and write who they are."""
        config = self.settings.ensemble
        paths = sorted(path for path in (self.folder.path / "members").iterdir() if path.is_dir())
        usable = [i for i in range(len(paths)) if self._is_trained(i)]
        logits = np.stack([self._logits(i) for i in usable])
        first, second = self.halves
        pool = softmax(logits)
        name = config.selection or self.source.selection
        chosen = SELECTIONS[name](pool[:, first], self.labels[first], config.members)
        picked = logits[list(chosen.members)]
        weights = list(chosen.weights)
        if config.weights == "stacked":
            weights = stacked_weights(softmax(picked[:, first]), self.labels[first])
        mixture = fit_mixture(picked[:, second], self.labels[second], weights, config.scaling)
        members = [usable[i] for i in chosen.members]
        runs = [open_run(self._path(i)) for i in members]
        distinct = len({run.architecture.canonical for run in runs})
        record = {
            "members": [f"members/{i:03d}" for i in members],
            "architectures": [run.architecture.to_json() for run in runs],
            "mixture": mixture.to_json(),
            "selection": name,
            "candidates": len(paths),
            "failed": [f"members/{i:03d}" for i in range(len(paths)) if i not in usable],
            "distinct": distinct,
            "halves": {"selection": len(first), "calibration": len(second)},
            "budget": self._budget(len(paths)),
            "seconds": seconds,
        }
        self.folder.write_json("ensemble.json", record)

    def _budget(self, candidates: int) -> dict[str, Any]:
        """Return what all trainings cost together: epochs, and MACs of one image through all candidates."""
        costs = [open_run(self._path(i)).summary["macs"] for i in range(candidates) if self._is_trained(i)]
        return {
            "candidates": candidates,
            "epochs": candidates * self.settings.train.epochs,
            "epoch_macs": sum(costs) * self.settings.train.epochs * self.partition.sizes["weights"],
        }

    def _path(self, index: int) -> Path:
        return self.folder.path / "members" / f"{index:03d}"

    def _is_trained(self, index: int) -> bool:
        return open_run(self._path(index)).status.get("state") == "finished"

    def _member(self, index: int, arch: Architecture) -> Path:
        """Return a candidate's folder, written where it is not there yet."""
        path = self._path(index)
        if not path.exists():
            record = training_record(
                arch,
                seed=1000 * self.settings.seed + index,
                device=self.settings.device,
                sizes=self.sizes,
                data=self.settings.data,
                config=self.settings.train,
            )
            self._write_folder(path, record)
        return path

    def _write_folder(self, path: Path, record: dict[str, Any]) -> None:
        """Write a folder that `resume` starts, whole or not at all: a kill leaves no half-written one behind."""
        part = path.with_name(f".{path.name}.part")
        if part.exists():
            shutil.rmtree(part)
        fresh = RunFolder.create(part)
        fresh.write_config(record)
        fresh.write_json("data.json", data_record(self.examples, self.partition, self.settings.data))
        part.rename(path)

    def _has_reference(self) -> bool:
        return min(self.examples.input_shape[1:]) > 1

    def _reference(self) -> Path:
        """Return the folder of a plain ResNet with as many MACs as the members have together, or nearly."""
        path = self.folder.path / "reference"
        if not path.exists():
            shape, classes = self.examples.input_shape, len(self.examples.classes)
            found = architecture_cost(self.base.architecture, sizes=self.sizes, input_shape=shape, classes=classes)
            target, arch = self.settings.ensemble.members * found.macs, Architecture.parse(RESNET, NB201)
            cells = int(self.settings.space.get("cells", 1)) if self.settings.space["name"] == "nb201" else 1

            def macs(channels: int) -> int:
                sizes = NB201.sizes(channels=channels, cells=cells)  # type: ignore[call-arg]
                return architecture_cost(arch, sizes=sizes, input_shape=shape, classes=classes).macs

            channels = widest(macs, target)
            record = training_record(
                arch,
                seed=1000 * self.settings.seed,
                device=self.settings.device,
                sizes=NB201.sizes(channels=channels, cells=cells),  # type: ignore[call-arg]
                data=self.settings.data,
                config=self.settings.train,
            )
            self._write_folder(path, record)
        return path

    def _logits(self, index: int) -> np.ndarray:
        """Return a candidate's logits on the selection split, kept beside its weights."""
        path = self._path(index) / "selection.safetensors"
        if not path.exists():
            logits, _ = open_run(self._path(index)).predictor().to(self.device).logits_on(self.split)
            write_atomically(path, safetensors.torch.save({"logits": torch.from_numpy(logits[0])}))
        made: np.ndarray = safetensors.torch.load_file(path)["logits"].numpy()
        return made

    def _selection(self, path: Path) -> np.ndarray:
        return softmax(self._logits(int(path.name)))[self.halves[0]]

    def _blank(self) -> np.ndarray:
        """Return what a candidate that failed says: nothing."""
        k = len(self.examples.classes)
        return np.full((len(self.halves[0]), k), 1 / k)

    def _task(self) -> Task:
        config, base = self.settings.ensemble, self.base
        return Task(
            found=self.search.start,
            posterior=base.posterior,
            size=config.members,
            pool=config.pool,
            seed=self.settings.seed,
            labels=self.labels[self.halves[0]],
            reopened=self.search.reopened,
            shared=self.search.shared,
        )


def _free_name(base: Run, settings: EnsembleSettings) -> Path:
    """Return <run>-<source>, with a number behind it if that is taken."""
    return free_path(f"{base.path}-{settings.ensemble.candidates}")
