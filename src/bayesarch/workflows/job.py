"""A search made ready: settings checked, examples loaded and split, nothing written yet."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from bayesarch.data import (
    SEARCH_SPLITS,
    DataConfig,
    Examples,
    Partition,
    Split,
    as_examples,
    load,
    scaling_of,
    split,
    splits_on,
)
from bayesarch.engine import (
    Engine,
    Method,
    Observer,
    Setting,
    World,
    check_ways,
    own_pages,
    resolve_device,
    working_threads,
)
from bayesarch.errors import ConfigError
from bayesarch.functional import Streams
from bayesarch.methods import METHODS
from bayesarch.nets import Supernet
from bayesarch.nets.gated import NETWORKS, close_space, gated_supernet
from bayesarch.runs import RunFolder
from bayesarch.spaces import Limits, Space
from bayesarch.workflows.config import Settings, merge, overrides, read_config, settle, small_data_sizes
from bayesarch.workflows.limits import settle_budgets, settle_limits
from bayesarch.workflows.plan import Plan, Trial, plan

__all__ = ["Arrays", "Job", "data_record", "prepare"]

Arrays = tuple[np.ndarray, np.ndarray]
"""Images and labels, as `bayesarch.data.as_examples` takes them."""


@dataclass
class Job:
    """A search ready to start: settings, data on the device, and a folder."""

    settings: Settings
    examples: Examples
    partition: Partition
    device: torch.device
    splits: dict[str, Split] = field(repr=False)
    limits: Limits = field(repr=False)
    budgets: dict[str, float] = field(default_factory=dict)
    world: World = field(default_factory=World)
    """The processes that work on it."""

    def setting(self, net: Supernet) -> Setting:
        """Return what the method may know of the task."""
        first = self.partition.sizes[self.settings.method.splits[0]]
        batch = min(self.settings.engine.batch_size, first)
        return Setting(
            net.n_copies,
            self.partition.sizes,
            batch,
            first // batch,
            self.device,
            self.limits,
            self.budgets,
            len(self.examples.classes),
        )

    def supernet(self, streams: Streams) -> Any:
        """Return a fresh supernet on the device, channels last."""
        settings, shape, classes = self.settings, self.examples.input_shape, len(self.examples.classes)
        if settings.space.skeleton in NETWORKS:
            gated = gated_supernet(settings.space, settings.sizes, shape, classes, generator=streams["init"])
            return gated.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        net = Supernet(
            self.settings.space,
            input_shape=self.examples.input_shape,
            classes=len(self.examples.classes),
            sizes=self.settings.sizes,
            generator=streams["init"],
        )
        return net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def engine(self, folder: RunFolder, observer: Observer) -> Engine:
        """Return the engine at the very beginning."""
        streams = Streams(self.settings.seed, self.device)
        net = self.supernet(streams)
        return Engine(
            method=self.settings.method,
            net=net,
            state=self.settings.method.init(self.setting(net), streams=streams),
            data=self.splits,
            config=self.settings.engine,
            streams=streams,
            checkpoint=folder.path / "checkpoints" / "last.safetensors",
            observer=observer,
            world=self.world,
        )

    def trial(self) -> Trial:
        """Return steps on a throw-away copy of the network."""
        settings = self.settings
        net = self.supernet(Streams(settings.seed))
        return Trial(settings.method, net, self.splits, self.setting(net), settings.engine, seed=settings.seed)

    def plan(self) -> Plan:
        """Return what the search will cost, measured on a throw-away copy."""
        trial = self.trial()
        with self.working(trial.net):
            return plan(trial)

    @contextmanager
    def working(self, net: Any) -> Iterator[None]:
        """Take steps on this network in the block: by as many threads, and with such pages, as the settings ask for."""
        engine, macs = self.settings.engine, net.full_macs * self.setting(net).batch_size
        with working_threads(macs, engine.threads), own_pages(engine.own_pages and self.device.type == "cpu"):
            yield

    def data_record(self) -> dict[str, Any]:
        """Return data.json's record."""
        return data_record(self.examples, self.partition, self.settings.data)


def data_record(examples: Examples, partition: Partition, config: DataConfig) -> dict[str, Any]:
    """Return what a run folder says of its examples, their splits and how they are scaled."""
    mean, std = scaling_of(examples, partition, config)
    return {
        "mean": mean.tolist(),
        "std": std.tolist(),
        "input_shape": list(examples.input_shape),
        "classes": list(examples.classes),
        "sizes": partition.sizes,
        "given_test": partition.given_test,
        "fingerprint": partition.fingerprint(examples),
    }


