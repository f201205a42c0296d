"""One loop for every method: search to a decision, a few closing epochs, then what the method measures at the end.

    for each round (one epoch, unless the method says otherwise):
        for each step:  method moves beliefs and leaves weight gradients; engine clips and steps the weights
        method's boundary: threshold tests, pruning; engine reconciles network and optimiser
        record, checkpoint
    method concludes what the cap left open; closing epochs; method examines

A killed search resumes bit for bit on the CPU: a checkpoint holds weights, momentum, beliefs, every stream, each
split's permutation and the place in it, running sums and the number of threads.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from bayesarch.data import Feeder, Split
from bayesarch.engine.allowance import Allowance
from bayesarch.engine.checkpoint import load_checkpoint, pack, save_checkpoint, unpack
from bayesarch.engine.compiling import take_way
from bayesarch.engine.device import autocast
from bayesarch.engine.joint import World
from bayesarch.engine.memory import SCORED, economise
from bayesarch.engine.method import Clock, Method, found_by, partial_of, passes_at_the_end
from bayesarch.engine.place import EngineConfig, Interrupted, Observer, Place
from bayesarch.engine.replay import steps_of
from bayesarch.engine.schedule import scheduled_lr
from bayesarch.engine.score import Score, recalibrate, score
from bayesarch.engine.weights import Weights
from bayesarch.errors import CheckpointError, ConfigError, NumericalError
from bayesarch.functional import Streams
from bayesarch.nets import Supernet

__all__ = ["Engine"]

CHECK_EVERY = 10
"""Steps between looks at the losses, so that a GPU is not made to wait at every step."""


class Engine:
    """One search: a method, its network and data, and the place it has reached.

    Args:
        method: how beliefs move.
        net: the supernet, already on the device.
        state: beliefs to start from.
        data: splits that the method declares, and `selection`.
        config: how weights are fitted.
        streams: the run's random streams.
        checkpoint: file that the place is saved to.
        observer: who is told.
        world: the processes that work on this search; None: this one.

    Raises:
        ConfigError: if several processes are to compute cells twice or take parts.
    """

    def __init__(  # noqa: PLR0913 - a search has this many parts
        self,
        *,
        method: Method[Any],
        net: Supernet,
        state: Any,
        data: Mapping[str, Split],
        config: EngineConfig,
        streams: Streams,
        checkpoint: Path,
        observer: Observer | None = None,
        world: World | None = None,
    ) -> None:
        self.method, self.net, self.state, self.data = method, net, state, data
        self.config, self.streams, self.checkpoint = config, streams, checkpoint
        self.observer, self.world = observer or Observer(), world or World()
        self.device = streams.device
        self.place = Place()
        if partial_of(state) != net.partial:
            net.resize(partial_of(state), generator=streams["init/resize"])
        net.prune(state.live)
        if self.world.size > 1 and (config.recompute or config.parts > 1):
            raise ConfigError(
                "engine.recompute and engine.parts are for one process; several share the batch already: leave them off"
            )
        self.world.share(net)
        economise(net, recompute=config.recompute, parts=config.parts)
        take_way(net, config, self.device, self.world.size)
        self.weights = Weights(
            net,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
            clip=config.clip,
        )
        self.steps = steps_of(method, net, self.weights, config, streams)
        self.feeders = {
            name: Feeder(
                data[name],
                config.batch_size,
                order=streams[f"data/{name}"],
                augment=streams[f"augment/{name}"],
            )
            for name in method.splits
        }
        self.steps_per_epoch = self.feeders[method.splits[0]].steps_per_pass
        self.round_steps = method.round_steps(self.steps_per_epoch)
        self.allowance = Allowance(config.max_minutes)
        self._saved_at = self._ticked = time.monotonic()

    def run(self) -> Self:
        """Go on from the current place to the end.

        Raises:
            Interrupted: when asked to stop; the place is saved.
            NumericalError: when a loss is no longer finite; the last checkpoint is from before.
        """
        place, config = self.place, self.config
        self._ticked = time.monotonic()
        if place.stage == "search":
            while not (place.over or self.method.finished(self.state)):
                self._round()
            place.cut = not (self._capped() or self.method.finished(self.state))
            place.closing_lr = self._lr()
            self.state = self.method.conclude(self.state)
            if self.net.partial != partial_of(self.state):
                place.closing_lr = config.lr  # channels that were copied have to part again
            self._reconcile()
            place.stage, place.rounds, place.searched = "closing", 0, place.steps
            self._divide()
        if place.stage == "closing":
            while self._stage_steps() < config.closing_epochs * self.steps_per_epoch and not self.allowance.late(place):
                self._round()
            if config.recalibrate:
                recalibrate(self.net, self._gates(), self.data["weights"], batch_size=config.batch_size)
            self._tick()
            place.stage, place.rounds = "examine", 0
            self.save()
        if place.stage == "examine":
            self.observer.on_step(place)
            if not (place.cut or self.allowance.late(place)):
                with autocast(self.device, config.precision):
                    self.state = self.method.examine(
                        self.state, self.net, self.data, streams=self.streams, clock=self._clock()
                    )
                self._tick()
            place.stage = "done"
            self.save()
        return self

    def _round(self) -> None:
        """Finish the current round: its remaining steps, the method's boundary, record and checkpoint."""
        place, started = self.place, time.monotonic()
        self.net.train()
        self._divide()
        while place.step < self.round_steps and not (place.step and self.allowance.late(place)):
            self._step()
            if place.step % CHECK_EVERY == 0:
                self._check()
            self.observer.on_step(place)
            if self.world.told(self.observer.should_stop()):
                self._check()
                self.save()
                raise Interrupted
            if time.monotonic() - self._saved_at > 60 * self.config.checkpoint_minutes:
                self._check()
                self.save()
        self._check()
        lr, done = self._lr(), self._stage_steps()
        place.over = place.stage == "search" and (self._capped() or self.allowance.late(place))
        with autocast(self.device, self.config.precision):
            self.state, info = self.method.boundary(
                self.state, self.net, self.data, streams=self.streams, clock=replace(self._clock(), keep=self._keep)
            )
        changed = self._reconcile()
        if changed and self.config.recalibrate:
            recalibrate(self.net, self._gates(), self.data["weights"], batch_size=self.config.batch_size)
        self._account()
        self._check_same()
        means = {name: float(value) / place.step for name, value in place.sums.items()}
        place.rounds, place.step, place.sums = place.rounds + 1, 0, {}
        selection = self.selection(limit=self.config.score_batches)
        record = {
            "stage": place.stage,
            "round": place.rounds,
            "epoch": round(done / self.steps_per_epoch, 3),
            "steps": place.steps,
            "lr": lr,
            **means,
            "selection_loss": selection.loss,
            "selection_accuracy": selection.accuracy,
            "live_options": int(self.state.live.sum()),
            "best": str(found_by(self.method, self.method.conclude(self.state))),
            "images": place.images,
            "forward_macs": place.macs,
            **info,
            "seconds": time.monotonic() - started,
        }
        self._tick()
        place.records += 1
        self.observer.on_round(record)
        self.save()

    def _keep(self, state: Any) -> None:
        """Save part of a boundary's work when it is time to, and stop there if asked.

        Raises:
            Interrupted: when asked to stop; the place is saved.
        """
        self.state, stop = state, self.world.told(self.observer.should_stop())
        self._tick()
        if stop or time.monotonic() - self._saved_at > 60 * self.config.checkpoint_minutes:
            over, self.place.over = self.place.over, False  # the round is not finished and will be come back to
            self.save()
            self.place.over = over
        if stop:
            raise Interrupted

    def _step(self) -> None:
        place = self.place
        batches = {name: feeder.next() for name, feeder in self.feeders.items()}
        self.state, info = self.steps.take(self.state, batches, self._clock())
        self._reconcile()
        for name, value in info.items():
            value = torch.as_tensor(value).detach().to(torch.float64)
            place.sums[name] = place.sums[name] + value if name in place.sums else value
        place.step += 1
        place.steps += 1
        self._tick()
        self._divide()

    def _reconcile(self) -> bool:
        """Bring network and optimiser in line with the state; return whether anything was removed or resized."""
        changed = False
        if not torch.equal(self.net.live, self.state.live):
            self.net.prune(self.state.live)
            self.weights.reconcile()
            changed = True
        partial = partial_of(self.state)
        if partial != self.net.partial:
            before = self.weights.state()
            self.weights.grow(before, self.net.resize(partial, generator=self.streams["init/resize"]))
            changed = True
        return changed

    def _account(self) -> None:
        """Move the network's count of work into the place."""
        self.place.images += self.net.images_seen
        self.place.macs += self.net.macs_spent
        self.net.images_seen = self.net.macs_spent = 0

    def _tick(self) -> None:
        """Add the time since the last tick to the place, by the first process's clock."""
        now = time.monotonic()
        self.place.seconds += self.world.told(now - self._ticked)
        self._ticked = now

    def _check_same(self) -> None:
        """Make sure that all processes hold the same beliefs and weights; one round apart they can only be equal."""
        if self.world.size > 1:
            weights = torch.stack([p.detach().double().sum() for p in self.net.parameters()])
            held = {**pack(self.state)[0], "weights": weights}
            self.world.check_same(f"{self.place.stage} round {self.place.rounds + 1}", held)

    def _capped(self) -> bool:
        return self._stage_steps() >= self.config.epochs * self.steps_per_epoch

    def _divide(self) -> None:
        """Set time aside for what is to follow; a step takes about three times as long as a pass forward."""
        images = passes_at_the_end(self.method, self.state) * len(self.data["architecture"])
        self.allowance.divide(
            self.place,
            steps=self._stage_steps(),
            closing=self.config.closing_epochs * self.steps_per_epoch,
            ending=images / (3 * self.config.batch_size),
        )

    def _now(self) -> Place:
        if not math.isinf(self.allowance.seconds):  # without a limit processes need not agree on the time
            self._tick()
        return self.place

    def _check(self) -> None:
        """Stop where a running sum is no longer finite.

        Raises:
            NumericalError: naming it, and what to try.
        """
        for name, total in self.place.sums.items():
            if not math.isfinite(float(total)):
                raise NumericalError(
                    f"{name} is not finite:  {self.place.stage} round {self.place.rounds + 1}, step {self.place.step}; "
                    f"the last good checkpoint is {self.checkpoint}. Try a lower --set engine.lr (now "
                    f"{self.config.lr:g}) or --set engine.precision=fp32"
                )

    def _lr(self) -> float:
        return scheduled_lr(
            self.config,
            self.place,
            done=self._stage_steps(),
            steps_per_epoch=self.steps_per_epoch,
            allowed=self.allowance.seconds,
        )

    def _stage_steps(self) -> int:
        """Steps finished in this stage."""
        return self.place.rounds * self.round_steps + self.place.step

    def _clock(self) -> Clock:
        lr = self.steps.rate(self._lr())
        return Clock(
            epoch=self._stage_steps() // self.steps_per_epoch,
            step=self.place.steps,
            epochs=self.config.epochs,
            steps_per_epoch=self.steps_per_epoch,
            weight_lr=lr,
            preview=lambda gradients: self.weights.preview(gradients, lr),
            last=self.place.over,
            gone=lambda: self.allowance.gone(self._now()),
            trained=lambda: self.allowance.trained(self._now()),
        )

    def _gates(self) -> Tensor:
        return self.method.gates(self.state)

    def selection(self, limit: int | None = None) -> Score:
        """Return the score of the expected network, with inherited weights, on the selection split."""
        gates = self._gates()
        self._account()
        self.net.eval()
        with autocast(self.device, self.config.precision):
            result = score(
                lambda x: self.net(x, gates),
                self.data["selection"],
                batch_size=SCORED * self.config.batch_size,
                limit=limit,
            )
        self.net.train()
        self.net.images_seen = self.net.macs_spent = 0  # a report is no work of the method
        return result

    def save(self) -> None:
        """Write the place to the checkpoint file, whole or not at all; the first process does."""
        self._account()
        if not self.world.leads:
            return
        beliefs, values = pack(self.state)
        tensors: dict[str, Tensor] = {f"beliefs/{k}": v for k, v in beliefs.items()}
        tensors |= {f"net/{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"momentum/{k}": v for k, v in self.weights.state().items()}
        tensors |= {f"stream/{k}": v for k, v in self.streams.state().items()}
        tensors |= {f"sum/{k}": v for k, v in self.place.sums.items()}
        for name, feeder in self.feeders.items():
            tensors |= {f"feeder/{name}/{k}": v for k, v in feeder.state().items()}
        place = {k: v for k, v in vars(self.place).items() if k != "sums"}
        header = {
            "place": place,
            "beliefs": values,
            "threads": torch.get_num_threads(),
            "method": self.method.name,
        }
        save_checkpoint(self.checkpoint, tensors, header)
        self._saved_at = time.monotonic()

    def restore(self) -> Self:
        """Go back to the place in the checkpoint file, its number of threads included.

        Raises:
            CheckpointError: if it is missing, damaged, or of another method or network.
        """
        tensors, header = load_checkpoint(self.checkpoint)
        if header["method"] != self.method.name:
            raise CheckpointError(f"{self.checkpoint} belongs to method {header['method']!r}, not {self.method.name!r}")

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        torch.set_num_threads(header["threads"])
        self.state = unpack(self.method.state_type, under("beliefs/"), header["beliefs"], device=self.device)
        self._reconcile()
        try:
            self.net.load_state_dict(under("net/"))
        except RuntimeError as error:
            raise CheckpointError(f"{self.checkpoint} does not fit this network: {error}") from None
        self.weights.restore(under("momentum/"))
        self.steps.forget()
        self.streams.restore(under("stream/"))
        for name, feeder in self.feeders.items():
            feeder.restore(under(f"feeder/{name}/"))
        self.place = Place(**header["place"], sums={k: v.to(self.device) for k, v in under("sum/").items()})
        return self
