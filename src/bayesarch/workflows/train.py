"""`train`: a found architecture as a plain network, from scratch or from the weights a search left, in a folder.

    runs/<name>/{config.yaml, data.json, environment.json, status.json, metrics.jsonl, summary.json,
                 architectures/trained.json, networks/trained.safetensors, checkpoints/last.safetensors, log.txt}

Examples of the weights and architecture splits train; the selection split is scored after every epoch; the test split
is read once, at the end.
"""

import contextlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import nn

from bayesarch.config import Config, check, raise_all
from bayesarch.data import DataConfig, Examples, Partition, Split, load, split, splits_on
from bayesarch.engine import (
    Interrupted,
    Observer,
    Together,
    TrainConfig,
    Trainer,
    check_training,
    resolve_device,
    working_threads,
)
from bayesarch.errors import BayesarchError, ConfigError, RunError, nearest
from bayesarch.functional import Streams
from bayesarch.nets import architecture_cost, build
from bayesarch.nets.macs import macs_by_parameter
from bayesarch.runs import RunFolder, free_path, now, write_atomically
from bayesarch.spaces import Architecture, Space
from bayesarch.spaces.architecture import is_notation
from bayesarch.workflows.config import checked_seed, merge, overrides, read_config
from bayesarch.workflows.environment import environment
from bayesarch.workflows.job import data_record
from bayesarch.workflows.run import Run, open_run
from bayesarch.workflows.signals import stop_on_signal

__all__ = ["TrainingListener", "continue_together", "continue_training", "train", "training_record"]

SECTIONS = ("seed", "device", "architecture", "inherit", "space", "data", "train")


@dataclass
class TrainingListener:
    """Who is told how a training goes."""

    on_start: Any = lambda trainer: None
    on_round: Any = lambda record: None


@dataclass(frozen=True)
class _Settings:
    """Everything a training depends on, checked."""

    seed: int
    device: str
    arch: Architecture
    inherit: str | None
    """A run folder whose inherited weights are the start; None: from scratch."""
    sizes: Config
    data: DataConfig
    train: TrainConfig

    def record(self) -> dict[str, Any]:
        record = {
            "seed": self.seed,
            "device": self.device,
            "architecture": json.dumps(self.arch.to_json(), sort_keys=True),
            "inherit": self.inherit,
            "space": {"name": self.arch.space.name, **self.sizes.model_dump(mode="json")},
            "data": self.data.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json"),
        }
        plain: dict[str, Any] = yaml.safe_load(yaml.safe_dump(record))
        return plain


def train(  # noqa: PLR0913 - the public face has one keyword per flag
    target: str | os.PathLike[str] | Architecture | Run,
    data: str | os.PathLike[str] | Examples | None = None,
    *,
    space: str | Space | None = None,
    inherit: bool = False,
    seed: int | None = None,
    device: str | None = None,
    out: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    set: Sequence[str] | Mapping[str, Any] | None = None,
    listener: TrainingListener | None = None,
) -> Run:
    """Train the plain network of an architecture and return its folder as a run.

    Args:
        target: an architecture, its notation (with `space`), a finished run or its folder, whose found architecture,
            sizes and data are then the defaults.
        data: as `search` takes it; default: the run's, or digits.
        space: the space of a notation; default nb201.
        inherit: start from the weights that the run's search left, instead of from scratch.
        seed: decides everything random; default 0.
        device: auto (default), cpu, cuda or cuda:N.
        out: the folder; default runs/<source>-<digest>-train-s<seed>, numbered if taken.
        limit: use only so many training examples.
        config: a YAML file (a recipe) or a mapping of settings: sections space, data, train.
        set: `section.field=value` pairs or a mapping of dotted names; the last word.
        listener: who is told how it goes.

    Raises:
        BayesarchError: of a kind that says what is wrong; nothing is written before everything is checked.
        Interrupted: when SIGINT or SIGTERM asked to stop; `resume` continues.
    """
    arch, base, run = _target(target, space)
    if inherit and run is None:
        raise ConfigError("--inherit takes the weights of a search: give a finished run, not an architecture")
    flags: dict[str, Any] = {"seed": seed, "device": device}
    flags["data"] = {
        key: value
        for key, value in {
            "source": None if data is None or isinstance(data, Examples) else str(data),
            "limit": limit,
        }.items()
        if value is not None
    }
    given = read_config(config) if isinstance(config, str | os.PathLike) else dict(config or {})
    said = merge(given, {k: v for k, v in flags.items() if v}, overrides(set))
    settings = _settle(merge(base, said), arch, run.path if run is not None and inherit else None)
    job = _Job(settings, data if isinstance(data, Examples) else None)
    folder = RunFolder.create(Path(out) if out is not None else _free_name(job.settings))
    folder.write_config(job.settings.record())
    folder.write_json("data.json", job.data_record())
    folder.write_json("environment.json", environment(job.device))
    return _go([(job, folder)], listener or TrainingListener(), fresh=True)[0]


