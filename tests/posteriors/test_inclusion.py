"""Inclusion posteriors: the contract, the dependency in every draw, and limits that are known."""

import dataclasses
import math

import numpy as np
import pytest

from bayesarch.posteriors import Inclusion
from bayesarch.spaces import NB201, TOY, Architecture, Choice, Space
from bayesarch.testing import check_posterior


def multi(space: Space) -> Space:
    """The space with any number of options on each choice."""
    return dataclasses.replace(
        space,
        name=f"{space.name}-any",
        choices=tuple(dataclasses.replace(c, pick="any") for c in space.choices),
        format_fn=None,
        parse_fn=None,
        canonical_fn=None,
    )


def two_cells() -> Space:
    """Two cell types of two edges in a row, several options each, and one choice on no graph."""
    edges = [("a", "0", "1"), ("a", "1", "2"), ("b", "0", "1"), ("b", "1", "2")]
    chained = tuple(
        Choice(name=f"{cell}{t}", options=("none", "x", "y"), zero=0, pick="any", source=s, target=t, cell=cell)
        for cell, s, t in edges
    )
    return Space(
        name="two", choices=(*chained, Choice(name="width", options=("small", "large"))),
        inputs=frozenset({"0"}), outputs=frozenset({"2"}), skeleton=TOY.skeleton, sizes=TOY.sizes,
    )  # fmt: skip


def random_inclusion(space: Space, seed: int) -> Inclusion:
    rng = np.random.default_rng(seed)
    found = Architecture(space, next(space.all_picks()))
    return Inclusion(found, rng.random(len(space.choices)), [rng.random(len(c.options)) for c in space.choices])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("space", [TOY, multi(TOY), two_cells()], ids=lambda s: s.name)
def test_contract(space, seed):
    check_posterior(random_inclusion(space, seed))


def test_contract_where_the_space_is_large():
    check_posterior(random_inclusion(NB201, 0), draws=2000)
    check_posterior(random_inclusion(multi(NB201), 1), draws=2000, enumerate_up_to=0)


def test_dependency_and_connection_hold_in_every_draw():
    space = multi(NB201)
    posterior = random_inclusion(space, 4)
    for arch in posterior.sample(500, seed=1):
        assert arch.picks == space.cascade(arch.picks)
        assert space.connected(arch.picks)


def test_certain_and_impossible_options():
    space = multi(TOY)
    found = Architecture(space, ((1,), (), (2,)))
    rates = [[0, 1, 0], [0, 0, 0], [0, 0, 1]]
    posterior = Inclusion(found, [1, 0, 1], rates)
    assert [arch for arch, _ in posterior.most_probable()] == [found]
    assert posterior.entropy() == pytest.approx(0.0)
    assert posterior.weights()["2<-0"]["none"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="nothing can reach"):
        Inclusion(found, [1, 0, 0], rates)


def test_one_edge_by_hand():
    """Gate .8, one option .5 on the only way: given that it is connected it is there."""
    space = Space(
        name="one", choices=(Choice(name="e", options=("none", "x", "y"), zero=0, pick="any", source="0", target="1"),),
        inputs=frozenset({"0"}), outputs=frozenset({"1"}), skeleton=TOY.skeleton, sizes=TOY.sizes,
    )  # fmt: skip
    posterior = Inclusion(Architecture(space, ((1,),)), [0.8], [[0.0, 0.5, 0.25]])
    there = 0.8 * (1 - 0.5 * 0.75)
    assert posterior.marginals() == pytest.approx([0.0, 0.8 * 0.5 / there, 0.8 * 0.25 / there])
    assert posterior.log_prob(Architecture(space, ((),))) == -math.inf


def test_single_picks_go_by_odds():
    posterior = Inclusion(Architecture(TOY, ((1,), (1,), (1,))), [1, 1, 1], [[0, 0.75, 0.5]] * 3)
    assert posterior.weights()["2<-0"] == pytest.approx({"none": 0.0, "skip": 0.75, "product": 0.25})


def test_tables_that_do_not_fit_are_refused():
    found = Architecture(TOY, ((1,), (1,), (1,)))
    with pytest.raises(ValueError, match="gates"):
        Inclusion(found, [0.5], [[0, 0.5, 0.5]] * 3)
    with pytest.raises(ValueError, match="probabilities"):
        Inclusion(found, [0.5, 2.0, 0.5], [[0, 0.5, 0.5]] * 3)
