"""`compress`: a network made smaller in rounds of cutting and training, until a limit is met or accuracy would fall.

    OUT/config.yaml, data.json, environment.json, status.json, metrics.jsonl, log.txt
    OUT/networks/dense.safetensors   the network as it came, or as it was trained first
    OUT/rounds/000.safetensors ...   what every round left, and which units it has: the path
    OUT/networks/small.safetensors   the smaller network, fine-tuned
    OUT/summary.json, report.html    before and after: cost by layer, accuracy, loss, calibration, other images

Rounds and the choice among them look at the training and selection splits; the test split is read at the end.
"""

import contextlib
import copy
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml
from pydantic import Field
from torch import Tensor, nn

from bayesarch.config import Config, check, raise_all
from bayesarch.data import DataConfig, Examples, load, split, splits_on
from bayesarch.engine import (
    RULES,
    Interrupted,
    Observer,
    PenalisedTrainer,
    ShrinkConfig,
    TrainConfig,
    Trainer,
    cut_of_round,
    penalised,
    resolve_device,
)
from bayesarch.errors import BayesarchError, ConfigError, RunError, nearest
from bayesarch.functional import Streams, seeded
from bayesarch.functional import uncertainty as un
from bayesarch.nets import cut_units, held_inputs, latency_ms, pick_inputs, units_of
from bayesarch.nets.module import in_layout
from bayesarch.report import write_compression_report
from bayesarch.runs import RunFolder, write_atomically
from bayesarch.workflows.config import merge, overrides, read_config
from bayesarch.workflows.environment import environment
from bayesarch.workflows.job import data_record
from bayesarch.workflows.repeats import keep_examples
from bayesarch.workflows.run import Run, open_run
from bayesarch.workflows.signals import stop_on_signal
from bayesarch.workflows.smaller import named_network
from bayesarch.workflows.worth import paired, score_row, told_apart

__all__ = ["CompressionListener", "compress", "continue_compression", "front"]

SECTIONS = ("seed", "device", "compress", "limits", "data", "train")
RECIPE = {"batch_size": 128, "lr": 0.05, "weight_decay": 1e-4, "clip": 0.0}
"""Training between two cuts, unless it is said."""
LEAST_EPOCHS, LEAST_STEPS = 4, 300
"""Its length, unless it is said: so many epochs, or so many steps where the examples are few."""
PATIENCE = 4
"""Rounds in a row below the accuracy wanted after which the path ends."""
TRIES = 4
"""Networks of the path that are fine-tuned at most, from the smallest one on, until one is good enough."""


class CompressConfig(ShrinkConfig):
    """Which network, how it is made smaller, how it is trained before and after."""

    module: str | None = None
    """FILE.py:NAME, or a network known here: lenet-300-100, lenet-500-300, lenet-5, resnet18, vgg16, mobilenet; null: a
    module given in Python."""
    weights: str | None = None
    """Its weights, a .safetensors or .pt file; null: it is trained first."""
    dense_epochs: int = Field(default=20, ge=1)
    """Epochs of that training."""
    dense_lr: float = Field(default=0.1, gt=0)
    """First learning rate of that training."""
    finetune_epochs: int = Field(default=10, ge=1)
    """Epochs that the chosen network is trained without a penalty at the end."""


class CompressLimits(Config):
    """What the result has to keep."""

    max_params: int | None = Field(default=None, ge=1)
    """Most parameters."""
    max_macs: int | None = Field(default=None, ge=1)
    """Most MACs for one image."""
    max_latency_ms: float | None = Field(default=None, gt=0)
    """Most milliseconds for one image, measured here."""
    max_drop: float | None = Field(default=None, ge=0, lt=1)
    """Most accuracy on the selection split that may be lost; without any limit 0.01."""


