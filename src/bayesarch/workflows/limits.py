"""Hard limits that a user sets on what may be found: checked before anything is trained, kept by every method."""

import random

import numpy as np
import torch
from pydantic import Field

from bayesarch.config import Config
from bayesarch.errors import ConfigError
from bayesarch.nets import MaskCosts, architecture_cost, build, cost_limits
from bayesarch.nets.gated import network_of
from bayesarch.nets.skeletons import Shape
from bayesarch.spaces import NO_LIMITS, Architecture, Limits, Space
from bayesarch.workflows.latency import image_latency

__all__ = ["LimitsConfig", "of_channels", "settle_budgets", "settle_limits"]

FLAGS = {"params": "--max-params", "macs": "--max-macs", "latency_ms": "--max-latency-ms"}
PROBES = 8
"""Random architectures on which the latency table is checked."""
ROUNDS = 3
"""Times that each network of the latency table is measured, among the others: the fastest counts."""


class LimitsConfig(Config):
    """Budgets of the architecture that is found, as a plain network of the run's sizes."""

    macs: int | None = Field(default=None, ge=1)
    """Most MACs for one image."""
    params: int | None = Field(default=None, ge=1)
    """Most parameters."""
    latency_ms: float | None = Field(default=None, gt=0)
    """Most milliseconds for one image, on the machine and device of the search."""


def settle_limits(
    config: LimitsConfig, space: Space, sizes: Config, *, input_shape: Shape, classes: int, device: torch.device
) -> Limits:
    """Return the limits as budgets on additive costs; a latency table is measured here.

    Raises:
        ConfigError: if no architecture of the space can keep them; says what the smallest ones need.
    """
    if config == LimitsConfig():
        return NO_LIMITS
    if of_channels(space):
        return NO_LIMITS  # their costs do not add up: `settle_budgets`
    if not space.additive:
        raise ConfigError(
            f"the costs of options in space {space.name!r} do not add up; --max-macs, --max-params and "
            "--max-latency-ms are not kept there"
        )
    latency = None
    if config.latency_ms is not None:
        base, options = _latencies(space, sizes, input_shape, classes, device)
        latency = (config.latency_ms, base, options)
    limits = cost_limits(
        space,
        sizes=sizes,
        input_shape=input_shape,
        classes=classes,
        params=config.params,
        macs=config.macs,
        latency=latency,
    )
    if not limits.possible(space, [True] * space.n_options):
        needs = []
        for name, budget, base, row in zip(limits.names, limits.budgets, limits.base, limits.costs, strict=True):
            least = base + sum(min(row[g] for g in space.columns(p)) for p in range(len(space.choices)))
            needs.append(f"{FLAGS[name]} {budget:,g} (the smallest has {least:,g})")
        raise ConfigError(
            f"no architecture of {space.name} at these sizes keeps {' and '.join(needs)}"
            f"{' together' if len(needs) > 1 else ''}; loosen the limit or make the network smaller "
            "(--set space.channels=8)"
        )
    return limits


def of_channels(space: Space) -> bool:
    """Return whether a space is one of channel masks."""
    return space.open or any(choice.alike for choice in space.choices)


def settle_budgets(
    config: LimitsConfig, space: Space, sizes: Config, *, input_shape: Shape, classes: int
) -> dict[str, float]:
    """Return the limits of a space of channels, as largest values of `params` and `macs`; none for other spaces.

    Raises:
        ConfigError: if even a network with one channel everywhere is larger, or a latency is asked for.
    """
    if config == LimitsConfig() or not of_channels(space):
        return {}
    if config.latency_ms is not None:
        raise ConfigError(
            f"--max-latency-ms is not kept in spaces of channels, such as {space.name!r}; give --max-macs"
        )
    with torch.random.fork_rng(devices=[]):
        net = network_of(space, sizes, input_shape, classes)
    costs = MaskCosts(net, input_shape)
    params, macs = costs.of(np.zeros((1, costs.channels), dtype=bool))
    smallest = {"params": int(params[0]), "macs": int(macs[0])}
    wanted = {name: value for name, value in config.model_dump().items() if value is not None}
    needs = [f"{FLAGS[n]} {v:,g} (the smallest has {smallest[n]:,})" for n, v in wanted.items() if smallest[n] > v]
    if needs:
        raise ConfigError(
            f"no mask of {space.name} at these sizes keeps {' and '.join(needs)}; loosen the limit or make the network "
            "smaller"
        )
    return {name: float(value) for name, value in wanted.items()}


def _latencies(
    space: Space, sizes: Config, input_shape: Shape, classes: int, device: torch.device
) -> tuple[float, tuple[float, ...]]:
    """Return the latency of the cheapest architecture and what each flat option adds to it, in ms, measured.

    Sums of such terms are only nearly right, so all are scaled up until no random probe is slower than its sum says.
    """

    def measured(archs: list[Architecture]) -> list[float]:
        """Each is the fastest of rounds over all: a machine that was busy for a while has slowed one round, no more."""

        def once(arch: Architecture) -> float:
            net = build(
                arch, input_shape=input_shape, classes=classes, sizes=sizes, generator=torch.Generator().manual_seed(0)
            )
            return image_latency(net.to(device), input_shape, repeats=7)

        return [min(times) for times in zip(*([once(arch) for arch in archs] for _ in range(ROUNDS)), strict=True)]

    def macs(picks: tuple[tuple[int, ...], ...]) -> int:
        arch = Architecture(space, picks)
        return architecture_cost(arch, sizes=sizes, input_shape=input_shape, classes=classes).macs

    cheapest = list(space.random_picks(random.Random(0)))
    for position, choice in enumerate(space.choices):
        options = [(*cheapest[:position], (i,), *cheapest[position + 1 :]) for i in range(len(choice.options))]
        best = min(range(len(options)), key=lambda i: (i != choice.zero and macs(options[i]), i))
        cheapest[position] = (best,)
    versions = [
        (*cheapest[:position], (i,), *cheapest[position + 1 :])
        for position, choice in enumerate(space.choices)
        for i in range(len(choice.options))
    ]
    pool = list(dict.fromkeys([tuple(cheapest), *versions]))
    times = dict(zip(pool, measured([Architecture(space, picks) for picks in pool]), strict=True))
    base = times[tuple(cheapest)]
    added = [max(times[picks] - base, 0.0) for picks in versions]
    rng, slower = random.Random(0), 1.0
    probes = [Architecture(space, space.random_picks(rng)) for _ in range(PROBES)]
    for arch, ms in zip(probes, measured(probes), strict=True):
        slower = max(slower, ms / (base + sum(added[g] for g in arch.columns)))
    return base * slower, tuple(value * slower for value in added)


def in_full(text: str | None, flag: str) -> int | None:
    """Return a count that may end in k, M or G, as `--max-macs 40M`; None stays None.

    Raises:
        ConfigError: if it is no such count.
    """
    if text is None:
        return None
    factors = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
    digits = text.strip().rstrip("kKmMgG")
    try:
        return round(float(digits) * factors[text.strip()[len(digits) :].lower()])
    except (ValueError, KeyError, OverflowError):
        raise ConfigError(f"{flag} takes a count such as 2500000, 2.5M or 400k; got {text!r}") from None
