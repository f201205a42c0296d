import itertools
import math

import numpy as np
import pytest

from bayesarch.errors import RunError
from bayesarch.posteriors import ConditionalsAtMode, MeanField, from_json, word
from bayesarch.spaces import NB201, TOY, Architecture
from bayesarch.testing import check_posterior

TABLE = [[0.2, 0.5, 0.3], [0.0, 0.9, 0.1], [0.6, 0.3, 0.1]]


def random_table(space, seed):
    rng = np.random.default_rng(seed)
    return [rng.dirichlet(np.ones(len(choice.options)) * 0.7) for choice in space.choices]


@pytest.mark.parametrize("space", [TOY, NB201], ids=lambda s: s.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_contract(space, seed):
    table = random_table(space, seed)
    check_posterior(MeanField(space, table))
    mode = Architecture(space, tuple((int(np.argmin(row)),) for row in table))
    check_posterior(ConditionalsAtMode(mode, table))


def test_contract_can_fail():
    class Liar(MeanField):
        def entropy(self):
            return super().entropy() + 0.1

    with pytest.raises(AssertionError, match="entropy"):
        check_posterior(Liar(TOY, TABLE))


def test_mean_field_by_hand():
    posterior = MeanField(TOY, TABLE)
    assert posterior.mode() == Architecture(TOY, ((1,), (1,), (0,)))
    assert posterior.log_prob(posterior.mode()) == pytest.approx(math.log(0.5 * 0.9 * 0.6))
    assert posterior.log_prob(Architecture(TOY, ((1,), (0,), (0,)))) == -math.inf
    rows = [[0.2, 0.5, 0.3], [0.9, 0.1], [0.6, 0.3, 0.1]]
    assert posterior.entropy() == pytest.approx(-sum(p * math.log(p) for row in rows for p in row))
    best = [weight for _, weight in itertools.islice(posterior.most_probable(), 3)]
    assert best == pytest.approx([0.27, 0.162, 0.135])
    assert len(list(posterior.most_probable())) == 18


def test_conditionals_by_hand():
    mode = Architecture(TOY, ((1,), (1,), (2,)))
    posterior = ConditionalsAtMode(mode, TABLE, gaps=[[1.0, 0.0, 0.5], [math.nan, 0.0, 2.0], [0.0, 0.7, 1.8]])
    # one of three choices drawn anew: the mode stays with (.5 + .9 + .1) / 3
    assert math.exp(posterior.log_prob(mode)) == pytest.approx(0.5)
    neighbour = Architecture(TOY, ((1,), (1,), (0,)))
    assert math.exp(posterior.log_prob(neighbour)) == pytest.approx(0.2)
    assert posterior.log_prob(Architecture(TOY, ((0,), (1,), (0,)))) == -math.inf
    assert posterior.weights()["1<-0"] == {"none": 0.2, "skip": 0.5, "product": 0.3}
    assert posterior.mode() == mode
    record = posterior.to_json()
    assert record["gaps_nats"]["2<-0"]["none"] is None
    again = from_json(record)
    assert math.isnan(again.gaps[1][0])
    assert again.to_json() == record


def test_credible_set_says_when_its_limit_was_reached():
    posterior = MeanField(NB201, [[0.2] * 5] * 6)
    few = posterior.credible_set(0.5, limit=10)
    assert (len(few), few.complete) == (10, False)
    assert few.mass == pytest.approx(10 / 15_625)
    sharp = MeanField(TOY, [[0.0, 1.0, 0.0]] * 3).credible_set(0.99)
    assert (len(sharp), sharp.complete, sharp.mass) == (1, True, 1.0)
    with pytest.raises(ValueError, match="mass"):
        posterior.credible_set(1.5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[0.5, 0.5, 0.5], *TABLE[1:]], "sum to 1"),
        ([[0.5, 0.5], *TABLE[1:]], "3 numbers"),
        ([[1.2, -0.2, 0.0], *TABLE[1:]], ">= 0"),
        ([[math.nan, 0.5, 0.5], *TABLE[1:]], ">= 0"),
        (TABLE[:2], "3 choices but 2 rows"),
    ],
)
def test_tables_are_checked(table, message):
    with pytest.raises(ValueError, match=message):
        MeanField(TOY, table)


def test_records_are_checked():
    record = MeanField(TOY, TABLE).to_json()
    with pytest.raises(RunError, match=r"unknown kind of posterior 'meanfield'.*'mean-field'"):
        from_json({**record, "kind": "meanfield"})
    with pytest.raises(RunError, match=r"space of your own|over a space 'mine'"):
        from_json({**record, "space": "mine"})
    with pytest.raises(RunError, match="weights"):
        from_json({key: value for key, value in record.items() if key != "weights"})


def test_only_what_is_calibrated_is_called_a_probability():
    assert word(MeanField(TOY, TABLE)) == "relative weight"
    assert word(MeanField(TOY, TABLE, calibrated=True)) == "probability"
