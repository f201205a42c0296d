import itertools

import numpy as np
import pytest

from bayesarch.posteriors.calibration import (
    calibration_error,
    others_share,
    predictive_coverage,
    reliability,
    tempered,
)


def runs_of(probabilities, runs, rng):
    """Return what so many independent runs find, each choice drawn from its probabilities, shape (R, G)."""
    found = []
    for _ in range(runs):
        row = [np.eye(len(p))[rng.choice(len(p), p=p)] for p in probabilities]
        found.append(np.concatenate(row))
    return np.array(found, dtype=bool)


PROBABILITIES = [np.array([0.8, 0.15, 0.05]), np.array([0.5, 0.5]), np.array([0.1, 0.2, 0.3, 0.4])]


def test_others_share_by_hand():
    found = np.array([[1, 0], [1, 0], [0, 1]], dtype=bool)
    assert np.allclose(others_share(found), [[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])


def test_the_true_probabilities_are_calibrated_and_others_are_not():
    """With many runs the error of what generated them goes to 0; of sharper and flatter weights it does not."""
    rng = np.random.default_rng(0)
    found = runs_of(PROBABILITIES, 3000, rng)
    share, truth = others_share(found), np.tile(np.concatenate(PROBABILITIES), (3000, 1))
    assert calibration_error(truth, share) < 0.01
    logs = [np.log(p) for p in PROBABILITIES]
    for temperature in (0.2, 5.0):
        wrong = np.tile(np.concatenate([tempered(row, temperature) for row in logs]), (3000, 1))
        assert calibration_error(wrong, share) > 0.07


def test_reliability_by_hand():
    predicted = np.array([0.05, 0.15, 0.12, 0.95, 1.0])
    observed = np.array([0.0, 0.5, 0.1, 1.0, 0.5])
    rows = reliability(predicted, observed)
    assert [(round(r.predicted, 3), round(r.observed, 3), r.n) for r in rows] == [
        (0.05, 0.0, 1), (0.135, 0.3, 2), (0.975, 0.75, 2),
    ]  # fmt: skip
    assert calibration_error(predicted, observed) == pytest.approx((0.05 + 2 * 0.165 + 2 * 0.225) / 5)


def test_calibration_error_of_single_outcomes():
    """For single outcomes it is the usual one, written as a plain loop over bins."""
    rng = np.random.default_rng(1)
    p = rng.uniform(size=500)
    y = rng.uniform(size=500) < p**1.5
    naive, edges = 0.0, np.linspace(0, 1, 11)
    for low, high in itertools.pairwise(edges):
        members = (p >= low) & (p < high)
        naive += abs(p[members].sum() - y[members].sum()) / 500
    assert calibration_error(p, y.astype(float)) == pytest.approx(naive)


def test_tempered():
    logs = np.log([0.7, 0.2, 0.1])
    assert np.allclose(tempered(logs, 1.0), [0.7, 0.2, 0.1])
    assert np.allclose(tempered(logs, 1e9), 1 / 3, atol=1e-6)
    assert np.allclose(tempered(np.array([-2000.0, -1000.0, -np.inf]), 1.0), [0, 1, 0])
    assert np.allclose(
        tempered(np.array([0.0, -700.0, -1400.0]), 700.0), np.exp([0, -1, -2]) / np.exp([0, -1, -2]).sum()
    )


def test_predictive_intervals_cover_and_wrong_ones_would_not():
    rng = np.random.default_rng(2)
    cover = [predictive_coverage(runs_of(PROBABILITIES, 20, rng), splits=20, level=0.9, rng=rng) for _ in range(15)]
    assert 0.9 < np.mean(cover) < 0.99
    # runs that are not exchangeable: the first half never finds what the second half always does
    halves = np.repeat(np.array([[1, 0], [0, 1]], dtype=bool), 10, axis=0)
    identity = type("Order", (), {"permutation": staticmethod(np.arange)})()
    assert predictive_coverage(halves, splits=1, level=0.9, rng=identity) == 0.0
