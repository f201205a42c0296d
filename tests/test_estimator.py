"""scikit-learn's face: its own checks, tables, images, series, weights."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import bayesarch as ba
from bayesarch.errors import ConfigError

TINY = {"members": 1, "search_epochs": 1, "train_epochs": 15, "batch_size": 32}
NOT_EXACTLY = {
    "check_sample_weight_equivalence_on_dense_data": "an example of weight 2 and two examples meet other batches",
}
CHECKS = list(
    estimator_checks_generator(ba.BayesArchClassifier(**TINY), expected_failed_checks=NOT_EXACTLY, mark="xfail")
)


@pytest.mark.parametrize(("estimator", "check"), CHECKS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def wine():
    x, y = load_wine(return_X_y=True)
    names = np.array(["barolo", "grignolino", "barbera"])[y]
    return train_test_split(x, names, random_state=0, stratify=y)


def test_a_table_in_a_pipeline_and_under_cross_validation(wine):
    x, _, y, _ = wine
    pipeline = make_pipeline(StandardScaler(), ba.BayesArchClassifier(members=2, search_epochs=5, train_epochs=30))
    scores = cross_val_score(pipeline, x, y, cv=3)
    assert scores.mean() > 0.9


def test_probabilities_are_of_the_labels_given(wine):
    x, x_test, y, y_test = wine
    model = ba.BayesArchClassifier(members=2, search_epochs=5, train_epochs=30).fit(x, y)
    p = model.predict_proba(x_test)
    assert model.classes_.tolist() == ["barbera", "barolo", "grignolino"]
    assert p.sum(1) == pytest.approx(np.ones(len(p)))
    assert (model.predict(x_test) == model.classes_[p.argmax(1)]).all()
    assert log_loss(y_test, p, labels=model.classes_) < 0.4
    assert model.architecture_.space.name == "mlp"
    assert len(model.predictor_.networks) == 2
    assert model.held_out_
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict_proba(x_test), p)
    same = clone(model).fit(x, y)
    assert np.array_equal(same.predict_proba(x_test), p), "the same random_state, the same model"
    other = clone(model).set_params(random_state=1).fit(x, y)
    assert not np.array_equal(other.predict_proba(x_test), p)


def test_weights_count():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    y = np.arange(200) % 2  # no feature tells: what is left is the share of each class
    heavy = np.where(y == 1, 9.0, 1.0)
    model = ba.BayesArchClassifier(members=1, search_epochs=1, train_epochs=15)
    even, tilted = model.fit(x, y).predict_proba(x)[:, 1].mean(), model.fit(x, y, heavy).predict_proba(x)[:, 1].mean()
    assert tilted > even + 0.2, (even, tilted)
    marked = np.where(np.arange(200) < 20, 0.0, 1.0)
    zero = clone(model).fit(x, y, marked).predict_proba(x)
    without = clone(model).fit(x[20:], y[20:], marked[20:]).predict_proba(x)
    assert np.array_equal(zero, without), "examples of weight 0 are not there"


def test_images():
    digits = load_digits()
    model = ba.BayesArchClassifier(method="gdas", members=1, search_epochs=2, train_epochs=8, sizes={"channels": 4})
    model.fit(digits.images[:700], digits.target[:700])
    assert model.architecture_.space.name == "nb201"
    assert model.score(digits.images[700:1000], digits.target[700:1000]) > 0.7


def test_series_are_read_along_their_only_axis():
    """The class is whether a bump comes before or after a dip: no place tells, the order does."""
    rng = np.random.default_rng(0)
    x, y = 0.3 * rng.normal(size=(400, 2, 40)), np.arange(400) % 2
    for i in range(400):
        first = rng.integers(0, 26)
        second = rng.integers(first + 6, 37)
        bump, dip = (first, second) if y[i] else (second, first)
        x[i, 0, bump : bump + 3] += 2
        x[i, 0, dip : dip + 3] -= 2
    model = ba.BayesArchClassifier(
        space="nb201-series", method="gdas", members=1, search_epochs=4, train_epochs=25, sizes={"channels": 8}
    ).fit(x[:300], y[:300])
    assert model.score(x[300:], y[300:]) > 0.75
    kernels = {m.kernel_size for m in model.predictor_.networks[0].modules() if hasattr(m, "in_channels")}
    assert kernels <= {(1, 3), (1, 1)}, "no weight lies outside the series"


def test_what_is_wrong_is_named(wine):
    x, _, y, _ = wine
    with pytest.raises(ConfigError, match="did you mean 'mlp'"):
        ba.BayesArchClassifier(space="mpl").fit(x, y)
    with pytest.raises(ConfigError, match="no method 'pgnas'"):
        ba.BayesArchClassifier(method="pgnas").fit(x, y)
    with pytest.raises(ConfigError, match="no source 'best'"):
        ba.BayesArchClassifier(source="best", search_epochs=1, train_epochs=1).fit(x, y)
    with pytest.raises(ValueError, match="one class"):
        ba.BayesArchClassifier().fit(x, np.zeros(len(x)))
