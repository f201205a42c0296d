"""Where candidates for an ensemble come from. To add one: a function (task, trained so far) -> what to train next.

bpnas        restarts from the found cell with one edge open again, another edge for each: one sweep of a Gibbs sampler
samples      draws from the run's posterior
top          the posterior's most probable architectures
neighbours   the found cell with one choice drawn anew: the control of bpnas
deepens      the found architecture again and again, other seeds (Lakshminarayanan et al., NeurIPS 2017)
nes-rs       uniform draws, then forward selection (Zaidi et al., NeurIPS 2021)
nes-re       regularised evolution of the ensemble's members, then forward selection (the same)
nesbs-mc     sets drawn from a posterior over a supernet's cells, the best set by inherited weights (Shu et al., 2022)
nesbs-svgd   sets of particles that keep apart, likewise

Every source is a pure function of the task and of what has been trained, in order, so an ensemble that was broken off
asks for the same candidates again.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from bayesarch.ensembles.selection import SELECTIONS, Selection
from bayesarch.functional.uncertainty import nll
from bayesarch.posteriors import ArchitecturePosterior, connected
from bayesarch.spaces import Architecture

__all__ = ["SOURCES", "Shared", "Source", "Task", "Trained", "mutate"]


class Trained(NamedTuple):
    """A candidate that has been trained.

    Attributes:
        arch: its architecture.
        selection: its probabilities on the selection split, shape (n, K).
    """

    arch: Architecture
    selection: np.ndarray


class Shared(Protocol):
    """A supernet with a posterior over its cells."""

    def sets(self, kind: str, size: int, count: int, seed: int) -> list[list[Architecture]]:
        """Return `count` sets of `size` cells, drawn by `mc` or `svgd`."""

    def probabilities(self, arch: Architecture) -> tuple[np.ndarray, np.ndarray]:
        """Return a cell's probabilities with inherited weights on the selection split, and the true classes."""


@dataclass(frozen=True)
class Task:
    """What a source may use.

    Attributes:
        found: the architecture that the run found.
        posterior: the run's posterior.
        size: members wanted.
        pool: candidates trained by sources that choose among many.
        seed: decides draws.
        labels: true classes of the selection split.
        reopened: (position of a choice, seed) -> what a restart with that choice open again ends with.
        shared: a supernet trained by uniform paths with its posterior, made when first asked for.
    """

    found: Architecture
    posterior: ArchitecturePosterior
    size: int
    pool: int
    seed: int
    labels: np.ndarray
    reopened: Callable[[int, int], Architecture]
    shared: Callable[[], Shared]


Ask = Callable[[Task, Sequence[Trained]], list[Architecture]]


class Source(NamedTuple):
    """A way to get candidates.

    Attributes:
        ask: what to train next, given what has been trained; nothing more: the empty list.
        selection: how members are chosen among them unless it is said.
        many: whether it trains `pool` candidates and not `size`.
        search: whether it goes back to the run's own search, which then must be a single one over operations.
    """

    ask: Ask
    selection: Selection
    many: bool = False
    search: bool = False


def mutate(arch: Architecture, rng: random.Random, *, position: int | None = None) -> Architecture:
    """Return the architecture with one choice picked anew and differently; a random choice, unless it is given."""
    space = arch.space
    where = rng.randrange(len(space.choices)) if position is None else position
    for _ in range(1000):
        picks = space.random_picks(rng)[where]
        changed = Architecture(space, (*arch.picks[:where], picks, *arch.picks[where + 1 :]))
        if changed != arch:
            return changed
    return arch


def _once(draw: Callable[[Task], list[Architecture]]) -> Ask:
    """Return a source that knows all its candidates at the beginning."""
    return lambda task, trained: draw(task)[len(trained) :]


def _open_edges(task: Task) -> list[int]:
    """Return choices to open again, without replacement while there are any."""
    rng, order = random.Random(task.seed), list[int]()
    while len(order) < task.size:
        sweep = list(range(len(task.found.space.choices)))
        rng.shuffle(sweep)
        order += sweep
    return order[: task.size]


def bpnas(task: Task) -> list[Architecture]:
    """Return where restarts end."""
    return [task.reopened(position, task.seed + i) for i, position in enumerate(_open_edges(task))]


def samples(task: Task) -> list[Architecture]:
    """Return draws from the posterior; those that let no image through are drawn again."""
    drawn = task.posterior.sample(task.size, seed=task.seed)
    kept = [arch for arch in drawn if arch.connected]
    for again in range(1, 1000):
        if len(kept) >= task.size:
            break
        drawn = task.posterior.sample(task.size, seed=task.seed + 100_003 * again)
        kept += [arch for arch in drawn if arch.connected]
    return [*kept, *drawn][: task.size]


def top(task: Task) -> list[Architecture]:
    """Return the most probable architectures that let an image through."""
    return list(itertools.islice(connected(task.posterior), task.size))


def neighbours(task: Task) -> list[Architecture]:
    """Return the found cell with one choice drawn anew, another choice for each."""
    rng = random.Random(task.seed)
    return [mutate(task.found, rng, position=position) for position in _open_edges(task)]


def deepens(task: Task) -> list[Architecture]:
    """Return the found architecture again and again."""
    return [task.found] * task.size


def nes_rs(task: Task) -> list[Architecture]:
    """Return uniform draws."""
    rng, space = random.Random(task.seed), task.found.space
    return [Architecture(space, space.random_picks(rng)) for _ in range(task.pool)]


def nes_re(task: Task, trained: Sequence[Trained]) -> list[Architecture]:
    """Return the next two children of an evolving population; at first a population of half the pool.

    The population is the youngest half of what has been trained. Of its best ensemble, chosen as members are, each
    child has one member for its parent.
    """
    start = max(task.pool // 2, 2)
    if len(trained) < start:
        return nes_rs(task)[len(trained) : start]
    if len(trained) >= task.pool:
        return []
    population = trained[-start:]
    probabilities = np.stack([one.selection for one in population])
    parents = SELECTIONS["forward"](probabilities, task.labels, min(10, max(2, start // 2))).members
    rng = random.Random(f"{task.seed}/{len(trained)}")
    children = min(2, task.pool - len(trained))
    return [mutate(population[rng.choice(parents)].arch, rng) for _ in range(children)]


def _nesbs(kind: str, candidates: int = 10) -> Callable[[Task], list[Architecture]]:
    def draw(task: Task) -> list[Architecture]:
        shared = task.shared()
        known: dict[Architecture, np.ndarray] = {}

        def loss(cells: list[Architecture]) -> float:
            for arch in cells:
                if arch not in known:
                    known[arch], labels_of["y"] = shared.probabilities(arch)
            return nll(np.mean([known[arch] for arch in cells], axis=0), labels_of["y"])

        labels_of: dict[str, np.ndarray] = {}
        return min(shared.sets(kind, task.size, candidates, task.seed), key=loss)

    return draw


SOURCES: dict[str, Source] = {
    "bpnas": Source(_once(bpnas), "all", search=True),
    "samples": Source(_once(samples), "all"),
    "top": Source(_once(top), "all"),
    "neighbours": Source(_once(neighbours), "all"),
    "deepens": Source(_once(deepens), "all"),
    "nes-rs": Source(_once(nes_rs), "forward", many=True),
    "nes-re": Source(nes_re, "forward", many=True),
    "nesbs-mc": Source(_once(_nesbs("mc")), "all", search=True),
    "nesbs-svgd": Source(_once(_nesbs("svgd")), "all", search=True),
}
"""Every source by name."""
