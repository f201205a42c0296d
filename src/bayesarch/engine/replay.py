"""Steps as one program of a card: captured once (a CUDA graph) and replayed for as long as the host would say the same.

A step of a supernet is thousands of kernels of some microseconds each, and the host cannot start them as fast as a card
runs them. A replay starts all of them at once. It also freezes what the host decided on the way, so that a step is
captured only where the one before it saw the same: what it asked of the clock, what of its state lies on the host, the
shapes of its batches, and no draw from a stream of the host. Where the next step would see anything else it runs as
ever. In a search without a limit on its time that is the first two steps of an epoch, and those after a pruning.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from bayesarch.data import Batch
from bayesarch.engine.device import autocast
from bayesarch.engine.method import Clock, Info, Method
from bayesarch.engine.place import EngineConfig
from bayesarch.engine.weights import Weights
from bayesarch.errors import DeviceError
from bayesarch.functional import Streams
from bayesarch.nets import Supernet

__all__ = ["ReplayedSteps", "Replays", "Steps", "steps_of"]

Function = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class Replays:
    """Runs a function of tensors on a card again and again, as a replay where it may.

    Args:
        streams: what it draws from.
    """

    def __init__(self, streams: Streams) -> None:
        self.streams, self.device = streams, streams.device
        self.rate = torch.zeros((), device=self.device)
        """Where a learning rate lies for what is replayed."""
        self._key: Any = None
        self._program: _Program | None = None
        self._side = torch.cuda.Stream(self.device)  # captures may not be on the stream that a process begins with

    def run(self, key: Any, inputs: Sequence[Tensor], function: Function) -> tuple[list[Tensor], bool]:
        """Return what `function` makes of `inputs`, and whether the host did not run it.

        Args:
            key: all that the function sees of the host, to be compared; None: not known.
            inputs: tensors on the card, of equal shapes wherever keys are equal.
            function: tensors of the card to tensors of the card; what it changes beside lies there and stays there.

        Raises:
            DeviceError: if it cannot be captured, because it makes the host wait for the card.
        """
        if key is None or key != self._key:
            self._program = None  # its memory goes first
            before = self.streams.host_state()
            with self._aside():
                made = list(function(inputs))
            self._key = key if self.streams.host_state() == before else None
            return made, False
        known = self._program is not None
        if self._program is None:
            self._program = self._capture(inputs, function)
        return self._program.replay(inputs), known

    def forget(self) -> None:
        """Run the next step as ever: something that a program holds was put in another place."""
        self._key = self._program = None

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Run a block on the stream that captures are on: autograd remembers which one weights were first used on."""
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            yield
        torch.cuda.current_stream(self.device).wait_stream(self._side)

    def _capture(self, inputs: Sequence[Tensor], function: Function) -> "_Program":
        graph, given = torch.cuda.CUDAGraph(), [tensor.detach().clone() for tensor in inputs]
        for stream in self.streams.on_device():
            graph.register_generator_state(stream)
        try:
            with torch.cuda.graph(graph, stream=self._side):
                made = list(function(given))
        except RuntimeError as error:
            raise DeviceError(
                f"a step cannot be captured ({error}); set engine.graphs and train.graphs to false"
            ) from error
        return _Program(graph, given, made)