def continue_training(
    run: Run, *, data: Examples | None = None, device: str | None = None, listener: TrainingListener | None = None
) -> Run:
    """Continue a broken training.

    Args:
        run: its folder.
        data: the examples, where it was started on arrays.
        device: another device than it was started on.
        listener: who is told how it goes.

    Raises:
        RunError: if the data are no longer the same.
    """
    return _go([(_ready(run, data, device), run.folder)], listener or TrainingListener(), fresh=False)[0]


def continue_together(
    runs: Sequence[Run], *, device: str | None = None, listener: TrainingListener | None = None
) -> list[Run]:
    """Continue, or start, trainings of one architecture and one recipe as one; each keeps its own folder.

    Args:
        runs: their folders.
        device: another device than they were started on.
        listener: who is told how the first of them goes.

    Raises:
        ConfigError: if their recipes differ, or draw random numbers inside the network.
        SpaceError: if their networks cannot be stacked.
        RunError: if the data are no longer the same.
    """
    work: list[tuple[_Job, RunFolder]] = []
    for run in runs:
        work.append((_ready(run, None, device, like=work[0][0] if work else None), run.folder))
    return _go(work, listener or TrainingListener(), fresh=False)


def _ready(run: Run, data: Examples | None, device: str | None, like: "_Job | None" = None) -> "_Job":
    """Return a broken training's job, after a look at whether its data are what they were."""
    record = merge(run.config, {} if device is None else {"device": device})
    job = _Job(_settle(record, run.architecture, record.get("inherit")), data, like)
    if run.folder.has("data.json") and run.data["fingerprint"] != job.data_record()["fingerprint"]:
        raise RunError(f"the data of {run.path} have changed since the training began; start a new one")
    run.folder.write_json("data.json", job.data_record())
    run.folder.write_json("environment.json", environment(job.device))
    return job


def training_record(
    arch: Architecture, *, seed: int, device: str, sizes: Config, data: DataConfig, config: TrainConfig
) -> dict[str, Any]:
    """Return config.yaml's record of a training from scratch, for a folder that `resume` starts."""
    return _Settings(seed, device, arch, None, sizes, data, config).record()


def _target(
    target: str | os.PathLike[str] | Architecture | Run, space: str | Space | None
) -> tuple[Architecture, dict[str, Any], Run | None]:
    """Return the architecture, settings that come with it, and the run it was found by."""
    if isinstance(target, Architecture):
        return target, {"space": {"name": target.space.name}}, None
    if isinstance(target, str) and is_notation(target):
        owner = space if space is not None else None if target.lstrip().startswith("{") else "nb201"
        arch = Architecture.parse(target, owner)
        return arch, {"space": {"name": arch.space.name}}, None
    if isinstance(target, str) and not Path(target).is_dir():
        raise RunError(f"{target} is neither a run folder nor an architecture")
    run = open_run(target, space=space if isinstance(space, Space) else None)
    if not run.is_search:
        raise ConfigError(f"{run.path} holds trained networks itself; give the search, or the architecture")
    data = {key: value for key, value in run.config["data"].items() if key != "bootstrap"}
    base = {"space": run.config["space"], "data": data}
    return run.architecture, base, run