def prepare(  # noqa: PLR0913 - the public face has one keyword per flag
    data: str | os.PathLike[str] | Arrays | Examples | None = None,
    *,
    space: str | Space | None = None,
    method: str | Method[Any] | None = None,
    seed: int | None = None,
    repeats: int | None = None,
    device: str | None = None,
    limit: int | None = None,
    max_macs: int | None = None,
    max_params: int | None = None,
    max_latency_ms: float | None = None,
    max_minutes: float | None = None,
    memory_limit: float | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    set: Sequence[str] | Mapping[str, Any] | None = None,
) -> Job:
    """Return a search that is checked and ready, nothing written yet. Arguments as in `search`.

    Raises:
        ConfigError: listing every wrong field.
        DataError: if the examples cannot be used.
        DeviceError: if the device, or a compiler that was asked for, is not there.
    """
    flags: dict[str, Any] = {"seed": seed, "repeats": repeats, "device": device}
    flags["space"] = {"name": space} if isinstance(space, str) else None
    flags["method"] = {"name": method} if isinstance(method, str) else None
    source = str(data) if isinstance(data, str | os.PathLike) else None
    flags["data"] = _given(source=source, limit=limit)
    flags["limits"] = _given(macs=max_macs, params=max_params, latency_ms=max_latency_ms)
    flags["engine"] = _given(max_minutes=max_minutes, memory_limit=memory_limit)
    base = read_config(config) if isinstance(config, str | os.PathLike) else dict(config or {})
    given = merge(base, {k: v for k, v in flags.items() if v is not None}, overrides(set))
    settings = settle(
        given,
        space=space if isinstance(space, Space) else None,
        method=None if isinstance(method, str) else method,
    )
    if settings.method.space != settings.space:
        raise ConfigError(
            f"the method was made for space {settings.method.space.name!r}, the search is in {settings.space.name!r}"
        )
    on = resolve_device(settings.device)
    check_ways(settings.engine, on)
    examples = _examples(data, settings)
    partition = split(examples, settings.data)
    n_training = sum(size for name, size in partition.sizes.items() if name != "test")
    settings = small_data_sizes(settings, n_training, given)
    settings = _closed(settings, examples)
    splits = splits_on(examples, partition, SEARCH_SPLITS, config=settings.data, device=on)
    world = World.join(on)
    check_ways(settings.engine, on, world.size)
    if world.size > 1 and settings.repeats > 1:
        raise ConfigError(
            f"repeats={settings.repeats} are processes of their own: start them without torchrun, "
            "--parallel says how many at a time"
        )
    limits = settle_limits(
        settings.limits,
        settings.space,
        settings.sizes,
        input_shape=examples.input_shape,
        classes=len(examples.classes),
        device=on,
    )
    budgets = settle_budgets(
        settings.limits,
        settings.space,
        settings.sizes,
        input_shape=examples.input_shape,
        classes=len(examples.classes),
    )
    # a latency is measured, and would be another on each process
    return Job(settings, examples, partition, on, splits, world.told(limits), budgets, world)


def _closed(settings: Settings, examples: Examples) -> Settings:
    """Return the settings with an open space's choices, now that the data are known, and the method made for it.

    Raises:
        ConfigError: if the method and the space are not of one kind, channels or operations.
    """
    space, entry = settings.space, METHODS.get(settings.method.name)
    channels = entry is not None and entry.channels
    if channels != (space.skeleton in NETWORKS):
        what, wants = ("channels", "operations") if space.skeleton in NETWORKS else ("operations", "channels")
        fits = [name for name, other in METHODS.items() if other.channels != channels]
        raise ConfigError(
            f"method {settings.method.name!r} decides on {wants} and space {space.name!r} has {what} to decide on; "
            f"take --method {' or '.join(fits)}, or another --space"
        )
    if not space.open or entry is None:
        return settings
    closed = close_space(space, settings.sizes, examples.input_shape, len(examples.classes))
    return replace(settings, space=closed, method=entry.make(closed, settings.method_config))


def _given(**values: Any) -> dict[str, Any] | None:
    """Return what was given, or None where nothing was."""
    return {key: value for key, value in values.items() if value is not None} or None


def _examples(data: Any, settings: Settings) -> Examples:
    if isinstance(data, Examples):
        return data
    if isinstance(data, tuple):
        return as_examples(np.asarray(data[0]), np.asarray(data[1]), layout=settings.data.layout)
    return load(settings.data)
