"""Scores and calibration against closed forms, scikit-learn, torchmetrics and netcal."""

import math
import warnings

import numpy as np
import pytest
from sklearn import metrics

from bayesarch.functional import uncertainty as un


@pytest.fixture
def made():
    """Logits and classes drawn from the softmax itself, so that temperature 1 is right."""
    rng = np.random.default_rng(0)
    logits = 2.0 * rng.normal(size=(3, 4000, 5))
    p = un.softmax(logits[0])
    y = (rng.random((4000, 1)) > p.cumsum(1)).sum(1)
    return logits, p, y


def test_scores_are_those_of_scikit_learn(made):
    _, p, y = made
    assert un.accuracy(p, y) == metrics.accuracy_score(y, p.argmax(1))
    assert un.nll(p, y) == pytest.approx(metrics.log_loss(y, p))
    two = p[:, :2] / p[:, :2].sum(1, keepdims=True)
    z = (y > 2).astype(int)
    assert un.brier(two, z) == pytest.approx(2 * metrics.brier_score_loss(z, two[:, 1]))
    assert un.nll(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(-math.log(1e-300))


@pytest.mark.parametrize("bins", [10, 15])
def test_calibration_error_is_that_of_torchmetrics_and_netcal(made, bins):
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    logits, _, y = made
    p = un.softmax(logits[0], 0.5)
    ours = un.calibration_error(p, y, bins=bins)
    theirs = torchmetrics.multiclass_calibration_error(torch.tensor(p), torch.tensor(y), 5, n_bins=bins, norm="l1")
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        netcal = pytest.importorskip("netcal.metrics")
        assert ours == pytest.approx(float(netcal.ECE(bins).measure(p, y)), abs=1e-9)


def test_reliability_of_known_bins():
    p = np.array([[0.95, 0.05], [0.9, 0.1], [0.6, 0.4], [0.45, 0.55]])
    y = np.array([0, 1, 0, 0])
    wide = un.reliability(p, y, bins=2)
    assert wide.n.tolist() == [4]
    assert wide.confidence == pytest.approx([0.75])
    edge = un.reliability(np.array([[0.5, 0.5], [0.6, 0.4]]), np.array([0, 0]), bins=2)
    assert edge.confidence == pytest.approx([0.5, 0.6]), "an edge belongs to the bin below it"
    mass = un.reliability(p, y, bins=2, equal="mass")
    assert mass.n.tolist() == [2, 2]
    assert mass.confidence == pytest.approx([0.575, 0.925])
    assert mass.accuracy == pytest.approx([0.5, 0.5])
    assert un.calibration_error(p, y, bins=2, equal="mass") == pytest.approx((0.075 + 0.425) / 2)
    with pytest.raises(ValueError, match="width"):
        un.reliability(p, y, equal="other")


def test_equal_mass_bins_hold_equally_many_whatever_the_ties():
    p = np.column_stack([np.full(103, 0.7), np.full(103, 0.3)])
    counts = un.reliability(p, np.zeros(103, dtype=int), bins=10, equal="mass").n
    assert counts.max() - counts.min() <= 1


def test_uncertainty_splits_into_parts_that_are_right_at_the_extremes(made):
    logits, _, _ = made
    members = un.softmax(logits)
    total, aleatoric, epistemic = un.split_uncertainty(members)
    assert np.allclose(total, aleatoric + epistemic)
    assert (epistemic >= 0).all()
    same = np.stack([members[0]] * 3)
    assert np.abs(un.split_uncertainty(same)[2]).max() < 1e-12
    sure = np.eye(4)[np.array([[0, 1], [1, 1]])]  # two members, two examples: at odds, then at one
    total, aleatoric, epistemic = un.split_uncertainty(sure)
    assert total == pytest.approx([math.log(2), 0.0])
    assert aleatoric == pytest.approx([0.0, 0.0])
    assert un.disagreement(sure) == 0.5
    assert un.disagreement(sure[:1]) == 0.0
    weighted = un.split_uncertainty(members, [1.0, 0.0, 0.0])
    assert np.allclose(weighted[0], un.entropy(members[0]))
    assert np.allclose(weighted[2], 0.0, atol=1e-12)


def test_a_temperature_is_found_and_stays_where_it_is_right(made):
    logits, _, y = made
    for scale in (0.5, 1.0, 3.0):
        found = un.fit_temperature(lambda t, s=scale: un.nll(un.softmax(s * logits[0], t), y))
        assert found == pytest.approx(scale, rel=0.06)
    best = un.fit_temperature(lambda t: un.nll(un.softmax(logits[0], t), y))
    around = [un.nll(un.softmax(logits[0], best * f), y) for f in (0.98, 1.0, 1.02)]
    assert around[1] == min(around)


def test_ranking_scores_are_those_of_scikit_learn(made):
    rng = np.random.default_rng(1)
    negatives, positives = np.round(rng.normal(size=300), 1), np.round(1 + rng.normal(size=200), 1)
    truth, scores = np.repeat([0, 1], [300, 200]), np.concatenate([negatives, positives])
    assert un.auroc(negatives, positives) == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert un.average_precision(negatives, positives) == pytest.approx(metrics.average_precision_score(truth, scores))
    fpr, tpr, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    assert un.fpr_at_tpr(negatives, positives) == pytest.approx(fpr[np.argmax(tpr >= 0.95)])
    assert un.fpr_at_tpr(np.zeros(10), np.ones(10)) == 0.0


def test_risk_against_coverage(made):
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    coverage, risk, area = un.risk_coverage(p, np.array([0, 1, 0, 0]))
    assert coverage == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])
    assert area == pytest.approx(np.mean([0, 1 / 2, 1 / 3, 1 / 4]))
    flat = np.tile([0.6, 0.4], (4, 1))
    assert un.risk_coverage(flat, np.array([0, 1, 0, 0]))[1] == pytest.approx([0.25] * 4), "ties are answered together"
    _, p, y = made
    assert un.risk_coverage(p, y)[1][-1] == pytest.approx(1 - un.accuracy(p, y))


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("kind", ["aps", "threshold"])
def test_conformal_sets_hold_the_truth_as_often_as_promised(alpha, kind):
    """Over many splits the mean coverage is within two standard errors of the exact expectation, k / (n + 1)."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(60, 300, 4))
    covered = []
    for z in logits:
        p = un.softmax(3 * z)  # miscalibrated on purpose
        y = (rng.random((300, 1)) > un.softmax(z).cumsum(1)).sum(1)
        scores = un.aps_scores(p, rng.random(300)) if kind == "aps" else 1 - p
        threshold = un.conformal_threshold(scores[np.arange(100), y[:100]], alpha)
        inside = un.prediction_sets(scores[100:], threshold)
        covered.append(inside[np.arange(200), y[100:]].mean())
    expected = math.ceil(101 * (1 - alpha)) / 101
    assert np.mean(covered) == pytest.approx(expected, abs=2.5 * np.std(covered) / math.sqrt(60))


def test_too_few_calibration_examples_give_every_class():
    assert un.conformal_threshold(np.array([0.2, 0.3]), 0.1) == math.inf
    assert un.conformal_threshold(np.arange(9.0), 0.1) == 8.0


def test_aps_scores_by_hand():
    scores = un.aps_scores(np.array([[0.2, 0.5, 0.3]]), np.array([0.5]))
    assert scores[0] == pytest.approx([0.8 + 0.1, 0.25, 0.5 + 0.15])
    assert un.aps_scores(np.array([[0.2, 0.5, 0.3]]), np.ones(1)).max() == pytest.approx(1.0)


def test_bootstrap_covers_a_known_mean():
    rng, hits = np.random.default_rng(3), 0
    for trial in range(100):
        x = rng.normal(size=80)
        low, high = un.bootstrap(lambda index, x=x: float(x[index].mean()), 80, draws=200, seed=trial)
        hits += low <= 0 <= high
    assert 80 <= hits <= 97


def test_pairs_have_narrower_intervals_than_the_two_apart():
    rng = np.random.default_rng(4)
    x = rng.normal(size=200)
    a, b = x + 0.1, x
    mean, low, high = un.paired_bootstrap(lambda i: float(a[i].mean()), lambda i: float(b[i].mean()), 200)
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))


def test_extreme_logits_give_finite_numbers():
    p = un.softmax(np.array([[1e4, -1e4, 0.0]]))
    assert np.isfinite(p).all()
    assert un.entropy(p)[0] == 0.0
    assert math.isfinite(un.nll(p, np.array([1])))
    assert un.mean_probabilities(np.stack([p, p]), [0.25, 0.75]) == pytest.approx(p)