def _settle(record: Mapping[str, Any], arch: Architecture, inherit: str | None) -> _Settings:
    """Return checked settings.

    Raises:
        ConfigError: listing every wrong field by dotted path.
    """
    faults = [f"{key}: unknown section, {nearest(str(key), SECTIONS)}" for key in record if key not in SECTIONS]
    seed = checked_seed(record, faults)
    sections = {key: dict(record.get(key) or {}) for key in ("space", "data", "train")}
    name = sections["space"].pop("name", arch.space.name)
    if name != arch.space.name:
        faults.append(f"space.name: the architecture is of {arch.space.name!r} (got {name!r})")
    sizes = check(arch.space.sizes, sections["space"], path="space", faults=faults)
    data = check(DataConfig, sections["data"], path="data", faults=faults)
    config = check(TrainConfig, sections["train"], path="train", faults=faults)
    raise_all(faults)
    assert sizes is not None
    assert data is not None
    assert config is not None
    return _Settings(seed, str(record.get("device", "auto")), arch, inherit, sizes, data, config)


class _Job:
    """A training made ready: settings, examples, splits on the device.

    Args:
        settings: checked settings.
        examples: the examples; None: loaded as the settings say.
        like: a job on the same data, whose copy of them is used.
    """

    def __init__(self, settings: _Settings, examples: Examples | None, like: "_Job | None" = None) -> None:
        self.settings, self.device = settings, resolve_device(settings.device)
        check_training(settings.train, self.device)
        self.examples: Examples
        self.partition: Partition
        self.splits: dict[str, Split]
        if like is not None and (like.settings.data, like.device) == (settings.data, self.device):
            self.examples, self.partition, self.splits = like.examples, like.partition, like.splits
            return
        self.examples = examples if examples is not None else load(settings.data)
        self.partition = split(self.examples, settings.data).for_training()
        self.splits = splits_on(
            self.examples, self.partition, ("weights", "selection", "test"), config=settings.data, device=self.device
        )

    def data_record(self) -> dict[str, Any]:
        """Return data.json's record."""
        return data_record(self.examples, self.partition, self.settings.data)

    def network(self, streams: Streams) -> nn.Module:
        """Return the network at its start, on the device."""
        settings = self.settings
        if settings.inherit is not None:
            net = open_run(settings.inherit, space=settings.arch.space).network()
        else:
            net = build(
                settings.arch,
                input_shape=self.examples.input_shape,
                classes=len(self.examples.classes),
                sizes=settings.sizes,
                generator=streams["init"],
            )
        return net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def macs(self) -> int:
        """Return the MACs of the network for one image."""
        net = self.network(Streams(self.settings.seed, self.device))
        return sum(macs_by_parameter(net, self.examples.input_shape).values())

    def trainer(self, folder: RunFolder, observer: Observer) -> Trainer:
        """Return the trainer at the very beginning."""
        streams = Streams(self.settings.seed, self.device)
        return Trainer(
            self.network(streams),
            classes=len(self.examples.classes),
            training=self.splits["weights"],
            selection=self.splits["selection"],
            config=self.settings.train,
            streams=streams,
            checkpoint=folder.path / "checkpoints" / "last.safetensors",
            observer=observer,
        )


def _go(work: Sequence[tuple[_Job, RunFolder]], listener: TrainingListener, *, fresh: bool) -> list[Run]:
    """Train from where the folders stand, several as one, and write what came out."""
    job = work[0][0]
    macs = len(work) * job.settings.train.batch_size * job.macs()
    with working_threads(macs, job.settings.train.threads):
        return _trained(work, listener, fresh=fresh)


