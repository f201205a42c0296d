"""Where candidates come from: each source's own rule, and that a broken-off ensemble asks for the same again."""

import random
from dataclasses import replace

import numpy as np
import pytest

from bayesarch.ensembles import SOURCES, Task, Trained, mutate
from bayesarch.functional.uncertainty import softmax
from bayesarch.posteriors import MeanField
from bayesarch.spaces import NB201, Architecture

FOUND = Architecture(NB201, ((3,), (1,), (3,), (0,), (3,), (2,)))


class Cells:
    """A made-up supernet: the fewer the poolings, the better."""

    def sets(self, kind, size, count, seed):
        rng = random.Random(f"{kind}{seed}")
        return [[Architecture(NB201, NB201.random_picks(rng)) for _ in range(size)] for _ in range(count)]

    def probabilities(self, arch):
        right = 0.9 - 0.1 * sum(row == (4,) for row in arch.picks)
        return np.array([[right, 1 - right]] * 4), np.zeros(4, dtype=int)


def task(
    size=3, pool=12, seed=0, reopened=lambda position, seed: mutate(FOUND, random.Random(seed), position=position)
):
    table = np.full((6, 5), 0.1)
    table[:, 3] = 0.6
    labels = np.arange(40) % 4
    return Task(FOUND, MeanField(NB201, table), size, pool, seed, labels, reopened, Cells)


def test_members_see_the_image():
    """Draws and most probable cells of a posterior that prefers nothing; draws that do are the posterior's own."""
    table = np.full((6, 5), 0.05)
    table[:, 0] = 0.8
    blind = replace(task(size=20), posterior=MeanField(NB201, table))
    drawn, first = run("samples", blind), [a for a in blind.posterior.sample(20, seed=0) if a.connected]
    assert 0 < len(first) < 20
    assert drawn[: len(first)] == first
    assert len(drawn) == 20
    assert all(arch.connected for arch in [*drawn, *run("top", blind)])
    assert run("samples", task()) == task().posterior.sample(3, seed=0)
    nothing = np.eye(5)[[0] * 6]
    assert len(run("samples", replace(task(), posterior=MeanField(NB201, nothing)))) == 3, "there is nothing else"


def trained(archs, rng):
    y = np.arange(40) % 4
    return [
        Trained(a, softmax(sum(row == (3,) for row in a.picks) * np.eye(4)[y] + rng.normal(size=(40, 4))))
        for a in archs
    ]


def run(name, made):
    """Return all candidates of a source, trained as it asks for them."""
    rng, history = np.random.default_rng(0), []
    while asked := SOURCES[name].ask(made, history):
        history += trained(asked, rng)
    return [one.arch for one in history]


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_what_it_should_and_the_same_again(name):
    archs = run(name, task())
    assert len(archs) == (12 if SOURCES[name].many else 3)
    assert run(name, task()) == archs
    if name not in ("deepens", "top", "samples"):
        assert run(name, task(seed=1)) != archs
    # what was already trained is not asked for again
    history = trained(archs[:2], np.random.default_rng(0))
    assert SOURCES[name].ask(task(), history)[:1] == archs[2:3]


def test_restarts_open_another_edge_each_while_there_are_any():
    opened = []

    def reopened(position, seed):
        opened.append((position, seed))
        return FOUND

    run("bpnas", task(size=8, seed=5, reopened=reopened))
    positions = [position for position, _ in opened[:8]]
    assert sorted(positions[:6]) == list(range(6))
    assert len({seed for _, seed in opened[:8]}) == 8


def test_neighbours_differ_in_one_choice():
    for arch in run("neighbours", task(size=6)):
        assert sum(a != b for a, b in zip(arch.picks, FOUND.picks, strict=True)) == 1


def test_deep_ensembles_have_one_architecture_and_the_posterior_others():
    assert run("deepens", task()) == [FOUND] * 3
    posterior = task().posterior
    assert run("samples", task(seed=4)) == posterior.sample(3, seed=4)
    assert run("top", task())[0] == posterior.mode()


def test_evolution_keeps_the_young_and_breeds_the_good():
    archs = run("nes-re", task(pool=20))
    for i in range(10, 20):
        young = archs[i - i % 2 - 10 : i - i % 2]
        differ = [sum(a != b for a, b in zip(archs[i].picks, old.picks, strict=True)) for old in young]
        assert min(differ) == 1, "a child is one change away from a member of the young half"
    convolutions = [sum(row == (3,) for row in a.picks) for a in archs]
    assert np.mean(convolutions[10:]) > np.mean(convolutions[:10]), "the made-up task likes 3 x 3 convolutions"


def test_the_best_set_of_cells_is_taken():
    chosen = run("nesbs-mc", task())
    poolings = [sum(row == (4,) for arch in cells for row in arch.picks) for cells in Cells().sets("mc", 3, 10, 0)]
    assert sum(row == (4,) for arch in chosen for row in arch.picks) == min(poolings)
