"""A compression under way: the network to be made smaller, the path of its rounds, the choice among them."""

import copy
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from bayesarch.config import raise_all
from bayesarch.data import Examples, split, splits_on
from bayesarch.engine import (
    Asked,
    Interrupted,
    Observer,
    PenalisedTrainer,
    Trainer,
    check_training,
    cut_of_round,
    pressure_of_round,
    resolve_device,
)
from bayesarch.errors import ConfigError, NumericalError, RunError
from bayesarch.functional import Streams, seeded
from bayesarch.nets import cut_units, held_inputs, pick_inputs, units_of
from bayesarch.nets.module import in_layout
from bayesarch.report import write_compression_report
from bayesarch.runs import RunFolder
from bayesarch.workflows.compress_settings import CompressLimits, CompressSettings
from bayesarch.workflows.compression_files import load_weights, read_state, write_state
from bayesarch.workflows.compression_scores import Judge, layer_table, nonzero
from bayesarch.workflows.latency import image_latency
from bayesarch.workflows.outcome import outcome
from bayesarch.workflows.run import Run, open_run
from bayesarch.workflows.signals import stop_on_signal
from bayesarch.workflows.smaller import named_network

__all__ = ["Compression", "CompressionListener"]

PATIENCE = 4
"""Rounds in a row below the accuracy wanted after which the path ends."""
TRIES = 4
"""Networks of the path that are fine-tuned at most, from the smallest one on, until one is good enough."""


@dataclass(frozen=True)
class _Place:
    """Where a path stands before a round: its number from 0, units, network, what masks have learned, next lambda."""

    number: int
    keep: Tensor
    net: nn.Module
    known: Tensor | None
    lam: float


@dataclass
class CompressionListener:
    """Who is told how it goes."""

    on_start: Callable[[str], None] = lambda path: None
    on_stage: Callable[[str], None] = lambda text: None
    on_round: Callable[[dict[str, Any]], None] = lambda record: None