@dataclass(frozen=True)
class _Settings:
    """Everything a compression depends on, checked."""

    seed: int
    device: str
    compress: CompressConfig
    limits: CompressLimits
    data: DataConfig
    train: TrainConfig

    def record(self) -> dict[str, Any]:
        record = {"seed": self.seed, "device": self.device}
        for name in ("compress", "limits", "data", "train"):
            record[name] = getattr(self, name).model_dump(mode="json")
        plain: dict[str, Any] = yaml.safe_load(yaml.safe_dump(record))
        return plain

    @property
    def drop(self) -> float | None:
        """Return how much accuracy may be lost; None: as much as the other limits ask for."""
        limits = self.limits
        if limits.max_drop is None and not any(limits.model_dump().values()):
            return 0.01
        return limits.max_drop

    @property
    def sized(self) -> bool:
        """Return whether there is a limit on cost."""
        limits = self.limits
        return any(v is not None for v in (limits.max_params, limits.max_macs, limits.max_latency_ms))


@dataclass
class CompressionListener:
    """Who is told how it goes."""

    on_start: Callable[[str], None] = lambda path: None
    on_stage: Callable[[str], None] = lambda text: None
    on_round: Callable[[dict[str, Any]], None] = lambda record: None


def compress(  # noqa: PLR0913 - the public face has one keyword per flag
    module: str | os.PathLike[str] | nn.Module,
    data: str | os.PathLike[str] | Examples | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    method: str | None = None,
    max_params: int | None = None,
    max_macs: int | None = None,
    max_latency_ms: float | None = None,
    max_drop: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    out: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    set: Sequence[str] | Mapping[str, Any] | None = None,
    listener: CompressionListener | None = None,
) -> Run:
    """Make a network smaller; its units leave for good, no masks stay. Return the folder as a run, with `network()`.

    Args:
        module: a trained module (its copy is cut), FILE.py:NAME, or the name of a network known here.
        data: as `search` takes it; default digits. Images are scaled as the data settings say; a network trained on
            images scaled otherwise has to be trained first (`weights=None`).
        weights: the network's weights; None: a module as it is, any other network is trained first.
        method: evidence (default), or a baseline: magnitude, random, group-lasso.
        max_params: most parameters of the result.
        max_macs: most MACs of it for one image.
        max_latency_ms: most milliseconds of it for one image, here.
        max_drop: most accuracy on the selection split that it may lose; without any limit 0.01.
        seed: decides everything random; default 0.
        device: auto (default), cpu, cuda or cuda:N.
        out: the folder; default runs/<source>-compress-s<seed>, numbered if taken.
        limit: use only so many training examples.
        config: a YAML file or a mapping of settings: sections compress, limits, data, train.
        set: `section.field=value` pairs or a mapping of dotted names; the last word.
        listener: who is told how it goes.

    Raises:
        ConfigError: listing every wrong field, or a limit that no network can meet; nothing is written.
        RunError: if the path ends before a limit is met; says how far it came.
        Interrupted: when SIGINT or SIGTERM asked to stop; `resume` continues.
    """
    own = module if isinstance(module, nn.Module) else None
    wanted = {"module": None if own is not None else str(module), "weights": weights, "method": method}
    bounds = {"max_params": max_params, "max_macs": max_macs, "max_latency_ms": max_latency_ms, "max_drop": max_drop}
    source = None if data is None or isinstance(data, Examples) else str(data)
    flags: dict[str, Any] = {
        "compress": {key: str(value) for key, value in wanted.items() if value is not None},
        "limits": {key: value for key, value in bounds.items() if value is not None},
        "data": {key: value for key, value in {"source": source, "limit": limit}.items() if value is not None},
    }
    flags |= {key: value for key, value in {"seed": seed, "device": device}.items() if value is not None}
    given = read_config(config) if isinstance(config, str | os.PathLike) else dict(config or {})
    said = merge({"train": RECIPE}, given, flags, overrides(set))
    settings = _settle(said)
    examples = data if isinstance(data, Examples) else load(settings.data)
    if "epochs" not in (said["train"] or {}):
        n = split(examples, settings.data).for_training().sizes["weights"]
        epochs = max(LEAST_EPOCHS, -(-LEAST_STEPS // max(n // settings.train.batch_size, 1)))
        settings = _settle(merge(said, {"train": {"epochs": epochs}}))
    work = _Work(settings, examples, own)
    folder = RunFolder.create(Path(out) if out is not None else _free_name(settings))
    record = settings.record()
    if isinstance(data, Examples):
        record = merge(record, {"data": keep_examples(folder, examples)})
    folder.write_config(record)
    folder.write_json("data.json", data_record(examples, work.partition, settings.data))
    folder.write_json("environment.json", environment(work.device))
    return work.go(folder, listener or CompressionListener())


def continue_compression(
    run: Run,
    *,
    module: nn.Module | None = None,
    device: str | None = None,
    listener: CompressionListener | None = None,
) -> Run:
    """Continue a broken compression from the last round that was finished.

    Args:
        run: its folder.
        module: the module, where it was started on one.
        device: another device than it was started on.
        listener: who is told how it goes.

    Raises:
        RunError: if the data are no longer the same, or the module is missing.
    """
    settings = _settle(merge(run.config, {} if device is None else {"device": device}))
    if settings.compress.module is None and module is None:
        raise RunError(f"{run.path} is of a module given in Python: pass it to `resume` as module=")
    examples = load(settings.data)
    work = _Work(settings, examples, module)
    if run.data["fingerprint"] != data_record(examples, work.partition, settings.data)["fingerprint"]:
        raise RunError(f"the data of {run.path} have changed since it began; start a new one")
    return work.go(run.folder, listener or CompressionListener())


def front(path: str | os.PathLike[str], max_macs: Sequence[int], *, epochs: int | None = None) -> list[dict[str, Any]]:
    """Score several networks of a finished path: how much does each size cost? Writes front.json.

    For each bound the first network of the path under it is fine-tuned and scored on the test split; nothing is chosen
    by that.

    Args:
        path: a finished compression, of a network that has a name or a file.
        max_macs: bounds on MACs for one image.
        epochs: of fine-tuning; None: as in the run.

    Returns:
        A row for the whole network and one for each bound, with layers and the difference to the whole network.

    Raises:
        RunError: if the path does not go so far, or the run is of a module given in Python.
    """
    run = open_run(path)
    settings = _settle(run.config)
    if settings.compress.module is None:
        raise RunError(f"{run.path} is of a module given in Python; give its file as --module FILE.py:NAME")
    work = _Work(settings, load(settings.data), None)
    work.folder, work.listener = run.folder, CompressionListener()
    rows = work.front(max_macs, epochs or settings.compress.finetune_epochs)
    run.folder.write_json("front.json", {"rows": rows})
    return rows


def _settle(record: Mapping[str, Any]) -> _Settings:
    """Return checked settings.

    Raises:
        ConfigError: listing every wrong field by dotted path.
    """
    faults = [f"{key}: unknown section, {nearest(str(key), SECTIONS)}" for key in record if key not in SECTIONS]
    seed = record.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        faults.append(f"seed: must be a whole number >= 0 (got {seed!r})")
    config = check(CompressConfig, record.get("compress") or {}, path="compress", faults=faults)
    limits = check(CompressLimits, record.get("limits") or {}, path="limits", faults=faults)
    data = check(DataConfig, record.get("data") or {}, path="data", faults=faults)
    train = check(TrainConfig, record.get("train") or {}, path="train", faults=faults)
    if config is not None and config.method not in RULES:
        faults.append(f"compress.method: no rule {config.method!r}, {nearest(config.method, RULES)}")
    if train is not None and (train.auxiliary > 0 or train.drop_path > 0 or train.ema is not None):
        faults.append("train: auxiliary heads, dropped paths and moving averages are for `train`; leave them off here")
    raise_all(faults)
    assert config is not None
    assert limits is not None
    assert data is not None
    assert train is not None
    return _Settings(int(seed), str(record.get("device", "auto")), config, limits, data, train)


def _load_weights(net: nn.Module, path: str) -> None:
    """Fill a network.

    Raises:
        ConfigError: if there is no such file, or it is not this network's.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"compress.weights: no file {path}")
    try:
        state: Any = (
            safetensors.torch.load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
        net.load_state_dict(state.get("state_dict", state))
    except Exception as error:  # whatever another program wrote
        raise ConfigError(f"compress.weights: {path} does not fill this network: {error}") from None


class _Work:
    """A compression: what it starts from, and where it stands.

    Args:
        settings: checked settings.
        examples: the examples.
        module: the network, where it was given as one.

    Raises:
        ConfigError: if the network cannot be made, or no network can meet the limits.
    """

    def __init__(self, settings: _Settings, examples: Examples, module: nn.Module | None) -> None:
        self.settings, self.examples, self.device = settings, examples, resolve_device(settings.device)
        self.partition = split(examples, settings.data).for_training()
        self.shape, self.classes = examples.input_shape, len(examples.classes)
        name = settings.compress.module
        self.trained = module is not None
        self.dense = copy.deepcopy(module) if module is not None else named_network(str(name), self.shape, self.classes)
        if settings.compress.weights is not None:
            _load_weights(self.dense, settings.compress.weights)
            self.trained = True
        self.units = units_of(self.dense, self.shape)
        self.free = self.units.free.clone()
        if not settings.compress.inputs:
            self.free[self.units.inputs] = False
        self._refuse_the_impossible()
        self.streams = Streams(settings.seed, self.device)
        self.splits = splits_on(
            examples, self.partition, ("weights", "selection", "test"), config=settings.data, device=self.device
        )
        self.stop = threading.Event()

    def _refuse_the_impossible(self) -> None:
        if not bool(self.free.any()):
            reasons = "; ".join(f"{where or 'the network'}: {why}" for where, why in self.units.whole.items())
            raise ConfigError(f"nothing of this network can be cut: {reasons or 'it has no hidden units'}")
        params, macs = self.units.cost(~self.free)
        limits = self.settings.limits
        faults = [
            f"limits.{key}: the smallest network that can be made of this one has {least:,} (got {bound:,})"
            for key, least, bound in (("max_params", params, limits.max_params), ("max_macs", macs, limits.max_macs))
            if bound is not None and bound < least
        ]
        raise_all(faults)

    def go(self, folder: RunFolder, listener: CompressionListener) -> Run:
        """Go on from where the folder stands, and write what came out."""
        self.folder, self.listener = folder, listener
        folder.write_status(state="running", stage="compress", pid=os.getpid())
        folder.log([f"{_now()} compress: {self.settings.compress.method}"])
        for where, why in self.units.whole.items():
            folder.log([f"left whole at {where or 'the network'}: {why}"])
        listener.on_start(str(folder.path))
        try:
            with stop_on_signal(self.stop):
                self._train_dense()
                path = self._walk()
                self._finish(path)
        except Interrupted:
            folder.write_status(state="interrupted", stage="compress")
            folder.log([f"{_now()} interrupted; bayesarch resume {folder.path}"])
            raise
        except BayesarchError as error:
            with contextlib.suppress(RunError):
                folder.write_status(state="failed", stage="compress", error=str(error))
                folder.log([f"{_now()} failed: {error}"])
            raise
        folder.write_status(state="finished", stage="done")
        folder.log([f"{_now()} finished"])
        return open_run(folder.path)

    def _trainer(
        self, net: nn.Module, what: str, number: int, keep: Tensor | None = None, **changes: Any
    ) -> PenalisedTrainer:
        """Return a training of a network; those of other numbers see other batches."""
        config = self.settings.train.model_copy(update=changes)
        trainer = PenalisedTrainer(
            in_layout(net.to(self.device), self.shape),
            classes=self.classes,
            training=self.splits["weights"],
            selection=self.splits["selection"],
            config=config,
            streams=Streams(100_000 * self.settings.seed + number, self.device),
            checkpoint=self.folder.path / "checkpoints" / f"{what}.safetensors",
            observer=Observer(should_stop=self.stop.is_set),
        )
        if keep is not None:
            trainer.held = held_inputs(trainer.net, self.units.after(keep), keep)
        return trainer

    def _run(self, trainer: Trainer) -> Trainer:
        """Train to the end, from the checkpoint where there is one, which then goes."""
        if trainer.checkpoint.exists():
            trainer.restore()
        trainer.run()
        trainer.checkpoint.unlink(missing_ok=True)
        return trainer

    def _train_dense(self) -> None:
        """Bring the network that is to be made smaller: trained, or as it came."""
        path = self.folder.path / "networks" / "dense.safetensors"
        config = self.settings.compress
        if path.exists():
            self.dense.load_state_dict(safetensors.torch.load_file(path))
        elif not self.trained:
            self.listener.on_stage("training the network to be made smaller")
            fresh = _reset(self.settings, self.shape, self.classes, self.streams)
            trainer = self._trainer(fresh, "dense", 0, epochs=config.dense_epochs, lr=config.dense_lr)
            self.dense = self._run(trainer).net
        self.dense = in_layout(self.dense.to(self.device), self.shape)
        if not path.exists():
            _write_state(path, self.dense)
        self.dense_score = self._trainer(self.dense, "look", 0, epochs=1).selection()

    def _walk(self) -> list[dict[str, Any]]:
        """Cut and train, round by round, until the limits are met or nothing good is left; return all rounds."""
        config, records = self.settings.compress, self.folder.read_metrics()
        self.folder.keep_metrics(len(records))
        keep, net, lam = self.units.present(), self.dense, config.lam
        if records:
            keep, net = self._at(records[-1]["epoch"] - 1)
            lam = records[-1]["next_lam"]
        net = copy.deepcopy(net)
        while not self._over(records):
            number = len(records)
            units, began = self.units.after(keep), time.monotonic()
            stream = Streams(self.settings.seed, self.device)[f"round/{number}"]
            cut = cut_of_round(net, units, self.free & keep, self.splits["weights"], config, lam, stream)
            if cut.dead:
                keep = keep & cut.keep
                net = cut_units(net, units, keep)
            trainer = self._trainer(net, f"round-{number}", 1 + number, keep)
            trainer.relevance = penalised(
                net, self.units.after(keep), self.free & keep, self.splits["weights"], config, lam, stream
            )
            trainer.share = config.penalty_share
            net = self._run(trainer).net
            score = trainer.selection()
            params, macs = self.units.cost(keep)
            record: dict[str, Any] = {
                "epoch": number + 1,
                "stage": "compress",
                "lam": lam,
                "next_lam": lam * config.growth if cut.spent else lam,
                "dead": cut.dead,
                "units": int((keep & self.free).sum()),
                "params": params,
                "macs": macs,
                "selection_accuracy": score.accuracy,
                "selection_loss": score.loss,
                "seconds": time.monotonic() - began,
            }
            if self.settings.limits.max_latency_ms is not None:
                record["latency_ms"] = self._latency(net, keep)
            _write_state(self.folder.path / "rounds" / f"{number:03d}.safetensors", net, keep)
            self.folder.append_metrics(record)
            self.listener.on_round(record)
            records.append(record)
            lam = record["next_lam"]
            if self.stop.is_set():
                raise Interrupted
        return records

    def _latency(self, net: nn.Module, keep: Tensor) -> float:
        final = pick_inputs(copy.deepcopy(net), self.units.after(keep), keep)
        return latency_ms(final, self.shape)

    def _at(self, number: int) -> tuple[Tensor, nn.Module]:
        """Return what a round left: its units, and the network, trained in it."""
        state = safetensors.torch.load_file(self.folder.path / "rounds" / f"{number:03d}.safetensors")
        keep = state.pop("keep").bool()
        net = cut_units(self.dense, self.units, keep)
        net.load_state_dict({name.removeprefix("net/"): tensor for name, tensor in state.items()})
        return keep, net.to(self.device)

    def _over(self, records: list[dict[str, Any]]) -> bool:
        """Return whether the path has come to its end."""
        if not records:
            return False
        if self.settings.sized:
            done = self._small_enough(records[-1])
        else:
            last = records[-PATIENCE:]
            done = len(last) == PATIENCE and not any(self._good(r["selection_accuracy"], 2.0) for r in last)
        nothing_left = records[-1]["units"] <= 1
        return done or nothing_left or len(records) >= self.settings.compress.rounds

    def _small_enough(self, record: Mapping[str, Any]) -> bool:
        limits = self.settings.limits
        bounds = {"params": limits.max_params, "macs": limits.max_macs, "latency_ms": limits.max_latency_ms}
        return all(bound is None or record[key] <= bound for key, bound in bounds.items())

    def _good(self, accuracy: float, slack: float = 1.0) -> bool:
        drop = self.settings.drop
        return drop is None or accuracy >= self.dense_score.accuracy - slack * drop

    def _finish(self, records: list[dict[str, Any]]) -> None:
        """Fine-tune the smallest networks of the path until one is good enough, and write what is to be said of it."""
        known = [r for r in records if self._small_enough(r)]
        hopeful = sorted((r for r in known if self._good(r["selection_accuracy"], 2.0)), key=lambda r: r["macs"])
        if self.settings.sized and self.settings.drop is None:
            hopeful = sorted(known, key=lambda r: -r["selection_accuracy"])[:1]
        for record in hopeful[:TRIES]:
            self.listener.on_stage(f"fine-tuning {record['params']:,} parameters")
            keep, net = self._at(record["epoch"] - 1)
            epoch, epochs = record["epoch"], self.settings.compress.finetune_epochs
            trainer = self._trainer(net, f"finetune-{epoch}", 50_000 + epoch, keep, epochs=epochs)
            self._run(trainer)
            if self._good(trainer.selection().accuracy):
                self._conclude(record, keep, trainer)
                return
        raise RunError(self._why_not(records, known))

    def _why_not(self, records: list[dict[str, Any]], known: list[dict[str, Any]]) -> str:
        """Return what to tell when no network of the path keeps what was asked for."""
        if not known:
            least = min(records, key=lambda r: r["macs"])
            return (
                f"after {len(records)} rounds the network has {least['params']:,} parameters and {least['macs']:,} "
                "MACs, above the limit; allow more rounds (--set compress.rounds=200) or a larger limit"
            )
        best = max(known, key=lambda r: r["selection_accuracy"])
        return (
            f"no network of the path keeps accuracy {self.dense_score.accuracy:.4f} within {self.settings.drop:g}; the "
            f"best has {best['selection_accuracy']:.4f} at {best['params']:,} parameters; try a smaller first "
            "compress.lam, smaller compress.at_most, more train.epochs or a larger --max-drop"
        )

    def _conclude(self, record: Mapping[str, Any], keep: Tensor, trainer: Trainer) -> None:
        """Write the network and the summary; the test split is read here."""
        self.listener.on_stage("evaluating")
        accuracy = trainer.selection().accuracy
        small = pick_inputs(trainer.net, self.units.after(keep), keep).eval()
        _write_state(self.folder.path / "networks" / "small.safetensors", small, keep)
        sizes = [(self.folder.path / "networks" / f"{n}.safetensors").stat().st_size for n in ("dense", "small")]
        nets = {"dense": self.dense.eval(), "small": small}
        every = torch.ones(self.units.count, dtype=torch.bool)
        scored = {name: self._scored(name, net, every if name == "dense" else keep) for name, net in nets.items()}
        rows = [
            {**scored[name][0], "bytes": size, "latency_ms": latency_ms(net, self.shape)}
            for (name, net), size in zip(nets.items(), sizes, strict=True)
        ]
        y, seed = self._labels(), self.settings.seed
        self.folder.write_json(
            "summary.json",
            {
                "kind": "compression",
                "method": self.settings.compress.method,
                "round": record["epoch"],
                "rounds": len(self.folder.read_metrics()),
                "lam": record["lam"],
                "params": rows[1]["params"],
                "macs": rows[1]["macs"],
                "rows": rows,
                "difference": paired(scored["small"][1], scored["dense"][1], y, seed),
                "layers": self._layers(keep),
                "whole": dict(self.units.whole),
                "selection": {"dense": self.dense_score.accuracy, "small": accuracy},
                "n": len(y),
                "test": {"accuracy": rows[1]["accuracy"]["value"], "n": len(y)},
            },
        )
        write_compression_report(self.folder)

    def _scored(self, name: str, net: nn.Module, keep: Tensor) -> tuple[dict[str, Any], np.ndarray]:
        """Return what a network costs and is worth on the test split, and its probabilities there."""
        inside, outside = (un.softmax(z) for z in self._logits(net))
        params, macs = self.units.cost(keep)
        row = score_row(name, inside, self._labels(), self.settings.seed)
        row |= {"params": params, "macs": macs, "auroc": told_apart(inside, outside, self.settings.seed)}
        return row, inside

    def front(self, bounds: Sequence[int], epochs: int) -> list[dict[str, Any]]:
        """Return the first network of the path under each bound, fine-tuned and scored; see `front`."""
        self._train_dense()
        whole = self._scored("dense", self.dense.eval(), torch.ones(self.units.count, dtype=torch.bool))
        rows = [{**whole[0], "round": 0, "layers": self._layers(torch.ones(self.units.count, dtype=torch.bool))}]
        for bound in bounds:
            record = next((r for r in self.folder.read_metrics() if r["macs"] <= bound), None)
            if record is None:
                raise RunError(f"{self.folder.path}: no network of the path has at most {bound:,} MACs")
            keep, net = self._at(record["epoch"] - 1)
            trainer = self._trainer(net, f"front-{record['epoch']}", 50_000 + record["epoch"], keep, epochs=epochs)
            small = pick_inputs(self._run(trainer).net, self.units.after(keep), keep).eval()
            row, p = self._scored(f"at most {bound}", small, keep)
            gap = paired(p, whole[1], self._labels(), self.settings.seed)
            rows.append({**row, "round": record["epoch"], "layers": self._layers(keep), "difference": gap})
        return rows

    def _logits(self, net: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        """Return logits of the test images, and of the same with their pixels shuffled, shape (n, K) each."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        net.eval()
        with torch.no_grad():
            for batch in self.splits["test"].in_order(512):
                images = batch.images
                flat = images.flatten(2)
                order = torch.randperm(flat.shape[2], generator=generator).to(flat.device)
                for place, x in zip(found, (images, flat[:, :, order].view_as(images)), strict=True):
                    place.append(net(x).float().cpu())
        inside, outside = (torch.cat(part).double().numpy() for part in found)
        return inside, outside

    def _labels(self) -> np.ndarray:
        return torch.cat([batch.labels for batch in self.splits["test"].in_order(512)]).cpu().numpy()

    def _layers(self, keep: Tensor) -> list[dict[str, Any]]:
        """Return what each layer had and has, inputs counted as they are read."""
        ones = torch.ones(self.units.count, dtype=torch.bool)
        table = []
        for name in self.units.macs:
            entry: dict[str, Any] = {"layer": name.rpartition(".")[0]}
            for label, mask in (("before", ones), ("after", self.units.standing(keep))):
                shape = list(self.units.shapes[name])
                for axis in (a for a in self.units.axes if a.name == name):
                    shape[axis.dim] = int(mask[axis.units].sum())
                share = float(np.prod(shape) / np.prod(self.units.shapes[name]))
                entry[label] = {"shape": shape, "macs": round(self.units.macs[name] * share)}
            table.append(entry)
        return table


def _reset(settings: _Settings, shape: tuple[int, int, int], classes: int, streams: Streams) -> nn.Module:
    """Return the named network, its weights drawn from the run's own stream."""
    with seeded(streams["init"]):
        return named_network(str(settings.compress.module), shape, classes)


def _write_state(path: Path, net: nn.Module, keep: Tensor | None = None) -> None:
    """Write a network's tensors, and which units it has, whole or not at all."""
    prefix = "" if keep is None else "net/"
    state = {f"{prefix}{name}": tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    if keep is not None:
        state["keep"] = keep.to(torch.uint8)
    write_atomically(path, safetensors.torch.save(state))


def _free_name(settings: _Settings) -> Path:
    """Return runs/<source>-compress-s<seed>, with a number behind it if that is taken."""
    stem = f"{Path(settings.data.source).stem}-compress-s{settings.seed}"
    candidate, number = Path("runs") / stem, 1
    while candidate.exists():
        number += 1
        candidate = Path("runs") / f"{stem}-{number}"
    return candidate


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
