"""What probabilities are worth: intervals of what a measure sees are those of all that there is."""

import numpy as np
import pytest

from bayesarch.functional import uncertainty as un
from bayesarch.workflows.worth import DRAWS, MEASURES, paired, score_row


@pytest.fixture
def made():
    """Two answers about 150 examples of five classes, some of them without a doubt."""
    rng = np.random.default_rng(0)
    answers = [rng.dirichlet(np.full(5, 0.4), 150) for _ in range(2)]
    answers[0][:3] = np.eye(5)[:3]
    return *answers, rng.integers(0, 5, 150)


@pytest.mark.parametrize("key", MEASURES)
def test_intervals_are_of_the_measure_on_resampled_examples(made, key):
    p, _, y = made
    measure = MEASURES[key]
    row = score_row("it", p, y, seed=4)[key]
    low, high = un.bootstrap(lambda i: measure(p[i], y[i]), len(y), draws=DRAWS, seed=4)
    assert row == {"value": measure(p, y), "low": low, "high": high}
    assert low < row["value"] < high


@pytest.mark.parametrize("key", ["accuracy", "nll"])
def test_paired_intervals_are_of_differences_on_the_same_examples(made, key):
    p, base, y = made
    measure = MEASURES[key]
    row = paired(p, base, y, seed=4)[key]
    low, high = un.bootstrap(lambda i: measure(p[i], y[i]) - measure(base[i], y[i]), len(y), draws=DRAWS, seed=4)
    assert (row["low"], row["high"]) == (low, high)
    assert row["value"] == pytest.approx(measure(p, y) - measure(base, y))