class Compression:
    """A compression: what it starts from, and where it stands.

    Args:
        settings: checked settings.
        examples: the examples.
        module: the network, where it was given as one.

    Raises:
        ConfigError: if the network cannot be made, or no network can meet the limits.
    """

    def __init__(self, settings: CompressSettings, examples: Examples, module: nn.Module | None) -> None:
        self.settings, self.examples, self.device = settings, examples, resolve_device(settings.device)
        check_training(settings.train, self.device)
        self.partition = split(examples, settings.data).for_training()
        self.shape, self.classes = examples.input_shape, len(examples.classes)
        name = settings.compress.module
        self.trained = module is not None
        self.dense = copy.deepcopy(module) if module is not None else named_network(str(name), self.shape, self.classes)
        if settings.compress.weights is not None:
            load_weights(self.dense, settings.compress.weights)
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
        with outcome(folder, "compress", f"compress: {self.settings.compress.method}"):
            for where, why in self.units.whole.items():
                folder.log([f"left whole at {where or 'the network'}: {why}"])
            listener.on_start(str(folder.path))
            with stop_on_signal(self.stop):
                self._train_dense()
                path = self._walk()
                self._finish(path)
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
            trainer.held = held_inputs(trainer.net, self.units.after(keep), keep) + self._zeros(trainer.net)
        return trainer

    def _zeros(self, net: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """Return weights in which groups may have gone to zero, each with what holds them there: 1 where one stays."""
        if not self.settings.compress.also:
            return []
        return [(p, (p != 0).to(p.dtype)) for name, p in net.named_parameters() if name in self.units.macs]

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
            self._refuse_the_dead(trainer.selection().accuracy)
        self.dense = in_layout(self.dense.to(self.device), self.shape)
        if not path.exists():
            write_state(path, self.dense)
        self.dense_score = self._trainer(self.dense, "look", 0, epochs=1).selection()

    def _refuse_the_dead(self, accuracy: float) -> None:
        labels = torch.cat([batch.labels for batch in self.splits["selection"].in_order(512)])
        largest = float(labels.bincount().max() / len(labels))
        if accuracy <= largest:
            raise NumericalError(
                f"the network to be made smaller has learned nothing: accuracy {accuracy:.3f} on the selection split, "
                f"{largest:.3f} of which is one class; lower compress.dense_lr ({self.settings.compress.dense_lr:g}), "
                "give compress.dense_epochs more, or bring trained --weights"
            )

    def _walk(self) -> list[dict[str, Any]]:
        """Cut and train, round by round, until the limits are met or nothing good is left; return all rounds."""
        records = self.folder.read_metrics()
        self.folder.keep_metrics(len(records))
        place = self._before(records, len(records))
        while not self._over(records):
            place, record = self._round(place, self.settings.limits, f"round-{place.number}")
            where = self.folder.path / "rounds" / f"{place.number - 1:03d}.safetensors"
            write_state(where, place.net, place.keep, place.known)
            self.folder.append_metrics(record)
            self.listener.on_round(record)
            records.append(record)
            if self.stop.is_set():
                raise Interrupted
        return records

    def _before(self, records: Sequence[Mapping[str, Any]], number: int) -> _Place:
        """Return where the path stood before a round."""
        if number == 0:
            return _Place(0, self.units.present(), copy.deepcopy(self.dense), None, self.settings.compress.lam)
        return _Place(number, *self._at(number - 1), records[number - 1]["next_lam"])

    def _round(self, place: _Place, limits: CompressLimits, what: str) -> tuple[_Place, dict[str, Any]]:
        """Cut and train once, cut no more than the limits ask for; return where that leads, and what to say of it."""
        config, number, keep, net = self.settings.compress, place.number, place.keep, place.net
        units, began = self.units.after(keep), time.monotonic()
        stream = Streams(self.settings.seed, self.device)[f"round/{number}"]
        asked = Asked(self.splits["weights"], config, place.lam, stream, place.known, self._enough(keep, limits))
        cut = cut_of_round(net, units, self.free & keep, asked)
        _set_to_zero(net, cut.zeros)
        if cut.dead:
            keep = keep & cut.keep
            net = cut_units(net, units, keep)
        trainer = self._trainer(net, what, 1 + number, keep)
        asked = replace(asked, lam=cut.pays)
        trainer.pressure = pressure_of_round(trainer.net, self.units.after(keep), self.free & keep, asked)
        trainer.share = config.penalty_share
        net = self._run(trainer).net
        known = None if trainer.pressure is None else trainer.pressure.learned()
        score = trainer.selection()
        params, macs = self.units.cost(keep)
        record: dict[str, Any] = {
            "epoch": number + 1,
            "stage": "compress",
            "lam": cut.lam,
            "paid_lam": cut.pays,
            "next_lam": cut.lam * config.growth if cut.spent else cut.lam,
            "dead": cut.dead,
            "units": int((keep & self.free).sum()),
            "params": params,
            "macs": macs,
            "selection_accuracy": score.accuracy,
            "selection_loss": score.loss,
            "seconds": time.monotonic() - began,
        }
        if config.also:
            record["nonzero"] = sum(nonzero(net, units).values())
        if limits.max_latency_ms is not None:
            record["latency_ms"] = self._latency(net, keep)
        return _Place(number + 1, keep, net, known, record["next_lam"]), record

    def _enough(self, keep: Tensor, limits: CompressLimits) -> Callable[[Tensor], bool]:
        """Return how `Asked` is told that limits are kept: by counted cost, if that is all there are limits on."""

        def enough(gone: Tensor) -> bool:
            params, macs = self.units.cost(keep & ~gone)
            return limits.counted and limits.kept({"params": params, "macs": macs})

        return enough

    def _latency(self, net: nn.Module, keep: Tensor) -> float:
        final = pick_inputs(copy.deepcopy(net), self.units.after(keep), keep)
        return image_latency(final, self.shape)

    def _at(self, number: int) -> tuple[Tensor, nn.Module, Tensor | None]:
        """Return what a round left: its units, the network, trained in it, and what its masks have learned, if any."""
        state, keep, known = read_state(self.folder.path / "rounds" / f"{number:03d}.safetensors")
        net = cut_units(self.dense, self.units, keep)
        net.load_state_dict(state)
        return keep, net.to(self.device), known

    def _over(self, records: list[dict[str, Any]]) -> bool:
        """Return whether the path has come to its end."""
        if not records:
            return False
        if self.settings.sized:
            done = self.settings.limits.kept(records[-1])
        else:
            last = records[-PATIENCE:]
            done = len(last) == PATIENCE and not any(self._good(r["selection_accuracy"], 2.0) for r in last)
        nothing_left = records[-1]["units"] <= 1
        return done or nothing_left or len(records) >= self.settings.compress.rounds

    def _good(self, accuracy: float, slack: float = 1.0) -> bool:
        drop = self.settings.drop
        return drop is None or accuracy >= self.dense_score.accuracy - slack * drop

    def _finish(self, records: list[dict[str, Any]]) -> None:
        """Fine-tune the smallest networks of the path until one is good enough, and write what is to be said of it."""
        known = [r for r in records if self.settings.limits.kept(r)]
        hopeful = sorted((r for r in known if self._good(r["selection_accuracy"], 2.0)), key=lambda r: r["macs"])
        if self.settings.sized and self.settings.drop is None:
            hopeful = sorted(known, key=lambda r: -r["selection_accuracy"])[:1]
        for record in hopeful[:TRIES]:
            self.listener.on_stage(f"fine-tuning {record['params']:,} parameters")
            keep, net, _ = self._at(record["epoch"] - 1)
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
        left = nonzero(trainer.net, self.units) if self.settings.compress.also else None
        small = pick_inputs(trainer.net, self.units.after(keep), keep).eval()
        write_state(self.folder.path / "networks" / "small.safetensors", small, keep)
        sizes = [(self.folder.path / "networks" / f"{n}.safetensors").stat().st_size for n in ("dense", "small")]
        nets = {"dense": self.dense.eval(), "small": small}
        every = torch.ones(self.units.count, dtype=torch.bool)
        judge = self._judge()
        scored = {name: judge.score(name, net, every if name == "dense" else keep) for name, net in nets.items()}
        rows = [
            {**scored[name][0], "bytes": size, "latency_ms": image_latency(net, self.shape)}
            for (name, net), size in zip(nets.items(), sizes, strict=True)
        ]
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
                "difference": judge.difference(scored["small"][1], scored["dense"][1]),
                "layers": layer_table(self.units, keep, left),
                "also": list(self.settings.compress.also),
                "whole": dict(self.units.whole),
                "selection": {"dense": self.dense_score.accuracy, "small": accuracy},
                "n": judge.n,
                "test": {"accuracy": rows[1]["accuracy"]["value"], "n": judge.n},
            },
        )
        write_compression_report(self.folder)

    def _judge(self) -> Judge:
        return Judge(self.units, self.splits["test"], self.settings.seed)

    def front(self, bounds: Sequence[int], epochs: int) -> list[dict[str, Any]]:
        """Return the first network of the path under each bound, fine-tuned and scored; see `front`."""
        self._train_dense()
        judge, every = self._judge(), torch.ones(self.units.count, dtype=torch.bool)
        whole = judge.score("dense", self.dense.eval(), every)
        rows = [{**whole[0], "round": 0, "layers": layer_table(self.units, every)}]
        for bound in bounds:
            net, keep, epoch = self._first_under(bound)
            trainer = self._trainer(net, f"front-{bound}", 50_000 + epoch, keep, epochs=epochs)
            self._run(trainer)
            left = nonzero(trainer.net, self.units) if self.settings.compress.also else None
            small = pick_inputs(trainer.net, self.units.after(keep), keep).eval()
            row, p = judge.score(f"at most {bound}", small, keep)
            table, gap = layer_table(self.units, keep, left), judge.difference(p, whole[1])
            rows.append({**row, "round": epoch, "layers": table, "difference": gap})
        return rows

    def _first_under(self, bound: int) -> tuple[nn.Module, Tensor, int]:
        """Return where a path would have ended whose only limit is a bound on MACs: network, units, rounds."""
        records = self.folder.read_metrics()
        epoch = next((r["epoch"] for r in records if r["macs"] <= bound), None)
        if epoch is None:
            raise RunError(f"{self.folder.path}: no network of the path has at most {bound:,} MACs")
        before, limits = self._before(records, epoch - 1), CompressLimits(max_macs=bound)
        place, _ = self._round(before, limits, f"front-{bound}-round")
        return place.net, place.keep, epoch


def _reset(settings: CompressSettings, shape: tuple[int, int, int], classes: int, streams: Streams) -> nn.Module:
    """Return the named network, its weights drawn from the run's own stream."""
    with seeded(streams["init"]):
        return named_network(str(settings.compress.module), shape, classes)


@torch.no_grad()
def _set_to_zero(net: nn.Module, stays: Mapping[str, Tensor]) -> None:
    """Set weights to zero, in place: those that do not stay, by parameter name."""
    parameters = dict(net.named_parameters())
    for name, mask in stays.items():
        parameters[name].mul_(mask.to(parameters[name]))