class _Program:
    """What was captured, with the tensors that it reads and writes."""

    def __init__(self, graph: Any, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        self.graph, self.given, self.made = graph, given, made

    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return copies of what is made of `inputs`: the next replay writes where this one did."""
        for mine, value in zip(self.given, inputs, strict=True):
            mine.copy_(value)
        self.graph.replay()
        return [tensor.detach().clone() for tensor in self.made]


class Steps:
    """The steps of one search: the method moves beliefs and leaves gradients, the weights follow them.

    Args:
        method: how beliefs move.
        net: the supernet.
        weights: its optimiser.
        config: how weights are fitted.
        streams: the run's random streams.
    """

    def __init__(
        self, method: Method[Any], net: Supernet, weights: Weights, config: EngineConfig, streams: Streams
    ) -> None:
        self.method, self.net, self.weights, self.config, self.streams = method, net, weights, config, streams

    def rate(self, lr: float) -> float | Tensor:
        """Return a learning rate as a step takes it."""
        return lr

    def take(self, state: Any, batches: Mapping[str, Batch], clock: Clock) -> tuple[Any, Info]:
        """Return the beliefs after a step, and what is to be recorded of it."""
        self.weights.zero()
        with autocast(self.streams.device, self.config.precision):
            state, info = self.method.step(state, self.net, batches, streams=self.streams, clock=clock)
        norm = self.weights.step(clock.weight_lr)
        return state, dict(info) if norm is None else {**info, "gradient_norm": norm}

    def forget(self) -> None:
        """Hear that something was put in another place."""


class ReplayedSteps(Steps):
    """The same as one program of the card, wherever two steps in a row see the same of the host."""

    def __init__(
        self, method: Method[Any], net: Supernet, weights: Weights, config: EngineConfig, streams: Streams
    ) -> None:
        super().__init__(method, net, weights, config, streams)
        self.replays = Replays(streams)
        self._asked: tuple[str, ...] | None = None
        """What the last step that the host ran asked of the clock."""
        self._last: tuple[Any, Info] = None, {}
        """What it returned."""
        self._work = 0, 0
        """What it added to the network's count of work."""

    def rate(self, lr: float) -> Tensor:
        """Return a learning rate as a tensor of the card, always the same one."""
        return self.replays.rate.fill_(lr)

    def forget(self) -> None:
        """Have the next step run as ever."""
        self.replays.forget()

    def take(self, state: Any, batches: Mapping[str, Batch], clock: Clock) -> tuple[Any, Info]:
        """Return the beliefs after a step, and what is to be recorded of it."""
        flat = _flat(state, batches)
        names = [name for name, value in flat.items() if self._on_card(value)]
        host = self._host(flat)
        before = self.net.images_seen, self.net.macs_spent

        def step(given: Sequence[Tensor]) -> list[Tensor]:
            watched = _Watched(clock)
            parts = _whole(state, batches, {**flat, **dict(zip(names, given, strict=True))})
            self._last = super(ReplayedSteps, self).take(*parts, cast(Clock, watched))
            self._asked = tuple(watched.asked)
            self._work = self.net.images_seen - before[0], self.net.macs_spent - before[1]
            after, info = self._last
            return [*(getattr(after, name) for owner, name in names if not owner), *self._measured(info).values()]

        asked = None if self._asked is None else [(name, _answer(clock, name)) for name in self._asked]
        shapes = [(name, flat[name].shape, flat[name].dtype) for name in names]
        key = None if asked is None else (shapes, host, asked)
        made, replayed = self.replays.run(key, [flat[name] for name in names], step)
        if replayed:
            self.net.images_seen, self.net.macs_spent = before[0] + self._work[0], before[1] + self._work[1]
        after, info = self._last  # its parts on the host follow from those of the key
        fields = [name for owner, name in names if not owner]
        state = dataclasses.replace(after, **dict(zip(fields, made, strict=False)))
        return state, {**info, **dict(zip(self._measured(info), made[len(fields) :], strict=True))}

    def _on_card(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.device == self.replays.rate.device

    def _measured(self, info: Info) -> dict[str, Tensor]:
        return {name: value for name, value in info.items() if self._on_card(value)}

    def _host(self, flat: Mapping[tuple[str, str], Any]) -> list[tuple[tuple[str, str], Any]]:
        """Return what lies on the host, comparable."""
        kept = [(name, value) for name, value in flat.items() if not self._on_card(value)]
        return [(name, value.tolist() if isinstance(value, Tensor) else value) for name, value in kept]


CALLS = ("reached", "gone", "trained")
"""Questions to a clock that are calls."""


class _Watched:
    """A clock that remembers what it was asked; what is on the card, or is no answer, is not remembered."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._clock, name)
        if name not in CALLS and (callable(value) or isinstance(value, Tensor)):
            return value
        if name not in self.asked:
            self.asked.append(name)
        return value


def _answer(clock: Clock, name: str) -> Any:
    """Return what a clock says."""
    value = getattr(clock, name)
    return value() if name in CALLS else value


def _flat(state: Any, batches: Mapping[str, Batch]) -> dict[tuple[str, str], Any]:
    """Return all parts of a state and of batches by (batch, or nothing; field)."""
    flat = {("", field.name): getattr(state, field.name) for field in dataclasses.fields(state)}
    return flat | {(name, part): value for name, batch in batches.items() for part, value in batch._asdict().items()}


def _whole(
    state: Any, batches: Mapping[str, Batch], flat: Mapping[tuple[str, str], Any]
) -> tuple[Any, dict[str, Batch]]:
    """Return a state and batches like these with other parts."""
    parts = {name: value for (owner, name), value in flat.items() if not owner}
    fed = {name: Batch(**{part: flat[name, part] for part in Batch._fields}) for name in batches}
    return dataclasses.replace(state, **parts), fed


def steps_of(method: Method[Any], net: Supernet, weights: Weights, config: EngineConfig, streams: Streams) -> Steps:
    """Return the steps of a search, replayed where the settings say so."""
    return (ReplayedSteps if config.graphs else Steps)(method, net, weights, config, streams)
