"""A fixed number of edges per node: the contract, and that the mode is DARTS's own derivation."""

import dataclasses

import numpy as np
import pytest
import torch

from bayesarch.errors import ConfigError
from bayesarch.methods.single import argmax_live, product, reachable
from bayesarch.posteriors import Listed, MeanField, TopEdges
from bayesarch.spaces import DARTS, TOY, Architecture, Choice, Limits, Space
from bayesarch.testing import check_posterior


def small():
    """Two inputs, three nodes, two edges kept into each."""
    options = ("none", "x", "y")
    return Space(
        name="small",
        choices=tuple(
            Choice(name=f"{t}<-{s}", options=options, zero=0, pick="any", source=str(s), target=str(t))
            for t in range(2, 4)
            for s in range(t)
        ),
        inputs=frozenset({"0", "1"}), outputs=frozenset({"2", "3"}), skeleton=TOY.skeleton, sizes=TOY.sizes, entering=2,
    )  # fmt: skip


def random_table(space, seed):
    rng = np.random.default_rng(seed)
    return [rng.dirichlet(np.ones(len(c.options))).tolist() for c in space.choices]


@pytest.mark.parametrize("seed", range(3))
def test_contract(seed):
    check_posterior(TopEdges(small(), random_table(small(), seed)))


def test_contract_on_darts():
    check_posterior(TopEdges(DARTS, random_table(DARTS, 0)), draws=1000)


@pytest.mark.parametrize("seed", range(5))
def test_the_mode_is_the_published_derivation(seed):
    """Largest weight of an operation other than none ranks the edges; the best two stay with that operation."""
    table = random_table(DARTS, seed)
    mode = TopEdges(DARTS, table).mode()
    for cell in ("normal", "reduce"):
        for node in range(2, 6):
            edges = [p for p, c in enumerate(DARTS.choices) if (c.cell, c.target) == (cell, str(node))]
            best = sorted(edges, key=lambda p: -max(table[p][1:]))[:2]
            for p in edges:
                expected = (1 + int(np.argmax(table[p][1:])),) if p in best else ()
                assert mode.picks[p] == expected


def test_every_node_of_every_draw_has_two_edges():
    for arch in TopEdges(DARTS, random_table(DARTS, 1)).sample(50, seed=0):
        assert str(arch).startswith("Genotype(")


def test_a_space_that_keeps_all_edges_is_refused():
    with pytest.raises(ValueError, match="keeps all edges"):
        TopEdges(TOY, [[1, 1, 1]] * 3)


def test_masks_settle_every_edge():
    weights = torch.tensor([v for row in random_table(DARTS, 2) for v in row])
    live = argmax_live(DARTS, weights, torch.ones(DARTS.n_options, dtype=torch.bool))
    assert int(live.sum()) == 28
    assert int(live[::8].sum()) == 12, "edges that are not kept have their zero option"


def test_an_edge_that_cannot_be_empty_is_kept():
    space = small()
    weights, live = torch.full((15,), 0.3), torch.ones(15, dtype=torch.bool)
    weights[[6 + 1, 9 + 1]] = 0.9  # node 3: edges from 0 and 1 are the best
    live[12] = False  # and the one from 2 cannot be empty any more
    kept = argmax_live(space, weights, live)
    assert bool(kept[12:].any())
    assert not bool(kept[12])


def test_edges_in_force_use_up_the_number():
    space, live = small(), torch.ones(15, dtype=torch.bool)
    first = reachable(space, live, None)
    assert first.tolist() == [False, True, True] * 2 + [True] * 9, "node 2 has two edges: both are there"
    live[[6, 9]] = False
    left = reachable(space, live, None)
    assert left[12:].tolist() == [True, False, False], "two of node 3 are there, so the third is not"


def test_limits_and_a_number_of_edges_together():
    space, table = small(), random_table(small(), 3)
    costs = tuple(float(g % 3) for g in range(15))  # x costs 1, y 2
    limits = Limits(("macs",), (4.0,), (0.0,), (costs,))
    posterior = product(space, table, limits.to_json())
    assert isinstance(posterior, Listed)
    assert {a.picks.count(()) for a, _ in posterior.members} == {1}, "two of the three edges into node 3"
    assert all(limits.allow(space, a.picks) for a, _ in posterior.members)
    with pytest.raises(ConfigError, match="loosen"):
        product(space, table, Limits(("macs",), (3.0,), (0.0,), (costs,)).to_json())


def test_one_option_or_none_where_any_number_may_stay():
    space = dataclasses.replace(small(), entering=None)
    table = random_table(space, 4)
    check_posterior(MeanField(space, table))
    several = Architecture(space, ((1, 2), *((),) * 4))
    assert MeanField(space, table).log_prob(several) == -np.inf
