"""Selection against exhaustive search, weights against a grid, temperatures against what they should undo."""

import itertools

import numpy as np
import pytest

from bayesarch.ensembles import SELECTIONS, Mixture, fit_mixture, stacked_weights
from bayesarch.functional.uncertainty import mean_probabilities, nll, softmax


@pytest.fixture
def pool():
    """Eight classifiers of different strength whose errors are partly their own."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    truth = np.eye(4)[y]
    strength = np.array([0.4, 1.2, 0.8, 1.0, 0.2, 1.1, 0.9, 0.7])
    return softmax(2 * strength[:, None, None] * truth + rng.normal(size=(8, 400, 4))), y


def test_forward_selection_is_greedy_step_by_step(pool):
    p, y = pool
    chosen = SELECTIONS["forward"](p, y, 3)
    assert len(set(chosen.members)) == 3
    assert chosen.weights == pytest.approx((1 / 3,) * 3)
    first = min(range(8), key=lambda i: nll(p[i], y))
    second = min((i for i in range(8) if i != first), key=lambda i: nll((p[first] + p[i]) / 2, y))
    assert chosen.members[:2] == (first, second)
    best_of_all = min(itertools.combinations(range(8), 3), key=lambda c: nll(p[list(c)].mean(0), y))
    reached, best = (nll(p[list(c)].mean(0), y) for c in (chosen.members, best_of_all))
    assert best <= reached <= 1.05 * best
    assert reached < nll(p[list(SELECTIONS["top"](p, y, 3).members)].mean(0), y) + 1e-12


def test_forward_selection_takes_who_helps_and_not_who_is_next_best():
    """Twins are the two best, and a weaker one is right where both of them are wrong."""
    y = np.zeros(10, dtype=int)
    twin = np.tile([0.9, 0.1], (10, 1))
    twin[:2] = [0.1, 0.9]
    other = np.tile([0.55, 0.45], (10, 1))
    other[:2] = [0.95, 0.05]
    other[2:4] = [0.2, 0.8]
    pool = np.stack([twin, twin, other])
    assert nll(other, y) > nll(twin, y)
    assert SELECTIONS["forward"](pool, y, 2).members == (0, 2)
    assert SELECTIONS["top"](pool, y, 2).members == (0, 1)


def test_with_replacement_a_strong_candidate_counts_more_than_once():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 200)
    strong, weak = (softmax(s * np.eye(3)[y] + 0.3 * rng.normal(size=(200, 3))) for s in (4.0, 0.1))
    chosen = SELECTIONS["forward-replace"](np.stack([weak, strong]), y, 4)
    assert chosen.members == (1,)
    assert chosen.weights == (1.0,)
    mixed = SELECTIONS["forward-replace"](np.stack([strong, strong, weak]), y, 4)
    assert sum(mixed.weights) == pytest.approx(1.0)


def test_a_pool_no_larger_than_the_ensemble_is_taken_whole(pool):
    p, y = pool
    for name in ("forward", "top", "all"):
        assert sorted(SELECTIONS[name](p[:2], y, 5).members) == [0, 1]
    assert SELECTIONS["all"](p, y, 3).members == (0, 1, 2)


def test_stacked_weights_are_the_best_of_a_grid(pool):
    p, y = pool
    three = p[[1, 3, 4]]
    weights = stacked_weights(three, y)
    assert sum(weights) == pytest.approx(1.0)
    grid = [(a, b, 100 - a - b) for a in range(101) for b in range(101 - a)]
    best = min(nll(mean_probabilities(three, np.array(w) / 100), y) for w in grid)
    assert nll(mean_probabilities(three, weights), y) <= best + 1e-6


def test_temperatures_undo_what_was_done_to_the_logits():
    rng = np.random.default_rng(2)
    z = 2 * rng.normal(size=(5000, 4))
    y = (rng.random((5000, 1)) > softmax(z).cumsum(1)).sum(1)
    logits = np.stack([3.0 * z, 0.5 * z])
    single = fit_mixture(logits, y, (0.5, 0.5), "single")
    assert single.temperatures == pytest.approx((3.0, 0.5), rel=0.06)
    assert np.allclose(single.members(logits)[0], softmax(z, single.temperatures[0] / 3.0))
    joint = fit_mixture(logits[:1], y, (1.0,), "joint")
    assert joint.joint == pytest.approx(3.0, rel=0.06)
    assert np.allclose(joint(logits[:1]), softmax(logits[0], joint.joint)), "for one member the two are the same"
    losses = {s: nll(fit_mixture(logits, y, (0.5, 0.5), s)(logits), y) for s in ("none", "single", "joint")}
    assert losses["joint"] <= losses["none"]
    assert losses["single"] <= losses["none"]


def test_a_mixture_survives_json():
    made = Mixture((0.25, 0.75), (1.5, 0.7), 1.2)
    assert Mixture.from_json(made.to_json()) == made
    p = made(np.random.default_rng(0).normal(size=(2, 7, 3)))
    assert p.sum(1) == pytest.approx(np.ones(7))