def _trained(work: Sequence[tuple[_Job, RunFolder]], listener: TrainingListener, *, fresh: bool) -> list[Run]:
    stop = threading.Event()
    trainers = [
        _placed(job, folder, listener if i == 0 else TrainingListener(), stop, fresh)
        for i, (job, folder) in enumerate(work)
    ]
    listener.on_start(trainers[0])
    try:
        with stop_on_signal(stop):
            trainers[0].run() if len(trainers) == 1 else Together(trainers).run()
        for (job, folder), trainer in zip(work, trainers, strict=True):
            _finish(job, trainer, folder)
    except Interrupted:
        for (_, folder), trainer in zip(work, trainers, strict=True):
            folder.write_status(state="interrupted", stage="training", epoch=trainer.place.epoch)
            folder.log([f"{now()} interrupted in epoch {trainer.place.epoch + 1}; bayesarch resume {folder.path}"])
        raise
    except BayesarchError as error:
        for _, folder in work:
            with contextlib.suppress(RunError):
                folder.write_status(state="failed", stage="training", error=str(error))
                folder.log([f"{now()} failed: {error}"])
        raise
    return [Run(folder, job.settings.arch.space) for job, folder in work]


def _placed(job: _Job, folder: RunFolder, listener: TrainingListener, stop: threading.Event, fresh: bool) -> Trainer:
    """Return a folder's trainer at the place it had reached."""

    def on_round(record: dict[str, Any]) -> None:
        folder.append_metrics(record)
        folder.write_status(state="running", stage="training", epoch=record["epoch"], pid=os.getpid())
        listener.on_round(record)

    trainer = job.trainer(folder, Observer(on_round=on_round, should_stop=stop.is_set))
    if not fresh and trainer.checkpoint.exists():
        trainer.restore()
    folder.keep_metrics(trainer.place.epoch)
    folder.log([f"{now()} {'train' if fresh else 'resume'} at epoch {trainer.place.epoch}"])
    folder.write_status(state="running", stage="training", epoch=trainer.place.epoch, pid=os.getpid())
    return trainer


def _finish(job: _Job, trainer: Trainer, folder: RunFolder) -> None:
    """Write the trained network and what is to be said of it; the test split is read here."""
    settings, arch = job.settings, job.settings.arch
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trainer.net.state_dict().items()}
    write_atomically(folder.path / "networks" / "trained.safetensors", safetensors.torch.save(state))
    folder.write_json("architectures/trained.json", {**arch.to_json(), "string": str(arch), "digest": arch.digest})
    cost = architecture_cost(
        arch, sizes=settings.sizes, input_shape=job.examples.input_shape, classes=len(job.examples.classes)
    )
    selection, test = trainer.selection(), trainer.score_on(job.splits["test"])
    folder.write_json(
        "summary.json",
        {
            "architecture": str(arch),
            "digest": arch.digest,
            "space": arch.space.name,
            "params": cost.params,
            "macs": cost.macs,
            "epochs": settings.train.epochs,
            "inherited": settings.inherit is not None,
            "selection": {"accuracy": selection.accuracy, "loss": selection.loss, "n": selection.n},
            "test": {"accuracy": test.accuracy, "loss": test.loss, "n": test.n},
            "times": {"seconds": trainer.place.seconds},
        },
    )
    folder.write_status(state="finished", stage="done", epoch=trainer.place.epoch)
    folder.log([f"{now()} finished: {test.accuracy:.4f} on the test split"])


def _free_name(settings: _Settings) -> Path:
    """Return runs/<source>-<digest>-train-s<seed>, with a number behind it if that is taken."""
    stem = f"{Path(settings.data.source).stem}-{settings.arch.digest}-train-s{settings.seed}"
    return free_path(Path("runs") / stem)
